"""Programs that a model wrote, judged by their tests. They run in the sandbox and nowhere else.

As in HumanEval (Chen et al. 2021) a sample is right when the function and its tests run to their end. A
program that leaves before the tests could pass for one that passed them, so a word that it can't know is
printed behind the tests, and only a run that printed it counts.

Strict: the function goes on where the prompt ended (a model that continues texts), or the answer is code
and nothing else. Lenient: a block of code is looked for in what was said, and the prompt is put before it
where it lacks the function's head. What the prompt has above that head (imports, functions to be called)
stands before either: whoever is asked for the function needn't write it again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ayllu import machine
from ayllu.evals.answers import NOTHING, Judged
from ayllu.evals.items import Program
from ayllu.evals.subject import Said
from ayllu.tools.sandbox import Limits, Sandbox

LIMITS = Limits(seconds=10.0, cpu_seconds=5.0)
_BLOCK = re.compile(r"```[a-zA-Z0-9]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def programs_of(item: Program, text: str, continues: bool) -> tuple[str | None, str]:
    """The strict program (None: not in the asked form) and the lenient one."""
    blocks = _BLOCK.findall(text)
    code = blocks[0] if blocks else text
    whole = _head(item, code) is not None
    loose = _above(item, code) + code if whole else f"{item.text.rstrip()}\n{_indented(code)}"
    if continues:
        return item.text + text, loose if blocks or whole else item.text + text
    alone = _BLOCK.sub("", text).strip() == "" if blocks else True
    return (loose if alone and whole else None), loose


def _head(item: Program, code: str) -> re.Match[str] | None:
    return re.search(rf"^def {re.escape(item.entry)}\s*\(", code, re.MULTILINE)


def _above(item: Program, code: str) -> str:
    """What stands above the function's head in the prompt, unless `code` brings that itself."""
    head = _head(item, item.text)
    above = item.text[: head.start()] if head else ""
    return "" if above.strip() in code or "from __future__" in code else above


def _indented(code: str) -> str:
    """A function's body as it stands in the function."""
    first = next((line for line in code.splitlines() if line.strip()), "")
    if first.startswith((" ", "\t")):
        return code
    return "\n".join(f"    {line}" if line.strip() else line for line in code.splitlines())


def passes(sandbox: Sandbox, item: Program, program: str) -> bool:
    """Whether the tests run to their end. RefusedError where the sandbox doesn't stand."""
    word = secrets.token_hex(16)
    whole = f"{program}\n\n{item.tests}\n\ncheck({item.entry})\nprint('\\n{word}')\n"
    outcome = sandbox.run(whole)
    return outcome.ok and outcome.stdout.rstrip().endswith(word)


def judge_programs(
    items: Sequence[Program],
    said: Sequence[Sequence[Said]],
    continues: bool,
    on_item: Callable[[int], None],
) -> list[list[Judged]]:
    """Verdicts on all samples; equal programs run once. RefusedError on a machine without walls."""
    with Sandbox(limits=LIMITS) as sandbox, ThreadPoolExecutor(machine.physical_cores()) as pool:
        judged: list[list[Judged]] = []
        for start in range(0, len(items), 32):
            rows = [
                [None if one.text is None else programs_of(item, one.text, continues) for one in row]
                for item, row in zip(items[start : start + 32], said[start : start + 32], strict=True)
            ]
            runs = {
                (i, program): pool.submit(passes, sandbox, items[start + i], program)
                for i, row in enumerate(rows)
                for pair in row
                for program in (pair or ())
                if program is not None
            }
            passed = {key: run.result() for key, run in runs.items()}
            judged += [[_verdict(i, pair, passed) for pair in row] for i, row in enumerate(rows)]
            on_item(len(judged))
    return judged


def _verdict(row: int, pair: tuple[str | None, str] | None, passed: dict[tuple[int, str], bool]) -> Judged:
    if pair is None:
        return NOTHING
    strict = pair[0] is not None and passed[row, pair[0]]
    return Judged(strict, strict or passed[row, pair[1]])
