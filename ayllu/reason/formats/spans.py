"""Spans of a foreign conversation: read from a template's rendering, or from what a model samples.

Both go through the same machine. A rendering knows who wrote each character, so that marks count only
where the template wrote them; a token that holds the end of one thing and the beginning of another stays
with the former.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ayllu.reason.formats.form import Format
from ayllu.reason.formats.reading import Machine, Piece, joined
from ayllu.reason.transcript import Heard, Kind, Span
from ayllu.text.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from ayllu.reason.template import Run


@dataclass(frozen=True)
class ReadSpan(Span):
    """A span with what was read in it: text without marks, whether its end was read, a CALL's calls."""

    text: str = ""
    whole: bool = False
    calls: tuple[Heard, ...] = ()


def read_rendering(
    form: Format, tokenizer: Tokenizer, ends: frozenset[int], runs: Sequence[Run], *, first: bool
) -> tuple[list[Piece], bool]:
    """The pieces of a rendered stretch, and whether it ends in a thought. `first`: it begins the whole."""
    control = frozenset(name for name in form.marks if name in tokenizer.control)
    machine = Machine(form, control, kind=form.begins if first else None, sampled=False)
    at = 0
    for run in runs:
        if run.name in control:
            machine.control(run.name, at)
        elif run.name and run.ids[0] in ends:
            machine.end(at)
        elif not run.name:
            for text, place, free in _written(tokenizer, run):
                machine.text(text, at + place, free=free)
        at += len(run.ids)
    thinks = machine.kind == Kind.THINK
    pieces = machine.finish(ended=False, tokens=at)
    if thinks and pieces and pieces[-1].kind == Kind.THINK and not pieces[-1].text:
        pieces.pop()
    return pieces, thinks


def _written(tokenizer: Tokenizer, run: Run) -> Iterable[tuple[str, int, bool]]:
    """A run's text token by token, cut where a person's text begins or ends: (text, token, free)."""
    decoder = StreamDecoder(tokenizer, continues=True)
    shown = [decoder.push(i) for i in run.ids]
    if not shown:
        return
    shown[-1] += decoder.flush()
    whole = "".join(shown)
    # SentencePiece may put a space in front; where the tokenizer changes more, nothing counts as free.
    space = 1 if whole == " " + run.text else 0
    known = whole[space:] == run.text
    at = -space
    for place, text in enumerate(shown):
        cut = 0
        for end in range(1, len(text) + 1):
            here = _typed(run, at + cut) if known else True
            if end == len(text) or (known and _typed(run, at + end) != here):
                yield text[cut:end], place, not here
                cut = end
        at += len(text)


def _typed(run: Run, at: int) -> bool:
    return at >= 0 and bool(run.typed[at])


class TurnReader:
    """Sampled ids in, text by kind out, as it becomes readable; calls when they are whole.

    `said` are the places of the tokens whose text is part of an answer, `thinking` counts those of thoughts.
    """

    def __init__(
        self, machine: Machine, decoder: StreamDecoder, names: dict[int, str], ends: frozenset[int]
    ) -> None:
        self.machine, self.decoder, self.names, self.ends = machine, decoder, names, ends
        self.at = 0
        self.pieces: list[Piece] = []

    @property
    def said(self) -> list[int]:
        """Places of the answer's tokens so far."""
        return self.machine.said

    @property
    def thinking(self) -> int:
        """Tokens of thoughts so far, their marks included."""
        pieces = self.machine.pieces  # as in `spans_of`, the first reaches back to the beginning
        borders = [0, *(min(piece.at, self.at) for piece in pieces[1:]), self.at]
        pairs = zip(pieces, borders, borders[1:], strict=False)
        return sum(end - begin for piece, begin, end in pairs if piece.kind == Kind.THINK)

    def read(self, ids: Sequence[int], *, last: bool) -> list[tuple[str, str]]:
        """(kind, text) of what the ids not seen before made readable; `last` ends the turn."""
        machine = self.machine
        for place in range(self.at, len(ids)):
            token = ids[place]
            name = self.names.get(token)
            if name is None and token not in self.ends:
                if self.decoder.tokenizer.piece_bytes(token):
                    machine.text(self.decoder.push(token), place)
                continue
            self._flush(place)
            if name is not None:
                machine.control(name, place)
            else:
                machine.end(place)
        self.at = len(ids)
        if last:
            self._flush(len(ids))
            self.pieces = machine.finish(ended=bool(self.ends & set(ids[-1:])), tokens=len(ids))
        news, machine.news = joined(machine.news), []
        return [(kind.value, text) for kind, text in news]

    def _flush(self, place: int) -> None:
        """What is left of a character that never became whole."""
        if text := self.decoder.flush():
            self.machine.text(text, place - 1)


def spans_of(pieces: Sequence[Piece], ids: Sequence[int], usual: Kind, *, sampled: bool) -> list[ReadSpan]:
    """Pieces with their ids: each reaches to the next one, the first from the beginning."""
    if not ids:
        return []
    found = list(pieces) or [Piece(usual, 0, whole=not sampled)]
    borders = [0, *(min(piece.at, len(ids)) for piece in found[1:]), len(ids)]
    return [
        ReadSpan(piece.kind, tuple(ids[begin:end]), sampled, piece.text, piece.whole, piece.calls)
        for piece, begin, end in zip(found, borders, borders[1:], strict=False)
    ]
