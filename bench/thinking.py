"""Accuracy against thinking tokens: the same problems under several budgets. `python bench/thinking.py MODEL`

Each budget is a bound that the engine holds (engine/budget.py): at the bound the thinking is ended and the
model must answer with what it has. With --told the system turn says the number as well, as practice with
`sft.budgets` teaches it. For each family and budget: strict accuracy with its 95 % Wilson interval and the
mean of the tokens thought. A curve counts as rising when the largest budget lies above the smallest and
none below a smaller one, by more than the two intervals allow. A turn with calls may think on after each
result, within what is left of its budget; the two tokens that mark a thought are thought beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams, ThinkingBudget
from ayllu.errors import AylluError
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
    return {"budget": budget, **score(chat, task, problems, answers).to_dict()}


def rises(points: list[dict[str, Any]]) -> bool:
    """Whether the largest budget is better than the smallest, and none worse than a smaller one, each by more
    than both intervals."""
    falls = any(b["high"] < a["low"] for i, a in enumerate(points) for b in points[i + 1 :])
    return points[-1]["low"] > points[0]["high"] and not falls


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
        chat = Chat(Tokenizer.load(wish.model))
        for family in wish.families:
            options = {"n": wish.n, "told": wish.told, "max_tokens": wish.max_tokens, "seed": wish.seed}
            points = [measure(engine, chat, EXAMS[family], b, **options) for b in sorted(wish.budgets)]
            curves[family] = {"points": points, "rises": rises(points)}
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
