"""A file is whole or absent, whatever the disk does: every call is made to fail once, at every point."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu import files
from ayllu.errors import BadFileError, DiskFullError, FolderReadOnlyError, RunBusyError

CALLS = ("open", "fdopen", "fsync", "chmod", "replace")


class Fragile:
    """The os module (or a file that it opened), whose n-th call to the disk fails with an error."""

    def __init__(self, module: Any, fail_at: int, code: int) -> None:
        self.module, self.fail_at, self.code, self.calls = module, fail_at, code, 0
        self.failed = ""

    def tick(self, name: str) -> None:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            self.failed = name
            raise OSError(self.code, os.strerror(self.code))

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.module, name)
        if name not in CALLS:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.tick(name)
            result = real(*args, **kwargs)
            return FragileFile(result, self) if name == "fdopen" else result

        return call


class FragileFile:
    """A file whose write and flush count as calls to the disk; a failing write leaves half of it."""

    def __init__(self, file: Any, owner: Fragile) -> None:
        self.file, self.owner = file, owner

    def __enter__(self) -> FragileFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.owner.tick("write")
        self.file.write(data[len(data) // 2 :])

    def flush(self) -> None:
        self.owner.tick("flush")
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())


def each_failure(
    monkeypatch: pytest.MonkeyPatch, code: int, prepare: Callable[[], None], action: Callable[[], None]
) -> Iterator[tuple[str, Exception]]:
    """Run `action` again and again, failing at the first call, the second, ... until none fails."""
    for fail_at in range(100):
        prepare()
        fragile = Fragile(os, fail_at, code)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", fragile)
            try:
                action()
            except Exception as error:
                yield fragile.failed, error
            else:
                assert not fragile.failed, f"a failing {fragile.failed} went unnoticed"
                return
    raise AssertionError("the action never succeeded")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EROFS, FolderReadOnlyError)],
)
def test_a_write_that_fails_at_any_call_leaves_the_old_or_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    path = tmp_path / "weights"
    failures = each_failure(
        monkeypatch,
        code,
        lambda: path.write_bytes(b"old") and None,
        lambda: files.write_bytes(path, b"new!"),
    )
    renamed = False
    for call, error in failures:
        assert isinstance(error, kind), (call, error)
        assert str(path) in str(error)
        assert path.read_bytes() == (b"new!" if renamed else b"old"), call
        assert [p.name for p in tmp_path.iterdir()] == ["weights"], f"{call} left a part behind"
        renamed = renamed or call == "replace"  # what fails after the rename can't bring the old one back
    assert renamed
    assert path.read_bytes() == b"new!"


def test_the_injection_reaches_every_step_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    failures = each_failure(monkeypatch, errno.ENOSPC, lambda: None, lambda: files.write_bytes(path, b"new!"))
    names = [call for call, _ in failures]
    assert names == ["fdopen", "write", "flush", "fsync", "chmod", "replace", "open", "fsync"]


def test_other_errors_of_the_disk_are_not_disguised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = each_failure(
        monkeypatch, errno.EIO, lambda: None, lambda: files.write_bytes(tmp_path / "a", b"x")
    )
    assert {type(error) for _, error in failures} == {OSError}


def test_a_new_folder_appears_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-10"

    def action() -> None:
        with files.new_folder(path) as folder:
            (folder / "weights").write_bytes(b"1")
            (folder / "moments").write_bytes(b"2")

    for call, error in each_failure(
        monkeypatch, errno.ENOSPC, lambda: shutil.rmtree(path, ignore_errors=True), action
    ):
        assert isinstance(error, DiskFullError), call
        assert not path.exists() or sorted(p.name for p in path.iterdir()) == ["moments", "weights"]
        assert not list(tmp_path.glob(".*.part")), call
    assert sorted(p.name for p in path.iterdir()) == ["moments", "weights"]


def replace_folder(tmp_path: Path) -> tuple[Path, Callable[[], None], Callable[[], None]]:
    path = tmp_path / "model"

    def prepare() -> None:
        for left in tmp_path.iterdir():
            shutil.rmtree(left)
        path.mkdir()
        (path / "weights").write_bytes(b"old")

    def action() -> None:
        with files.new_folder(path) as folder:
            (folder / "weights").write_bytes(b"new")

    return path, prepare, action


def test_replacing_a_folder_never_loses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, prepare, action = replace_folder(tmp_path)
    for call, error in each_failure(monkeypatch, errno.ENOSPC, prepare, action):
        assert isinstance(error, DiskFullError), call
        assert (path / "weights").read_bytes() in (b"old", b"new"), call
    assert (path / "weights").read_bytes() == b"new"


def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    path, prepare, _ = replace_folder(tmp_path)
    prepare()
    with pytest.raises(ZeroDivisionError), files.new_folder(path) as folder:
        (folder / "weights").write_bytes(b"half")
        raise ZeroDivisionError
    assert (path / "weights").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# ---- real disks
@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; where mounting is not permitted the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_really_full_disk(tiny_disk: Path) -> None:
    path = tiny_disk / "weights"
    files.write_bytes(path, b"old")
    with pytest.raises(DiskFullError, match="no room to write"):
        files.write_bytes(path, os.urandom(100_000))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tiny_disk.iterdir()] == ["weights"], "the part takes up the room that is missing"
    with pytest.raises(DiskFullError):
        for _ in range(100):
            files.append_line(tiny_disk / "log", "x" * 1000)


def test_a_really_read_only_disk(tiny_disk: Path) -> None:
    files.write_bytes(tiny_disk / "weights", b"old")
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    for action in (
        lambda: files.write_bytes(tiny_disk / "weights", b"new"),
        lambda: files.append_line(tiny_disk / "log", "x"),
        lambda: files.make_folder(tiny_disk / "a" / "b"),
        lambda: files.new_folder(tiny_disk / "a").__enter__(),
        lambda: files.locked(tiny_disk / "lock").__enter__(),
    ):
        with pytest.raises(FolderReadOnlyError, match="can't be written"):
            action()
    assert (tiny_disk / "weights").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the read-only disk covers it")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(FolderReadOnlyError):
            files.write_bytes(tmp_path / "a", b"x")
    finally:
        tmp_path.chmod(0o755)


def test_a_write_beyond_the_size_limit_of_the_process(tmp_path: Path) -> None:
    # RLIMIT_FSIZE makes the kernel refuse the write itself (EFBIG), without any right to mount.
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom ayllu import files, errors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    files.write_bytes(Path(sys.argv[1]), b'x' * 100000)\n"
        "except errors.DiskFullError as error:\n    print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == "disk_full\n"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom ayllu import files\n"
        "files.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_bytes(Path(sys.argv[1]), b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path])
    assert done.returncode == -9
    assert path.read_bytes() == b"old"


# ---- the rest
def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    files.write_json(path, {"n": 0, "filling": "x" * 5000})
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(json.loads(path.read_bytes())["n"])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(1, 60):
        files.write_json(path, {"n": n, "filling": "x" * 5000})
    stop.set()
    reader.join()
    assert seen == sorted(seen) and len(seen) > 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("aäక"), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(json_values)
def test_json_survives(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=5))
def test_the_hash_of_a_value_does_not_depend_on_the_order_of_its_keys(value: dict[str, int]) -> None:
    again = dict(reversed(value.items()))
    assert files.sha256_json(value) == files.sha256_json(again)


@pytest.mark.parametrize("content", [b"{", b"\xff{}", b""])
def test_damaged_json_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(BadFileError, match="not valid JSON"):
        files.read_json(path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "sub/../../a", "link/a"])
def test_a_name_can_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(BadFileError, match="points outside"):
        files.safe_join(folder, name)


def test_a_name_inside_is_fine(tmp_path: Path) -> None:
    assert files.safe_join(tmp_path, "a/../b.json") == (tmp_path / "b.json").resolve()


def test_a_lock_shuts_out_other_processes_and_dies_with_its_owner(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom ayllu import files\n"
        "with files.locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, lock], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        with pytest.raises(RunBusyError, match="in use by another process"), files.locked(lock):
            pass
    finally:
        owner.kill()
        owner.wait()
    with files.locked(lock):
        pass


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert files.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
