"""Accuracy against thinking tokens: the same problems under several budgets. `python bench/thinking.py MODEL`

Each budget is a bound that the engine holds (engine/budget.py): at the bound the thinking is ended and the
model must answer with what it has. With --told the system turn says the number as well, as practice with
`sft.budgets` teaches it. For each family and budget: strict accuracy with its 95 % Wilson interval and the
mean of the tokens thought. The problems are the same under all budgets, so that pairs of budgets are compared
by the problems on which they differ (McNemar's exact test at 5 % over all pairs, after Bonferroni). A curve
counts as rising when the largest budget is better than the smallest and none is worse than a smaller one. A
turn with calls may think on after each result, within what is left of its budget; the two tokens that mark a
thought are thought beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams, ThinkingBudget
from ayllu.errors import AylluError, RequestError
from ayllu.evals.metrics import mcnemar
from ayllu.evals.runner import score
from ayllu.reason.practice import EXAMS, budget_words, check_families, toolbox_for
from ayllu.reason.rollout import answer_problems
from ayllu.reason.task import Task, hardest
from ayllu.reason.transcript import Chat
from ayllu.stages import use_threads
from ayllu.text.tokenizer import Tokenizer


def measure(
    engine: Engine, chat: Chat, task: Task, budget: int, *, n: int, told: bool, max_tokens: int, seed: int
) -> dict[str, Any]:
    """One point of the curve."""
    control = chat.tokenizer.control
    thinking = ThinkingBudget(control["<|think|>"], control["<|/think|>"], maximum=budget)
    problems = hardest(task, n, seed)
    system = budget_words(budget) if told else ""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=seed, thinking=thinking)
    with toolbox_for([task.family]) as box:
        answers = answer_problems(engine, chat, problems, box, params, system=system, constrain=True)
    found = score(chat, task, problems, answers)
    return {"budget": budget, **found.to_dict(), "rights": list(found.rights)}


def rises(points: Sequence[Sequence[bool]]) -> bool:
    """Whether the largest budget is better than the smallest, and none worse than a smaller one, by the
    verdicts on the same problems."""
    pairs = list(itertools.combinations(points, 2))

    def better(one: Sequence[bool], other: Sequence[bool]) -> bool:
        gained = sum(a and not b for a, b in zip(one, other, strict=True))
        lost = sum(b and not a for a, b in zip(one, other, strict=True))
        return gained > lost and mcnemar(gained, lost) < 0.05 / len(pairs)

    falls = any(better(smaller, larger) for smaller, larger in pairs)
    return bool(pairs) and better(points[-1], points[0]) and not falls


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--families", nargs="+", default=["arithmetic", "countdown3"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[0, 16, 32, 64, 128, 256])
    parser.add_argument("--n", type=int, default=500, help="problems of a family (default 500)")
    parser.add_argument("--told", action="store_true", help="say the budget in the system turn")
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    try:
        check_families(wish.families, "--families", EXAMS)
        use_threads(wish.threads)
        print_curves(wish)
    except AylluError as error:
        sys.exit(f"thinking.py: {error}")


def print_curves(wish: argparse.Namespace) -> None:
    """Measure all curves and print them."""
    curves: dict[str, Any] = {}
    with Engine(wish.model) as engine:
        tokenizer = Tokenizer.load(wish.model)
        if not tokenizer.native:
            raise RequestError(
                f"{wish.model} doesn't think in our form", fix="ayllu eval --thinking-budget does it"
            )
        chat = Chat(tokenizer)
        for family in wish.families:
            options = {"n": wish.n, "told": wish.told, "max_tokens": wish.max_tokens, "seed": wish.seed}
            points = [measure(engine, chat, EXAMS[family], b, **options) for b in sorted(wish.budgets)]
            curves[family] = {"points": points, "rises": rises([point["rights"] for point in points])}
            if wish.json:
                continue
            print(f"{family}: {'rises' if curves[family]['rises'] else 'does NOT rise'}")
            for p in points:
                interval = f"[{100 * p['low']:.1f}, {100 * p['high']:.1f}]"
                print(
                    f"  at most {p['budget']:>4}: {p['mean_thinking_tokens']:6.1f} tokens thought, "
                    f"{100 * p['accuracy']:5.1f} % {interval} of {p['n']}"
                )
    if wish.json:
        print(json.dumps({"model": str(wish.model), "told": wish.told, "curves": curves}))


if __name__ == "__main__":
    main()
