"""Which of the tools on offer serves a request, or none.

Tools must be taught, not hoped for, and so must leaving them alone: half of what people say needs none.
The conversation offers a few tools; the request comes after a fixed question, and the answer is one
name. When the right tool isn't on offer the right answer is `none`, however near another one seems. The
phrasings stand in `phrases/requests.toml`.
`test` has requests (numbers and words filled in) that practice never shows, whatever is on offer, and of
those that have nothing to fill in ("Tell me a joke.") choices of tools that practice never shows;
`templates` has phrasings that practice never meets.
"""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import TEMPLATES, Piece, Problem, Task, Verdict, held_out, split_of
from ayllu.reason.transcript import Kind

NONE = "none"
HELD = 0.15  # share of phrasings that only `templates` has
OFFERED = ((2, 3), (3, 5), (4, 8))  # tools on offer, by level, as far as there are so many
MISSING = 0.2  # chance that the tool that would serve isn't among them
PROGRAMMABLE = ("calculator", "clock")  # a program can do sums as well, and tell the time
QUESTIONS = (
    "Which tool? {request}",
    "Which tool serves this: {request}",
    "Welches Werkzeug? {request}",
    "ఏ సాధనం? {request}",
)


@functools.cache
def requests() -> dict[str, Any]:
    """The file's two tables."""
    text = (Path(__file__).parent / "phrases" / "requests.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@functools.cache
def phrasings(tool: str, templates: bool) -> tuple[str, ...]:
    """A tool's phrasings that are held out, or those that aren't."""
    return tuple(p for p in requests()["tools"][tool] if held_out(f"request {p}", HELD) == templates)


class ToolChoice(Task):
    """Levels 1 to 3: two or three, three to five, four to eight tools on offer."""

    family = "tool_choice"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """A request and the tools on offer. The split goes by the request, its slots filled."""
        tools = [name for name in requests()["tools"] if name != NONE]
        while True:
            wanted = NONE if rng.integers(3) == 0 else tools[rng.integers(len(tools))]
            pool = phrasings(wanted, split == TEMPLATES)
            if not pool:
                continue
            offered = _on_offer(rng, [tool for tool in tools if tool != wanted], wanted, level)
            phrasing = pool[rng.integers(len(pool))]
            request = _filled(rng, phrasing)
            key = f"choice {request} | {' '.join(sorted(offered))}"
            # By the request alone, a phrasing without slots would be new as a whole in `test`.
            if split == TEMPLATES or split_of(f"choice {request}" if "{" in phrasing else key) == split:
                break
        answer = wanted if wanted in offered else NONE
        prompt = QUESTIONS[rng.integers(len(QUESTIONS))].format(request=request)
        return Problem(
            self.family, level, key, prompt, answer, {"wanted": wanted, "request": request}, tuple(offered)
        )

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The name of what would serve; then what is on offer, one after the other, up to that name; the
        answer. To say at a glance whether it is there wasn't learnt (lab log, 2026-11-29)."""
        wanted, thought = problem.data["wanted"], problem.data["wanted"]
        if wanted != NONE:
            there = wanted in problem.tools
            seen = problem.tools[: problem.tools.index(wanted) + 1] if there else problem.tools
            thought = f"{wanted}: {', '.join(seen)}: {'yes' if there else 'no'}"
        return [Piece(Kind.THINK, thought), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the name and nothing else. Lenient: the only name of a tool in the answer."""
        if answer is None:
            return Verdict(False, False, "no answer")
        if answer.strip() == problem.answer:
            return Verdict(True, True)
        named = set(re.findall(r"[a-z_]+", answer.lower())) & set(requests()["tools"])
        return Verdict(False, named == {problem.answer}, f"{answer!r} is not {problem.answer}")


def _on_offer(rng: Generator, others: list[str], wanted: str, level: int) -> list[str]:
    """Tools in any order; the one that is wanted among them, but for MISSING of the time. Where that is one
    of PROGRAMMABLE, python is missing, too, or `none` would be wrong."""
    low, high = OFFERED[level - 1]
    count = int(rng.integers(low, high + 1))
    there = wanted != NONE and rng.random() >= MISSING
    if wanted in PROGRAMMABLE and not there:
        others = [tool for tool in others if tool != "python"]
    offered = [others[i] for i in rng.permutation(len(others))[: count - there]]
    if there:
        offered.insert(int(rng.integers(len(offered) + 1)), wanted)
    return offered


def _filled(rng: Generator, phrasing: str) -> str:
    slots: dict[str, Any] = {
        name: words[rng.integers(len(words))] for name, words in requests()["slots"].items()
    }
    slots |= {"x": int(rng.integers(1000, 100_000)), "y": int(rng.integers(2, 100))}
    slots |= {"small": int(rng.integers(1, 10)), "small2": int(rng.integers(1, 10))}
    return phrasing.format(**slots)
