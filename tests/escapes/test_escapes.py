"""Model-written code tries to get out of the sandbox: each line of the table, on each wall that must hold
alone.

The same table runs behind all walls, as the current user and, where that is root, as an ordinary user too;
`make escapes` (AYLLU_ESCAPES=all) also behind Landlock without namespaces and behind namespaces without
Landlock. A last run without any wall shows that the attempts are real: those that can be let succeed do.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from attempts import TABLE
from calls import FORBIDDEN
from world import EVERY

NAMES = [attempt.name for attempt in EVERY]
ORDINARY = 65534
USERS = [None, ORDINARY] if os.geteuid() == 0 else [None]
LEVELS = {"full": [], "landlock": ["namespaces"], "namespaces": ["landlock"]}
if os.environ.get("AYLLU_ESCAPES") != "all":
    LEVELS = {"full": []}
RUNS = [(level, user) for user in USERS for level in LEVELS if user is None or level != "namespaces"]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the walls are those of Linux")


@cache
def ran(level: str, user: int | None) -> dict:
    """The report of world.py."""
    command = [sys.executable, str(Path(__file__).with_name("world.py"))]
    command += ["--controls"] if level == "none" else ["--without", *LEVELS[level]]
    command += ["--user", str(user)] if user is not None else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode and "would not be kept in" in done.stderr:
        pytest.skip(f"this kernel does not have the walls of level {level}")
    if done.returncode and user is not None and "Operation not permitted: 'unshare" in done.stderr:
        pytest.skip("root of this container may not mount: no ordinary user to try")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    if report["level"] not in (level, "none"):
        pytest.skip(f"level {level} is not to be had here: {report['text']}")
    return report


def test_there_are_enough():
    assert len(TABLE) >= 200 and len(set(NAMES)) == len(NAMES)
    assert len(FORBIDDEN.split()) >= 150


@pytest.mark.parametrize(("level", "user"), RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_contained(level, user, name):
    assert not ran(level, user)["attempts"][name]


@pytest.mark.parametrize(("level", "user"), RUNS)
def test_nothing_outside_changed(level, user):
    assert ran(level, user)["world"] == []


@pytest.mark.parametrize("name", [attempt.name for attempt in TABLE if attempt.control])
def test_control_gets_out_without_walls(name):
    assert not ran("none", None)["attempts"][name]


def test_most_system_calls_are_reached_without_walls():
    """Some are not in every kernel, some are refused to this user by the kernel itself; most are there."""
    complaints = ran("none", None)["attempts"]
    calls = [name for name in NAMES if name.startswith("system call")]
    reached = [name for name in calls if not complaints[name]]
    assert len(reached) > len(calls) / 2
