"""The cache on disk: a restart goes on where the last process was, damage is seen, the folder stays small and
its owner's alone."""

import os
import warnings

import pytest
import torch
from small_model import make_model

from ayllu.engine.batch import BLOCK
from ayllu.engine.diskcache import DiskCache
from ayllu.engine.engine import Engine
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.errors import AylluWarning, InputNotFoundError, RefusedError

PROMPT = [(7 * n) % 211 for n in range(70)]
CACHED = (len(PROMPT) - 1) // BLOCK * BLOCK


def answer(model, folder, *, native=False, prompt=PROMPT, **options):
    """(token ids, tokens from the cache) of an engine of its own."""
    executor = None if native else TorchExecutor(model)
    with Engine(model, executor=executor, cache_folder=folder, **options) as engine:
        done = engine.generate([prompt], max_tokens=10, temperature=0)[0]
    return done.token_ids, done.cached_tokens


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("native", [True, False])
def test_a_restart_goes_on_from_the_disk(model, tmp_path, native):
    folder = tmp_path / "cache"
    first, again = (answer(model, folder, native=native) for _ in range(2))
    assert (first[1], again[1]) == (0, CACHED) and first[0] == again[0]
    longer = [*PROMPT, *first[0]]
    assert answer(model, folder, native=native, prompt=longer)[1] == (len(longer) - 1) // BLOCK * BLOCK
    assert not [p for p in files(folder) if p.suffix == ".part"]


def test_other_weights_salts_and_arithmetic_don_t_meet(model, tmp_path):
    folder = tmp_path / "cache"
    answer(model, folder)
    assert answer(make_model(5), folder)[1] == 0
    assert answer(model, folder, cache_salt="other")[1] == 0
    assert answer(model, folder, native=True)[1] == 0
    assert answer(model, folder)[1] == CACHED, "and they didn't harm each other"


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "flipped", "header", "swapped", "gone"])
def test_damaged_files_are_removed_and_the_text_is_read_again(model, tmp_path, damage):
    folder = tmp_path / "cache"
    wanted, _ = answer(model, folder)
    known = files(folder)
    victim = known[0]
    data = victim.read_bytes()
    changed = {
        "cut": data[:-1],
        "longer": data + b"x",
        "empty": b"",
        "flipped": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        "header": b"X" + data[1:],
        "swapped": known[1].read_bytes(),  # a whole, true block in another's place
    }
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(changed[damage])
    seen = []
    for path in [victim] if damage != "swapped" else known:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found, cached = answer(model, folder)
        seen += [w for w in caught if issubclass(w.category, AylluWarning)]
        assert found == wanted and cached <= CACHED and path is not None
    if damage != "gone":
        assert len(seen) == 1 and victim.name in str(seen[0].message)
    assert answer(model, folder) == (wanted, CACHED), "what was lost is written anew"


def test_the_folder_is_bounded_and_the_least_recently_used_goes_first(tmp_path):
    size = 1000 + 8 + 96
    cache = DiskCache(tmp_path / "cache", 4 * size)
    cache.open(b"f" * 32)
    names = [bytes([n]) * 32 for n in range(8)]
    block = torch.zeros(1000, dtype=torch.uint8)
    for n in (0, 1, 2, 3):
        cache.put(names[n], block + n)
        cache.flush()
    assert torch.equal(cache.get(names[0], 1000), block)
    for n in (4, 5):
        cache.put(names[n], block + n)
    cache.flush()
    assert [cache.has(name) for name in names] == [True, False, False, True, True, True, False, False]
    assert cache.bytes == sum(p.stat().st_size for p in files(tmp_path)) == 4 * size
    cache.close()
    (tmp_path / "cache" / ("66" * 8) / "x.part").write_bytes(b"half")
    smaller = DiskCache(tmp_path / "cache", 2 * size)
    assert len(files(tmp_path)) == 2 and smaller.bytes == 2 * size
    smaller.open(b"f" * 32)
    smaller.put(names[6], torch.zeros(3 * size, dtype=torch.uint8))
    smaller.flush()
    assert len(files(tmp_path)) == 2, "what is larger than the bound stays out, and pushes nobody out"
    smaller.close()


def test_a_disk_that_takes_nothing_doesn_t_stop_an_answer(model, tmp_path, monkeypatch):
    wanted = answer(model, tmp_path / "one")[0]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ayllu.engine.diskcache.tempfile.mkstemp", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert answer(model, tmp_path / "two")[0] == wanted
    assert any("not written" in str(w.message) for w in caught) and not files(tmp_path / "two")


def test_what_nobody_expected_doesn_t_keep_who_closes_waiting(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path / "cache", 1 << 20)
    cache.open(b"f" * 32)

    def lost(*_):
        raise StopIteration

    monkeypatch.setattr(cache, "_write", lost)
    with pytest.warns(AylluWarning, match="StopIteration"):
        for number in range(3):
            cache.put(bytes([number]) * 32, torch.zeros(8, dtype=torch.uint8))
        cache.flush()  # for ever, were the writer gone
    cache.close()


def test_only_a_folder_of_one_s_own(tmp_path):
    fine = tmp_path / "fine"
    DiskCache(fine, 1000)
    assert fine.stat().st_mode & 0o777 == 0o700
    for mode in (0o755, 0o770, 0o702):
        fine.chmod(mode)
        with pytest.raises(RefusedError, match="cache folder"):
            DiskCache(fine, 1000)
    fine.chmod(0o700)
    (tmp_path / "link").symlink_to(fine)
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(RefusedError):
            DiskCache(tmp_path / name, 1000)
    with pytest.raises(InputNotFoundError):
        DiskCache(tmp_path / "not" / "there", 1000)
    if os.geteuid() == 0:
        os.chown(fine, 12345, 12345)
        with pytest.raises(RefusedError, match="cache folder"):
            DiskCache(fine, 1000)
