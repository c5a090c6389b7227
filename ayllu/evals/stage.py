"""The eval stage of a run: the model before and after RL on the same held-out problems.

Both models meet the same problems, so that the gain is a paired comparison (McNemar): the problems
on which they differ decide, not the luck of two draws. Every finished evaluation is kept on disk at
once; a killed stage goes on with the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ayllu.errors import BadFileError, ModelFileMissingError
from ayllu.files import append_line, make_folder, read_json, sha256_file, sha256_json, write_json
from ayllu.stage import StageContext, bounded, free

if TYPE_CHECKING:  # torch and numpy are imported when the stage runs, not when a recipe is read
    from ayllu.engine.engine import Engine
    from ayllu.evals.runner import EvalResult
    from ayllu.reason.task import Problem, Task

CODE_VERSION = 5  # 5: an answer is all that was said; no calls where no tool may be called
MODELS = ("sft", "rl")
FAMILIES = ("arithmetic", "calculator", "countdown3", "dialogue")


class Given(Protocol):
    """What is needed to know of the settings of practice."""

    @property
    def gsm8k(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class EvalSettings:
    """What is measured, and on how many problems."""

    n: int = bounded(1000, 10, 100_000, "problems of a family (fewer where the held-out split has fewer)")
    families: tuple[str, ...] = free(
        FAMILIES, "families by name, also NAME_templates where one holds templates out"
    )
    max_tokens: int = bounded(256, 8, 65_536, "sampled tokens of an answer, thinking included")
    temperature: float = bounded(0.0, 0.0, 2.0, "0 takes the most probable token every time")
    batch: int = bounded(64, 1, 4096, "answers in the engine at one time")
    max_calls: int = bounded(8, 0, 64, "tool calls of one answer")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for a family that doesn't exist, or whose rows aren't named."""
        from ayllu.reason.practice import check_rows

        _tasks(self.families)
        check_rows(self.families, "eval.families", tables)


def evaluate(context: StageContext, settings: EvalSettings, practice: Given | None = None) -> dict[str, Any]:
    """Evaluate the models of the sft and rl stages (those that the run has) on held-out problems.

    `context.inputs[stage] / "model"` are model folders. The result is
    {family: {"sft": {n, correct, low, high, ...}, "rl": {...}, "gain": {gained, lost, p}}, "samples":
    [{family, when, correct, prompt, wanted, spans}]}. `practice` names the rows that a family may live on.
    Raises RecipeValueError for a family that doesn't exist, ModelFileMissingError for a model
    that isn't there.
    """
    from ayllu.reason.task import hardest

    tasks = _tasks(settings.families)
    if practice is not None:
        from ayllu.reason.practice import read_rows

        read_rows(context.root, practice.gsm8k)
    folders = {model: context.inputs[model] / "model" for model in MODELS if model in context.inputs}
    kept = make_folder(context.folder / "evaluations")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    context.progress.start(len(folders) * len(tasks) * settings.n, "answers")
    drawn: dict[str, list[Problem]] = {}  # for both models the same
    for number, (model, folder) in enumerate(folders.items()):
        print_ = _fingerprint(folder, context, settings)
        paths = {task.family: kept / f"{model}-{task.family}.json" for task in tasks}
        found |= {(model, family): row for family, path in paths.items() if (row := _kept(path, print_))}
        missing = [task for task in tasks if (model, task.family) not in found]
        before = (number * len(tasks) + len(tasks) - len(missing)) * settings.n
        if missing:
            with open_engine(folder, context, settings) as engine:
                for task in missing:
                    if task.family not in drawn:
                        drawn[task.family] = hardest(task, settings.n, context.seed)
                    result = _evaluate(
                        engine, folder, task, drawn[task.family], context, settings, model, before
                    )
                    before += settings.n
                    row = {
                        "fingerprint": print_,
                        "result": result.to_dict(),
                        "rights": list(result.rights),
                        "samples": list(result.samples),
                    }
                    write_json(paths[task.family], row)
                    found[model, task.family] = row
        for task in tasks:
            context.progress.say(_line(task.family, model, found[model, task.family]["result"]))
    results: dict[str, Any] = {}
    for task in tasks:
        rows = {model: found[model, task.family] for model in folders}
        results[task.family] = {model: row["result"] for model, row in rows.items()}
        if len(rows) == len(MODELS):
            results[task.family]["gain"] = gain = _gain(*(rows[model]["rights"] for model in MODELS))
            context.progress.say(
                f"{task.family}: RL gained {gain['gained']}, lost {gain['lost']} (p = {gain['p']:.2g})"
            )
    results["samples"] = [
        {"family": task.family, "when": f"after {model.upper()}", **sample}
        for task in tasks
        for model in folders
        for sample in found[model, task.family]["samples"]
    ]
    return results


def open_engine(
    folder: Path, context: StageContext, settings: EvalSettings
) -> AbstractContextManager[Engine]:
    """The engine for one model folder, as a context manager."""
    from ayllu.engine.engine import Engine

    return Engine(folder, device=context.device, max_sequences=settings.batch)


def _tasks(families: tuple[str, ...]) -> list[Task]:
    from ayllu.reason.practice import EXAMS, check_families

    check_families(families, "eval.families", EXAMS)
    return [EXAMS[family] for family in dict.fromkeys(families)]


def _evaluate(
    engine: Engine,
    folder: Path,
    task: Task,
    problems: list[Problem],
    context: StageContext,
    settings: EvalSettings,
    model: str,
    before: int,
) -> EvalResult:
    from ayllu.engine.engine import SamplingParams
    from ayllu.evals import runner
    from ayllu.reason.practice import toolbox_for
    from ayllu.reason.transcript import Chat
    from ayllu.text.tokenizer import Tokenizer

    with toolbox_for([task.family]) as toolbox:
        result = runner.evaluate(
            engine,
            Chat(Tokenizer.load(folder)),
            task,
            problems,
            params=SamplingParams(
                max_tokens=settings.max_tokens, temperature=settings.temperature, seed=context.seed
            ),
            toolbox=toolbox,
            max_calls=settings.max_calls,
            on_answer=lambda done: context.progress.update(before + done, f"{task.family} after {model}"),
        )
    row = {"stage": "eval", "model": model, "family": task.family, "n": result.n, "correct": result.correct}
    append_line(context.metrics, json.dumps(row | {"low": result.low, "high": result.high}))
    return result


def _fingerprint(folder: Path, context: StageContext, settings: EvalSettings) -> str:
    """What an evaluation depends on: the weights, the tokenizer, the settings, the problems' seed."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")])
    if len(files) < 2:
        raise ModelFileMissingError(
            f"{folder} lacks its weights or its tokenizer", fix="run the stage before again"
        )
    hashes = {file.name: sha256_file(file) for file in files}
    chosen = asdict(settings)
    del (
        chosen["families"],
        chosen["batch"],
    )  # which others are measured, and how many at a time, changes nothing
    return sha256_json([hashes, chosen, context.seed])


def _kept(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """An evaluation made before with the same fingerprint, or None."""
    if not path.is_file():
        return None
    try:
        row = read_json(path)
    except BadFileError:
        return None  # damaged: it is made again
    return row if isinstance(row, dict) and row.get("fingerprint") == fingerprint else None


def _gain(before: list[bool], after: list[bool]) -> dict[str, Any]:
    from ayllu.evals.metrics import mcnemar

    gained = sum(y and not x for x, y in zip(before, after, strict=True))
    lost = sum(x and not y for x, y in zip(before, after, strict=True))
    return {"gained": gained, "lost": lost, "p": mcnemar(gained, lost)}


def _line(family: str, model: str, result: dict[str, Any]) -> str:
    interval = f"{100 * result['low']:.1f} to {100 * result['high']:.1f}"
    calls = f", {result['valid_calls']} of {result['calls']} calls valid" if result["calls"] else ""
    cut = f", {result['truncated']} ran out of tokens" if result["truncated"] else ""
    share = 100 * result["accuracy"]
    return f"{family} after {model}: {share:.1f} % of {result['n']} ({interval}, 95 %){calls}{cut}"
