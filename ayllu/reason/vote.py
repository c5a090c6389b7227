"""Self-consistency: ask several times, take the answer that comes most often (maj@k).

Wang et al. 2022 (arXiv 2203.11171): wrong ways of thinking end in many places, right ones in one. Answers are
compared in a canonical form, so that `1,250`, `1250.0` and `1250.` are one vote. Answers that were cut
off, and empty ones, have no vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation

from ayllu.engine.request import SamplingParams
from ayllu.reason.loop import Answer, Generator, answer_batch
from ayllu.reason.transcript import Chat, Transcript
from ayllu.tools.session import Rules
from ayllu.tools.tool import Toolbox

_MOST_DIGITS = 1000  # spelt out: 1e999999999 would take a gigabyte


def canonical(text: str) -> str:
    """A final answer in the form in which answers are compared.

    Numbers lose thousands' commas, a leading plus, trailing zeros and points, a currency sign or a
    percent sign; other texts lose their spaces at the ends, their last full stop and their case.
    """
    plain = text.strip().removesuffix(".").strip()
    digits = plain.strip("$€₹% ").replace(",", "") if _grouped(plain) else plain.strip("$€₹% ")
    try:
        value = Decimal(digits)
    except InvalidOperation:
        return plain.casefold()
    if not value.is_finite() or abs(value.adjusted()) > _MOST_DIGITS:
        return plain.casefold()
    if not value:
        return "0"
    return format(value, "f").rstrip("0").rstrip(".") if "." in format(value, "f") else format(value, "f")


def _grouped(text: str) -> bool:
    """Whether the commas of a number part its thousands (1,250 but not 1,25)."""
    head, *rest = text.strip("$€₹% +-").split(".")[0].split(",")
    return bool(rest) and 1 <= len(head) <= 3 and all(len(part) == 3 and part.isdigit() for part in rest)


def winner(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> int | None:
    """The place of the first answer of those that most agree on (by count, or by summed weight); of
    equally many the first to come. None when nobody has answered."""
    sums: dict[str, float] = {}
    first: dict[str, int] = {}
    for place, (text, weight) in enumerate(
        zip(answers, weights or [1.0] * len(answers), strict=True),
    ):
        if text is None or not text.strip():
            continue
        key = canonical(text)
        first.setdefault(key, place)
        sums[key] = sums.get(key, 0.0) + weight
    return first[max(sums, key=lambda key: (sums[key], -first[key]))] if sums else None


def agreeing(
    texts: Sequence[str | None], scores: Sequence[float] | None = None, *, best: bool = False
) -> tuple[int | None, int]:
    """The place of the chosen answer (None: nobody has answered) and how many agree with it.

    Chosen by count, or by the sum of `scores`, or with `best` by the highest single score."""
    given = [place for place, text in enumerate(texts) if text is not None and text.strip()]
    if best and given:
        assert scores is not None
        place: int | None = max(given, key=lambda n: (scores[n], -n))
    else:
        place = winner(texts, scores)
    if place is None:
        return None, 0
    wanted = canonical(texts[place] or "")
    return place, sum(text is not None and canonical(text) == wanted for text in texts)


def several(
    engine: Generator,
    chat: Chat,
    transcript: Transcript,
    toolbox: Toolbox,
    params: SamplingParams,
    k: int,
    *,
    rules: Rules | None = None,
    constrain: bool = False,
) -> list[Answer]:
    """k answers to one question; `rules` and `constrain` as `answer_batch` has them."""
    assert k > 0
    one = replace(params, n=1, best_of=None)
    return answer_batch(engine, chat, [transcript] * k, toolbox, one, rules=rules, constrain=constrain)
