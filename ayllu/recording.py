"""What `ayllu run --record FILE` and `--replay FILE` ask of one turn."""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ayllu.errors import AylluError, UsageError
from ayllu.reason.recorded import RecordedEngine, RecordedTurn
from ayllu.serve.options import EngineOptions

if TYPE_CHECKING:
    from ayllu.reason.loop import Answer
    from ayllu.reason.transcript import Transcript
    from ayllu.talk import Talk


class Recording:
    """The file that a turn goes into, and the turn that it has to repeat; None for neither.

    Raises UsageError where the turn can't be written, or where `own` says that a replay was given settings;
    what is wrong with the file of a replay as `RecordedTurn.read` does.
    """

    def __init__(self, record: Path | None, replay: Path | None, *, own: bool, answers: int) -> None:
        if answers and (record is not None or replay is not None):
            raise UsageError(
                "a file holds one answer", fix="leave --record and --replay out, or --votes and --best-of"
            )
        if replay is not None and own:
            raise UsageError(
                "--replay brings its own question, sampling and tools",
                fix="give only the model beside it, and options of the engine",
            )
        self.replayed = RecordedTurn.read(replay) if replay is not None else None
        self.path = record
        if record is not None:
            _check_new(record)
        self._done: tuple[Transcript, Answer] | None = None

    def seed(self, given: int | None) -> int | None:
        """The seed: a turn that is recorded has one."""
        return secrets.randbelow(2**31) if given is None and self.path is not None else given

    def engine(self, given: EngineOptions) -> EngineOptions:
        """Options of the engine: what isn't given is as in the replayed turn."""
        if self.replayed is None:
            return given
        then = self.replayed.engine
        unsaid = [name for name in then.__struct_fields__ if getattr(given, name) is None]
        return replace(given, **{name: getattr(then, name) for name in unsaid})

    def begin(self, talk: Talk, prompt: str) -> None:
        """Say what isn't done. RequestError when the model is to read another prompt than it did then."""
        if self.replayed is not None:
            print("(a replay: no tool is run)", file=sys.stderr)
            self.replayed.check_prompt(talk.begin(prompt).ids())

    def done(self, begun: Transcript, answer: Answer) -> None:
        """The turn has been answered."""
        self._done = begun, answer

    def finish(self, talk: Talk, prompt: str, said: str, engine: EngineOptions) -> None:
        """Write the turn, and compare it with the replayed one. UsageError, with the seed, where it can't be
        written: the answer has been given by now. RequestError when it came out otherwise."""
        if self.path is None and self.replayed is None:
            return
        assert self._done is not None, "one answer was given"
        how = {name: getattr(engine.said(), name) for name in RecordedEngine.__struct_fields__}
        now = RecordedTurn.of(
            prompt,
            said,
            *self._done,
            params=talk.params,
            budget=talk.budget,
            toolbox=talk.toolbox,
            engine=RecordedEngine(**how),
        )
        if self.path is not None:
            try:
                now.write(self.path)
            except (AylluError, OSError) as error:
                raise UsageError(
                    f"the turn was not recorded: {self.path} can't be written",
                    why=str(error),
                    fix=f"run it again with --seed {now.settings['seed']} and another file",
                ) from error
        if self.replayed is not None:
            self.replayed.check(now)


def _check_new(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} exists already", fix="name a file that doesn't")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} can't be written: there is no such folder", fix="make the folder first")
