"""A turn in a file: what was asked, how it was sampled, which tools were on offer, what each call gave.

From it the turn can be answered again without running any tool, to see what a model did and whether it still
does: the same model, seed and settings give the same conversation (`Session`, ayllu/tools/session.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ayllu.engine.request import SamplingParams
from ayllu.errors import BadFileError, InputNotFoundError, RequestError
from ayllu.files import read_json, write_json
from ayllu.reason.loop import Answer
from ayllu.reason.transcript import Transcript
from ayllu.tools.session import Record
from ayllu.tools.tool import Tool, Toolbox

VERSION = 1
_LIMIT = 64 << 20  # bytes of a file
_SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed")


class Offered(msgspec.Struct, forbid_unknown_fields=True):
    """A tool as the model saw it."""

    name: str
    description: str
    parameters: dict[str, Any]


class RecordedEngine(msgspec.Struct, forbid_unknown_fields=True):
    """How the engine ran, as the command line says it (ayllu/serve/options.py)."""

    weights: str
    cache: str
    speculate: str | None
    device: str


class RecordedTurn(msgspec.Struct, forbid_unknown_fields=True):
    """One turn. `settings`: fields of SamplingParams; `thinking_budget`: tokens, None for no bound;
    `prompt_hash`: of the token ids that the model read (they may change with the day, where a chat format
    says the date)."""

    version: int
    prompt: str
    prompt_hash: str
    answer: str
    finish_reason: str
    tokens: int
    settings: dict[str, float | int | None]
    thinking_budget: int | None
    engine: RecordedEngine
    tools: list[Offered]
    calls: list[Record]

    @classmethod
    def of(
        cls,
        prompt: str,
        said: str,
        begun: Transcript,
        answer: Answer,
        *,
        params: SamplingParams,
        budget: int | None,
        toolbox: Toolbox,
        engine: RecordedEngine,
    ) -> RecordedTurn:
        """A turn that has just been answered: `begun` with `answer`, which told the user `said`."""
        return cls(
            version=VERSION,
            prompt=prompt,
            prompt_hash=_hash(begun.ids()),
            answer=said,
            finish_reason=answer.finish_reason,
            tokens=answer.tokens,
            settings={name: getattr(params, name) for name in _SETTINGS},
            thinking_budget=budget,
            engine=engine,
            tools=[Offered(tool.name, tool.description, tool.parameters) for tool in toolbox.tools],
            calls=list(answer.records),
        )

    @classmethod
    def read(cls, path: Path) -> RecordedTurn:
        """InputNotFoundError, or BadFileError for anything but such a file."""
        if not path.exists():
            raise InputNotFoundError(f"{path} doesn't exist", fix="give a file that --record wrote")
        try:
            values = read_json(path, limit=_LIMIT)
            json.dumps(values, ensure_ascii=False).encode()  # half a character is no text
            turn = msgspec.convert(values, cls)
            if turn.version != VERSION:
                raise ValueError(f"its version is {turn.version}, and {VERSION} is read here")
            if turn.settings.keys() != set(_SETTINGS):
                raise ValueError(f"settings are {', '.join(_SETTINGS)}")
            turn.params(), turn.toolbox()
        except (OSError, ValueError, TypeError, AttributeError, RequestError) as error:
            raise BadFileError(
                f"{path} is not a recorded turn", why=str(error), fix="give a file that --record wrote"
            ) from error
        return turn

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all, for its owner's eyes: it has what was asked and what tools
        gave."""
        write_json(path, msgspec.to_builtins(self), 0o600)

    def params(self) -> SamplingParams:
        """How the answer was sampled. RequestError for values that can't be."""
        return SamplingParams(**self.settings)  # type: ignore[arg-type]

    def toolbox(self) -> Toolbox:
        """The tools that were on offer; none of them can be run."""
        return Toolbox(Tool(tool.name, tool.description, tool.parameters, _never) for tool in self.tools)

    def check_prompt(self, ids: Sequence[int]) -> None:
        """RequestError when these aren't the token ids that the model read."""
        if _hash(ids) != self.prompt_hash:
            raise _otherwise(
                "the model read another prompt",
                "its tokenizer or its chat format is another, or the format says today's date",
            )

    def check(self, now: RecordedTurn) -> None:
        """RequestError, saying what, when a turn came out otherwise than this one."""
        if now.calls != self.calls:
            raise _otherwise("other calls were made", f"{len(self.calls)} then, {len(now.calls)} now")
        if now.answer != self.answer:
            raise _otherwise("the answer is another one", _difference(self.answer, now.answer))
        if (now.finish_reason, now.tokens) != (self.finish_reason, self.tokens):
            then = f"{self.tokens} tokens, ended by {self.finish_reason}"
            raise _otherwise("other tokens were sampled", f"{then}; now {now.tokens}, {now.finish_reason}")


def _hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def _difference(then: str, now: str) -> str:
    """The two texts from shortly before where they part."""
    at = next(
        (i for i, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now))
    )
    start = max(0, at - 20)
    return f"from character {start} on {then[start : at + 60]!r} then, {now[start : at + 60]!r} now"


def _otherwise(what: str, why: str) -> RequestError:
    fix = "give the model that it was recorded with, or take it as what has changed"
    return RequestError(f"the replayed turn came out otherwise: {what}", why=why, fix=fix)


def _never(arguments: dict[str, Any]) -> str:
    raise AssertionError("a replayed tool isn't run")
