"""A turn in a file: what was asked, how it was sampled, which tools were on offer, what each call gave.

From it the turn can be answered again without running any tool, to see what a model did and whether it still
does: the same model, seed and settings give the same conversation (`Session`, ayllu/tools/session.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ayllu.engine.request import SamplingParams
from ayllu.errors import BadFileError, InputNotFoundError, RequestError
from ayllu.files import read_json, write_json
from ayllu.tools.session import Record
from ayllu.tools.tool import Tool, Toolbox

_LIMIT = 64 << 20  # bytes of a file
_SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed")


class Offered(msgspec.Struct, forbid_unknown_fields=True):
    """A tool as the model saw it."""

    name: str
    description: str
    parameters: dict[str, Any]
    ends_turn: bool = False


class RecordedTurn(msgspec.Struct, forbid_unknown_fields=True):
    """One turn. `settings`: fields of SamplingParams; `thinking_budget`: tokens, None for no bound."""

    prompt: str
    answer: str
    settings: dict[str, float | int | None]
    thinking_budget: int | None
    tools: list[Offered]
    calls: list[Record]

    @classmethod
    def of(
        cls,
        prompt: str,
        answer: str,
        params: SamplingParams,
        budget: int | None,
        toolbox: Toolbox,
        calls: tuple[Record, ...],
    ) -> RecordedTurn:
        """A turn that has just been answered."""
        tools = [Offered(t.name, t.description, t.parameters, t.ends_turn) for t in toolbox.tools]
        settings = {name: getattr(params, name) for name in _SETTINGS}
        return cls(prompt, answer, settings, budget, tools, list(calls))

    @classmethod
    def read(cls, path: Path) -> RecordedTurn:
        """InputNotFoundError, or BadFileError for anything but such a file."""
        if not path.is_file():
            raise InputNotFoundError(f"{path} doesn't exist", fix="give a file that --record wrote")
        values = read_json(path, limit=_LIMIT)
        try:
            turn = msgspec.convert(values, cls)
            if turn.settings.keys() != set(_SETTINGS):
                raise ValueError(f"settings are {', '.join(_SETTINGS)}")
            turn.params(), turn.toolbox()
        except (ValueError, TypeError, AttributeError, RequestError) as error:
            raise BadFileError(
                f"{path} is not a recorded turn", why=str(error), fix="give a file that --record wrote"
            ) from error
        return turn

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, msgspec.to_builtins(self))

    def params(self) -> SamplingParams:
        """How the answer was sampled. RequestError for values that can't be."""
        return SamplingParams(**self.settings)  # type: ignore[arg-type]

    def toolbox(self) -> Toolbox:
        """The tools that were on offer; none of them can be run."""
        return Toolbox(
            Tool(tool.name, tool.description, tool.parameters, _never, ends_turn=tool.ends_turn)
            for tool in self.tools
        )

    def check(self, answer: str) -> None:
        """RequestError when another answer came out than the one that was recorded."""
        if answer != self.answer:
            raise RequestError(
                "the replayed answer is another one",
                why=f"recorded was {self.answer[:80]!r}, now it is {answer[:80]!r}",
                fix="use the same model and the same options of the engine, or read it as what has changed",
            )


def _never(arguments: dict[str, Any]) -> str:
    raise AssertionError("a replayed tool isn't run")
