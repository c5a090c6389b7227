"""The sandbox beside its walls: outcomes, limits that are told, work folders, the warm interpreter's life."""

# ruff: noqa: PTH102, PTH109, PTH208

import os
import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.errors import InputNotFoundError
from ayllu.tools.outcome import WALLS, level_of
from ayllu.tools.sandbox import Limits, Sandbox, Tape
from ayllu.tools.walls import folder, seccomp


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as made:
        yield made


def test_outcome(sandbox):
    outcome = sandbox.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(4)")
    assert (outcome.stdout, outcome.stderr, outcome.exit, outcome.why_stopped) == ("out\n", "err\n", 4, None)
    assert 0 < outcome.seconds < 60 and outcome.memory > 1 << 20 and not outcome.ok


def test_value_is_shown_only_when_asked(sandbox):
    assert sandbox.run("1 + 1").stdout == ""
    assert sandbox.run("1 + 1", show_value=True).stdout == "2\n"


def test_output_before_a_stop_is_kept():
    with Sandbox(limits=Limits(seconds=0.5)) as short:
        outcome = short.run("print('begun')\nwhile True: pass")
    assert (outcome.stdout, outcome.why_stopped, outcome.exit) == ("begun\n", "time", None)


def test_processor_time_is_told():
    with Sandbox(limits=Limits(seconds=60, cpu_seconds=1)) as short:
        assert short.run("while True: pass").why_stopped == "cpu"


def test_crash_is_told(sandbox):
    assert sandbox.run("import ctypes; ctypes.string_at(0)").why_stopped == "crash"


def test_each_call_begins_anew(sandbox):
    sandbox.run(
        "import math, sys, os\nmath.pi = 3\nsys.modules['x'] = 1\nos.environ['A'] = 'b'\nopen('f', 'w')"
    )
    code = "import math, sys, os\nprint(math.pi > 3, 'x' in sys.modules, 'A' in os.environ, os.listdir())"
    assert sandbox.run(code).stdout == "True False False []\n"


def test_random_numbers_differ_from_call_to_call(sandbox):
    assert (
        sandbox.run("import random; print(random.random())").stdout
        != sandbox.run("import random; print(random.random())").stdout
    )


def test_calls_side_by_side(sandbox):
    results: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: sandbox.run(f"print({n})").stdout}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: f"{n}\n" for n in range(8)}


def test_work_folder_stays(tmp_path):
    (tmp_path / "given.txt").write_text("given")
    with Sandbox(tmp_path) as kept:
        assert (
            kept.run("print(open('given.txt').read()); open('made.txt', 'w').write('x' * 7)").stdout
            == "given\n"
        )
        assert kept.files() == [("given.txt", 5), ("made.txt", 7)]
    assert (tmp_path / "made.txt").read_text() == "x" * 7


def test_too_much_disk_is_taken_back(tmp_path):
    (tmp_path / "given.txt").write_text("given")
    with Sandbox(tmp_path, Limits(disk=4 << 20)) as kept:
        outcome = kept.run("for n in range(64): open(f'm{n}', 'wb').write(bytes(1 << 20))")
        assert outcome.why_stopped == "disk" and os.listdir(tmp_path) == ["given.txt"]
        assert kept.run("print(1)").ok


def test_what_is_too_large_may_shrink_but_not_grow(tmp_path):
    """A folder that a program or its owner has filled isn't locked: what is in it can be removed."""
    with Sandbox(tmp_path, Limits(disk=4 << 20, entries=40)) as kept:
        grow = "for name in ('a', 'b'): open(name, 'ab').write(bytes({} << 20))"
        assert kept.run("import os; os.mkdir('deep'); " + grow.format(1).replace("for", "\nfor")).ok
        assert kept.run(grow.format(2)).why_stopped == "disk"
        assert (tmp_path / "a").stat().st_size == 1 << 20, "cut to what it was, and not taken away"
        for name in "abcde":  # more than is allowed, but not by a program
            with open(tmp_path / name, "ab") as file:
                file.write(bytes(1 << 20))
        assert kept.run("print(1)").ok
        for _ in range(3):  # a bound that rose with each call would be none
            assert kept.run(grow.format(1)).why_stopped == "disk"
            assert kept.run("open('more', 'wb').write(bytes(2 << 20))").why_stopped == "disk"
        assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d", "deep", "e"]
        assert (tmp_path / "a").stat().st_size == 2 << 20
        remove = "import os; os.remove('a'); os.remove('b')"
        assert kept.run(f"{remove}; open('more', 'wb').write(bytes(1 << 19))").ok
        for name in "cde":
            (tmp_path / name).unlink()
        many = "import os\nfor n in range(90): open(f'deep/{n}', 'w')"
        assert kept.run(many).why_stopped == "disk" and os.listdir(tmp_path / "deep") == []
        deep = "import os\nos.chdir('deep')\nfor n in range(35): os.mkdir('d'); os.chdir('d')"
        assert kept.run(deep).why_stopped == "disk" and os.listdir(tmp_path / "deep") == []
        assert kept.run("import os; os.mkdir('deep/one'); print(1)").ok
        for n in range(170):  # more than a call's additions could be told from
            (tmp_path / f"mine-{n}").touch()
        assert kept.run("print(1)").why_stopped == "disk"
    assert len(os.listdir(tmp_path)) == 172


def test_what_a_flood_leaves_is_taken_back_too(tmp_path):
    """The call is stopped for its output; its files are over the limit all the same."""
    code = "open('more', 'wb').write(bytes(3 << 20)); open('most', 'wb').write(bytes(3 << 20))"
    with Sandbox(tmp_path, Limits(disk=4 << 20, entries=20)) as kept:
        assert kept.run(f"{code}\nwhile True: print('x' * 9999)").why_stopped in ("output", "disk")
        assert os.listdir(tmp_path) == [] and kept.run("print(1)").ok


def test_a_folder_that_hides_its_content_hides_nothing(tmp_path):
    with Sandbox(tmp_path, Limits(disk=4 << 20)) as kept:
        hidden = "import os; os.mkdir('d', 0o300)\nfor n in 'ab': open(f'd/{n}', 'wb').write(bytes(3 << 20))"
        assert kept.run(hidden).why_stopped == "disk" and os.listdir(tmp_path) == []
        assert kept.run("import os; os.mkdir('d', 0o300); open('d/precious', 'w').write('x')").ok
        assert kept.run("for n in 'ab': open(n, 'wb').write(bytes(3 << 20))").why_stopped == "disk"
    assert (tmp_path / "d" / "precious").read_text() == "x"


def test_restoring_a_folder_goes_around_what_it_may_not_touch(tmp_path, monkeypatch):
    """Names that were guessed, modes, long paths."""
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data" / "x").write_text("x")
    (tmp_path / f".new-{os.getpid()}-1").write_text("mine")
    before = folder.sizes(tmp_path)
    (tmp_path / "data" / "x").write_text("xyz")
    place = tmp_path
    for _ in range(14):
        place = place / ("n" * 250)
        place.mkdir()
    monkeypatch.chdir(place)
    for _ in range(6):
        os.mkdir("n" * 250)
        os.chdir("n" * 250)
    os.chdir(tmp_path)
    assert not folder.extent(tmp_path, 1000).whole
    folder.restore(tmp_path, before)
    assert folder.sizes(tmp_path) == before and (tmp_path / "data" / "x").read_text() == "x"
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / f".new-{os.getpid()}-1").read_text() == "mine"


def test_a_folder_that_is_gone_afterwards_may_hold_a_checkout(sandbox):
    assert sandbox.run("import os\nos.mkdir('.git')\nprint(os.listdir())").stdout == "['.git']\n"


@pytest.mark.parametrize(
    ("missing", "user", "abi", "name"),
    [
        ([], 65534, 6, "full"), (["namespaces"], 65534, 3, "landlock"),
        (["landlock"], 65534, 0, "namespaces"),
        (["namespaces"], 65534, 2, "none"),  # truncation isn't governed: the interpreter could be emptied
        (["namespaces"], 0, 6, "none"), ([], 0, 6, "none"),  # root owns the system's files
        (["seccomp"], 65534, 6, "none"), (["namespaces", "landlock"], 65534, 0, "none"),
    ],
)  # fmt: skip
def test_which_walls_are_enough(missing, user, abi, name):
    level = level_of({wall: "gone" if wall in missing else "" for wall in WALLS}, user, abi)
    assert level.name == name and level.safe == (name != "none")


def test_files_that_are_removed_and_still_open_are_counted():
    """No folder shows them, and the disk gets fuller all the same."""
    code = (
        "import os\nx = []\nfor n in range(60):\n    f = open('m', 'wb'); f.write(os.urandom(1 << 22))\n"
        "    f.flush(); os.fsync(f.fileno()); os.unlink('m'); x.append(f)\nprint('all')"
    )
    limits = Limits(disk=8 << 20, unseen=48 << 20, seconds=60.0, cpu_seconds=60.0)
    with Sandbox(limits=limits) as made:
        outcome = made.run(code)
        assert (outcome.why_stopped, outcome.stdout) == ("disk", "")
        assert made.run("print(1)").stdout == "1\n", "and given back"


def test_closing_stops_a_running_call(tmp_path):
    made = Sandbox(tmp_path, Limits(seconds=99, cpu_seconds=99))
    code = "import time\nwhile True: open('beat', 'w').write(str(time.time())); time.sleep(0.01)"
    running = threading.Thread(target=made.run, args=(code,))
    running.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "beat").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    made.close()
    running.join(30)
    assert not running.is_alive()
    beat = (tmp_path / "beat").read_text()
    time.sleep(0.3)
    assert (tmp_path / "beat").read_text() == beat


def test_unknown_package_is_named():
    with pytest.raises(InputNotFoundError, match="no_such_package"):
        Sandbox(packages=["no_such_package"])


def test_named_package_is_there_and_others_are_not():
    with Sandbox(packages=["numpy"], limits=Limits(memory=2 << 30, seconds=60)) as with_numpy:
        assert with_numpy.run("import numpy; print(numpy.arange(4).sum())").stdout == "6\n"
        assert "ModuleNotFoundError" in with_numpy.run("import pytest").stderr


def test_the_warm_interpreter_comes_back_after_it_was_killed(sandbox):
    os.kill(sandbox._process.pid, signal.SIGKILL)
    sandbox._process.wait()
    assert sandbox.run("print(1)").stdout == "1\n"


def test_an_interpreter_that_is_given_up_is_ended(monkeypatch):
    """Walls that fail half way make the host start it again without them."""
    launch, given = Sandbox._launch, []

    def launched(self, spec):
        hello = launch(self, spec)
        given.append((self._process, self._channel))
        return hello if len(given) > 1 else {"error": "namespaces", "reason": "tried"}

    monkeypatch.setattr(Sandbox, "_launch", launched)
    with Sandbox(allow_unsafe=True) as made:
        (process, channel), (other, _) = given
        assert process.returncode is not None and channel.fileno() == -1
        assert made.level().missing["namespaces"] == "tried" and other.poll() is None
        assert made.run("print(1)").stdout == "1\n"


def test_nothing_is_left_after_close():
    made = Sandbox()
    private, pid = made._private, made._process.pid
    made.run("open('f', 'w').write('x')")
    made.close()
    made.close()
    assert not private.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_call_dies_with_the_host(tmp_path):
    """The host is killed in the middle of a call: the loop inside must not go on."""
    import subprocess
    import sys

    program = (
        "import os, sys, threading\nfrom ayllu.tools.sandbox import *\n"
        f"s = Sandbox({str(tmp_path)!r}, Limits(seconds=99, cpu_seconds=99))\n"
        "threading.Timer(3, lambda: os.kill(os.getpid(), 9)).start()\n"
        's.run(\'import time\\nwhile True: open("beat", "w").write(str(time.time())); time.sleep(0.02)\')'
    )
    subprocess.run([sys.executable, "-c", program], timeout=120)
    beat, deadline = "", time.monotonic() + 30
    while beat != (beat := (tmp_path / "beat").read_text()) and time.monotonic() < deadline:
        time.sleep(2)
    assert (tmp_path / "beat").read_text() == beat and time.monotonic() < deadline


@given(st.lists(st.binary(max_size=300)), st.integers(8, 200))
@settings(max_examples=60, deadline=None)
def test_tape_keeps_head_and_tail(pieces, limit):
    tape = Tape(limit)
    for piece in pieces:
        tape.write(piece)
    whole = b"".join(pieces)
    assert tape.total == len(whole)
    if len(whole) <= limit:
        assert tape.text() == whole.decode("utf-8", "replace")
    else:
        assert f"[{len(whole) - limit} bytes of output cut]" in tape.text()


def test_emptying_a_deep_folder(tmp_path):
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            os.mkdir("d" * 50)
            os.chdir("d" * 50)
    finally:
        os.chdir(here)
    assert not folder.extent(tmp_path, 10_000).whole
    folder.clear(tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_filter_is_well_formed():
    for indoors in (True, False):
        lines = seccomp.program(indoors=indoors, threads=indoors)
        assert len(lines) % 8 == 0 and len(lines) // 8 < 4096
