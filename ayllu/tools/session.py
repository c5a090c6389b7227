"""The calls of one turn: how many, for how long, what happens to the same one again, and a record of each.

A Toolbox judges one call and knows nothing of the last. A model in a loop needs more: it may call for
ever, wait for ever, or ask the same thing until its context is full (what users report of agents most
often). So a Session stands between the loop and the toolbox, with Rules.

Every call is recorded. From the records the turn can be replayed: a Session over them gives what was
given then and runs nothing, so that with the same model and seed the same conversation comes out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ayllu.errors import RequestError
from ayllu.tools.tool import Result, Toolbox, whole

MAX_CALLS = 8
AGAIN = "\n(the same call as before, with the result from then)"


@dataclass(frozen=True)
class Rules:
    """What the calls of one turn may use. `seconds`: all of them together; `call_seconds`: each, beside the
    tools' own limits. `once`: the same call again isn't run but gets the first result and a note; one that
    failed may be tried again, unless it was to change something: it may have, and a user has been asked."""

    max_calls: int = MAX_CALLS
    seconds: float | None = None
    call_seconds: float | None = None
    once: bool = False


@dataclass(frozen=True)
class Record:
    """A call and what came of it. `seconds` is how long it took, without a user's time for an answer or a
    confirmation."""

    name: str
    arguments: str
    ok: bool
    text: str
    valid: bool = True
    told: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def result(self) -> Result:
        """What the model got."""
        return Result(self.ok, self.text, self.valid, self.told)


class Session:
    """Runs the calls of one turn by `rules`; with `recorded`, gives those results instead of running any."""

    def __init__(
        self,
        toolbox: Toolbox,
        rules: Rules | None = None,
        *,
        recorded: Iterable[Record] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.toolbox, self.rules, self.clock = toolbox, rules or Rules(), clock
        self.records: list[Record] = []
        self.spent = 0.0  # seconds in tools
        self._recorded = None if recorded is None else list(recorded)
        self._first: dict[tuple[str, str], Result] = {}

    @property
    def calls(self) -> int:
        """Calls that were judged; those beyond a limit are not."""
        return len(self.records)

    @property
    def valid_calls(self) -> int:
        """Calls whose tool exists and whose arguments fit."""
        return sum(record.valid for record in self.records)

    @property
    def over(self) -> bool:
        """Whether no further call will be run."""
        late = self.rules.seconds is not None and self.spent >= self.rules.seconds
        return late or self.calls >= self.rules.max_calls

    def run(self, name: str, arguments: str, error: str = "") -> Result:
        """The result of a call. `error`: what is wrong with one that can't even be read. RequestError when a
        replay meets another call than the one that was recorded."""
        if self.calls >= self.rules.max_calls:
            return Result(False, "error: no more calls", valid=False)
        if self.rules.seconds is not None and self.spent >= self.rules.seconds:
            return Result(False, f"error: all {self.rules.seconds:g} s for calls are used up", valid=False)
        begun = self.clock()
        if self._recorded is not None:
            result = self._replayed(name, arguments)
        elif error:
            result = Result(False, f"error: {error}", valid=False)
        else:
            result = self._run(name, arguments)
        result = replace(result, text=whole(result.text), told=whole(result.told))
        tool = self.toolbox.by_name.get(name)
        if self._recorded is not None:
            took = self._recorded[self.calls].seconds  # so that a limit is met where it was met then
        else:
            took = max(0.0, self.clock() - begun - result.asked)
            if tool is not None and tool.asks:
                took = 0.0
        self.spent += took
        outcome = (result.ok, result.text, result.valid, result.told)
        self.records.append(Record(name, arguments, *outcome, seconds=took))
        return result

    def _run(self, name: str, arguments: str) -> Result:
        tool = self.toolbox.by_name.get(name)
        once = self.rules.once and tool is not None and not tool.varies
        key = (name, _same(arguments))
        if once and (first := self._first.get(key)) is not None:
            return Result(first.ok, first.text + AGAIN, first.valid, first.told)
        left = None if self.rules.seconds is None else self.rules.seconds - self.spent
        limits = [limit for limit in (self.rules.call_seconds, left) if limit is not None]
        limit = {"seconds": min(limits)} if limits else {}
        result = self.toolbox.run(name, arguments, **limit)
        if once and (result.ok or not result.valid or (tool is not None and tool.changes_something)):
            self._first[key] = result
        return result

    def _replayed(self, name: str, arguments: str) -> Result:
        assert self._recorded is not None
        at = len(self.records)
        if at >= len(self._recorded):
            raise _another(f"it has {at} calls, here comes one more: {name[:40]}")
        known = self._recorded[at]
        if (known.name, known.arguments) != (name, arguments):
            here = "it has other arguments" if known.name == name else f"it is to {name[:40]}"
            raise _another(f"call {at + 1} was to {known.name[:40]}, here {here}")
        return known.result


def _same(arguments: str) -> str:
    """Arguments without what makes no difference: white space, the order of names."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _another(why: str) -> RequestError:
    return RequestError(
        "this turn can't be replayed from these records",
        why=why,
        fix="use the records, the model, the seed and the settings of one and the same turn",
    )
