"""From what a model said to scores with their uncertainty.

* choices: the way with the highest score by one of four rules; ties go to the first
* answers and programs: strict and lenient; of several samples the mean over them (pass@1), pass@k without
  bias, and the answer that most samples give (maj@k)
* texts: bits per byte

Intervals are Wilson's over the rows, which are what was drawn, also where a row's value lies between right
and wrong (several samples, probabilities): for those it is a little too wide and never too narrow. Bits per
byte have that of a ratio, +- 1.96 standard errors over the texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ayllu.evals.answers import NOTHING, Judged
from ayllu.evals.items import Choice
from ayllu.evals.metrics import Z_95, majority, pass_at_k, wilson
from ayllu.evals.subject import Said, Way

SAMPLES = 4  # rows kept as text
MAX_SHOWN = 4000  # characters of one of them


def _sum(nats: Sequence[float] | None) -> float:
    return math.fsum(nats or ())


# How ways to go on are compared: as a whole, per token, per character (LLaMA's rule, and the acc_norm of
# lm-eval), and against "Answer:" as the context.
RULES: dict[str, Callable[[Way], float]] = {
    "raw": lambda way: _sum(way.nats),
    "token": lambda way: _sum(way.nats) / len(way.nats),
    "character": lambda way: _sum(way.nats) / way.characters,
    "answer": lambda way: _sum(way.nats) - _sum(way.alone),
}


def share(rights: Sequence[bool]) -> dict[str, Any]:
    """n, correct, score and its Wilson interval."""
    n, correct = len(rights), sum(rights)
    low, high = wilson(correct, n)
    return {"n": n, "correct": correct, "score": correct / n if n else 0.0, "low": low, "high": high}


def mean(values: Sequence[float]) -> dict[str, Any]:
    """n, score and its interval, of values from 0 to 1."""
    n, total = len(values), min(math.fsum(values), len(values))
    low, high = wilson(total, n)
    return {"n": n, "score": total / n if n else 0.0, "low": low, "high": high}


# ---- choices
def best_way(ways: Sequence[Way], rule: str) -> int:
    """The place of the way that a rule prefers; the first of equals."""
    return max(range(len(ways)), key=lambda i: RULES[rule](ways[i]))


def mass_of(ways: Sequence[Way], gold: Sequence[int]) -> float:
    """The share of probability that the right ways have among all."""
    nats = [RULES["raw"](way) for way in ways]
    top = max(nats)
    weights = [math.exp(n - top) for n in nats]
    return math.fsum(weights[i] for i in gold) / math.fsum(weights)


def score_choices(
    items: Sequence[Choice],
    ways: Sequence[list[Way] | None],
    headline: str,
    *,
    letters: bool = False,
    mass: bool = False,
) -> dict[str, Any]:
    """Rows that didn't fit count as wrong. `chance`: what a choice by lot is expected to get. `letters`: ways
    are letters, to which one rule applies."""
    too_long = sum(each is None for each in ways)
    rules = ("raw",) if letters else tuple(RULES)
    headline = "raw" if letters else headline
    rights = {
        rule: [
            each is not None and best_way(each, rule) in item.gold
            for item, each in zip(items, ways, strict=True)
        ]
        for rule in rules
    }
    found: dict[str, Any] = share(rights[headline])
    if mass:
        masses = [
            0.0 if each is None else mass_of(each, item.gold) for item, each in zip(items, ways, strict=True)
        ]
        found = mean(masses)
    found["chance"] = _chance(items)
    found["rule"] = "share of probability" if mass else headline
    found["by_rule"] = {rule: sum(right) / len(items) if items else 0.0 for rule, right in rights.items()}
    found["too_long"] = too_long
    found["asked_as"] = "letters" if letters else "continuations"
    found["samples"] = [
        {
            "place": items[i].place,
            "prompt": (items[i].question if letters else items[i].pairs[0][0])[-MAX_SHOWN:],
            "wanted": [items[i].options[g] for g in items[i].gold],
            "said": None if ways[i] is None else items[i].options[best_way(ways[i] or (), headline)],
            "correct": rights[headline][i],
        }
        for i in _shown(rights[headline])
    ]
    return found


def _chance(items: Sequence[Choice]) -> float:
    return math.fsum(len(item.gold) / len(item.pairs) for item in items) / max(len(items), 1)


# ---- answers and programs
def score_said(
    places: Sequence[str],
    prompts: Sequence[str],
    wanted: Sequence[str],
    said: Sequence[Sequence[Said]],
    judged: Sequence[Sequence[Judged]],
) -> dict[str, Any]:
    """Rows in order, each with all its samples and their verdicts."""
    k = len(said[0]) if said else 1
    strict = [[one.strict for one in row] for row in judged]
    lenient = [[one.lenient for one in row] for row in judged]
    found: dict[str, Any] = _several(strict)
    found["lenient"] = _several(lenient)
    if k > 1:
        found["samples_each"] = k
        ks = sorted({2**i for i in range(k.bit_length()) if 2**i <= k} | {k})
        counts = [sum(row) for row in strict]
        found["pass_at"] = {str(j): mean([pass_at_k(k, c, j) for c in counts]) for j in ks}
        if any(one.value is not None for row in judged for one in row):
            votes = [_voted(row) for row in judged]
            found["majority"] = {
                "k": k,
                **share([vote.strict for vote in votes]),
                "lenient": share([vote.lenient for vote in votes]),
            }
    if any(one.f1 is not None for row in judged for one in row):
        found["f1"] = mean([math.fsum(one.f1 or 0.0 for one in row) / k for row in judged])
    every = [one for row in said for one in row]
    found |= {
        "too_long": sum(row[0].finish == "too_long" for row in said),
        "truncated": sum(one.finish == "length" for one in every),
        "tokens": sum(one.tokens for one in every),
        "mean_tokens": sum(one.tokens for one in every) / max(len(every), 1),
        "mean_thinking_tokens": sum(one.thinking_tokens for one in every) / max(len(every), 1),
        "calls": sum(one.calls for one in every),
        "valid_calls": sum(one.valid_calls for one in every),
    }
    firsts = [row[0] for row in strict]
    found["samples"] = [
        {
            "place": places[i],
            "prompt": prompts[i][-MAX_SHOWN:],
            "wanted": wanted[i][:MAX_SHOWN],
            "said": (said[i][0].text or "")[:MAX_SHOWN],
            "finish": said[i][0].finish,
            "correct": firsts[i],
        }
        for i in _shown(firsts)
    ]
    return found


def _several(rights: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """One sample each: a share. Several: the mean of the rows' shares; `correct` counts all of them."""
    if all(len(row) == 1 for row in rights):
        return share([row[0] for row in rights])
    return {**mean([sum(row) / len(row) for row in rights]), "correct": sum(map(sum, rights))}


def _voted(row: Sequence[Judged]) -> Judged:
    """The verdict on the answer that most samples give: strict when one of those was in the asked form."""
    winner = majority([one.value for one in row])
    if winner is None:
        return NOTHING
    those = [one for one in row if one.value == winner]
    return Judged(any(one.strict for one in those), any(one.lenient for one in those), str(winner))


def _shown(rights: Sequence[bool]) -> list[int]:
    """The first right ones and the first wrong ones, half and half as far as there are both."""
    wrong = [i for i, right in enumerate(rights) if not right]
    good = [i for i, right in enumerate(rights) if right]
    take = min(len(good), max(SAMPLES // 2, SAMPLES - len(wrong)))
    return sorted(good[:take] + wrong[: SAMPLES - take])


# ---- texts
def score_texts(nats: Sequence[float], texts: Sequence[str]) -> dict[str, Any]:
    """Bits per byte of all texts together, with the interval of a ratio over texts (None for one text)."""
    sizes = [len(text.encode()) for text in texts]
    total = sum(sizes)
    bits = [n / math.log(2) for n in nats]
    ratio = math.fsum(bits) / total
    found: dict[str, Any] = {"n": len(texts), "bytes": total, "score": ratio, "unit": "bits per byte"}
    found |= {"low": None, "high": None}
    if len(texts) > 1:
        n = len(texts)
        spread = math.fsum((b - ratio * size) ** 2 for b, size in zip(bits, sizes, strict=True))
        half = Z_95 * math.sqrt(n / (n - 1) * spread) / total
        found |= {"low": max(0.0, ratio - half), "high": ratio + half}
    return found
