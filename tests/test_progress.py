"""Progress: what a person sees of a stage, on a terminal and in a log."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from ayllu import progress as module
from ayllu.progress import Progress, clock


class Screen(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


class Time:
    """A clock that a test turns."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    monkeypatch.setattr(module, "time", made := Time())
    return made


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (0.6, "0:01"), (75, "1:15"), (3599.7, "1:00:00"), (3675, "1:01:15")]
)
def test_times_as_people_write_them(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_share_time_and_time_left(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(False))
    progress = Progress("sft")
    progress.start(200, "steps")
    time.now += 30
    progress.update(50, "loss 1.5")
    assert screen.getvalue().split() == [
        "sft",
        "25%",
        "50/200",
        "steps",
        "0:30",
        "1:30",
        "left",
        "loss",
        "1.5",
    ]


def test_the_time_left_of_a_resumed_stage_counts_only_what_it_did_itself(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(False))
    progress = Progress("sft")
    progress.start(200, "steps", 100)
    time.now += 10
    progress.update(110)
    assert "55%" in screen.getvalue() and "1:30 left" in screen.getvalue()


@pytest.mark.parametrize(("tty", "lines"), [(False, 20), (True, 450)])
def test_it_does_not_chatter(time: Time, monkeypatch: pytest.MonkeyPatch, tty: bool, lines: int) -> None:
    """10,000 steps in 90 s: a line every 5 s in a log, five repaints a second on a terminal."""
    monkeypatch.setattr(sys, "stderr", screen := Screen(tty))
    progress = Progress("sft")
    progress.start(10_000, "steps")
    for step in range(1, 10_001):
        time.now += 0.009
        progress.update(step)
    assert lines * 0.8 <= screen.getvalue().count("%") <= lines * 1.1
    assert "100%" in screen.getvalue()  # the last one is always shown
    assert screen.getvalue().count("\n") == (0 if tty else screen.getvalue().count("%"))


def test_what_is_said_stays_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(True))
    progress = Progress("sft")
    progress.start(10, "steps")
    progress.update(10)
    progress.say("done")
    assert screen.getvalue().split("\r\x1b[2K")[-1] == "      sft done\n"


def test_quiet_still_writes_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("text", quiet=True, log=tmp_path / "log.txt")
    progress.say("begins")
    progress.finish("12 documents")
    assert (tmp_path / "log.txt").read_text() == "     text begins\n     text 12 documents\n"
    assert capsys.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Progress("text", log=tmp_path / "missing" / "log.txt").say("begins")
    assert capsys.readouterr().err == "     text begins\n"
