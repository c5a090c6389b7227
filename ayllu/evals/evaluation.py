"""`ayllu eval`: a model, a list of tasks, and a file of results that grows task by task.

Everything that can be wrong with the words and the files is found before the model is loaded. A result is
kept in `--out` as soon as its task is done, with a fingerprint of what it depends on (the model's files, the
data's files, the settings); called again, an evaluation goes on with what is missing.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ayllu import machine
from ayllu.errors import InputNotFoundError, ModelFileMissingError, RecipeValueError, UsageError
from ayllu.evals.examine import SHOWN, ExamSettings, examine, examine_family
from ayllu.evals.items import Item
from ayllu.evals.official import GROUPS, OFFICIAL, Official, files_of, load, text_task, with_shots
from ayllu.evals.page import line
from ayllu.evals.subject import Subject
from ayllu.files import read_json, sha256_file, sha256_json, write_json
from ayllu.progress import Progress
from ayllu.reason.foreign import Continuation, TemplateChat, chat_of
from ayllu.reason.practice import EXAMS, RESAMPLED, toolbox_for
from ayllu.reason.thinking import bounded, taught
from ayllu.reason.transcript import Transcript
from ayllu.reason.verify import Verifier, check_fits, find_verifier, load_verifier
from ayllu.tools.sandbox import Sandbox

CODE_VERSION = 6  # raised when the same settings would give another result; 6: who converses is told the form
KIND = "ayllu eval"
MAX_SAMPLES = 128
MAX_ROWS = 100_000  # of one task, as in the eval stage of a recipe
_WEIGHTS = (".safetensors", ".gguf", ".pth")
# What else an answer depends on.
_BESIDE = (
    "config.json", "params.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
# The settings that a form of task goes by.
_DRAWN = ("n", "seed")
_ANSWERED = (*_DRAWN, "samples", "temperature", "max_tokens", "thinking_budget")
_USES = {
    "choice": (*_DRAWN, "shots"), "mass": (*_DRAWN, "shots"), "bits": _DRAWN, "program": _ANSWERED,
    "answer": (*_ANSWERED, "shots"),
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A task by its name: an official set with its rows and files, or a family (`official` None)."""

    name: str
    official: Official | None = None
    rows: tuple[Item, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def uses(self) -> tuple[str, ...]:
        """The settings that its result depends on."""
        return _USES[self.official.form if self.official is not None else "answer"]


def task_names() -> dict[str, str]:
    """Every name that --tasks takes, with what it is."""
    named = {task.name: task.title for task in OFFICIAL.values()}
    groups = {name: ", ".join(members) for name, members in GROUPS.items()}
    groups["official"] = "all official sets"
    return {
        **named,
        **groups,
        **dict.fromkeys(EXAMS, "family"),
        "families": "all families",
        "text:PATH": "text",
    }


def find_tasks(names: Sequence[str], data: Path | None, settings: ExamSettings) -> list[Named]:
    """Tasks in the order given, each once, official sets read. UsageError for a name that isn't there,
    InputNotFoundError and BadFileError for data."""
    wanted: dict[str, None] = {}
    for name in names:
        if name == "families":
            given = data is not None and bool(_resampled_files(data))
            wanted |= dict.fromkeys(f for f in EXAMS if RESAMPLED.family not in f or given)
        elif name in GROUPS:
            wanted |= dict.fromkeys(GROUPS[name])
        elif name in OFFICIAL or _is_family(name) or name.startswith("text:"):
            wanted[name] = None
        else:
            raise _no_such_task(name)
    if not wanted:
        raise UsageError("there are no tasks", fix="name some with --tasks, as in: --tasks gsm8k,mmlu")
    return [_named(name, data, settings) for name in wanted]


def _is_family(name: str) -> bool:
    """UsageError for a family of others that isn't one, with their reasons."""
    try:
        return name in EXAMS
    except RecipeValueError as error:
        raise UsageError(error.what, why=error.why, fix=error.fix) from error


def _no_such_task(name: str) -> UsageError:
    known = task_names()
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
    return UsageError(f"there is no task {name!r}", fix=fix)


def _named(name: str, data: Path | None, settings: ExamSettings) -> Named:
    task = text_task(name.removeprefix("text:")) if name.startswith("text:") else OFFICIAL.get(name)
    if task is None:
        if RESAMPLED.family not in name:
            return Named(name)
        folder = _needed(name, data)
        RESAMPLED.read([folder / "gsm8k"])
        return Named(name, files=_resampled_files(folder))
    folder = Path() if task.layout == "file" else _needed(name, data)
    shown = settings.shots if settings.shots is not None else task.shots
    files = tuple(files_of(task, folder, shots=shown))
    rows = load(task, folder)
    if task.form in SHOWN:
        with_shots(task, folder, rows, shown, settings.seed)  # what is wrong with the examples
    return Named(name, task, tuple(rows), files)


def _resampled_files(data: Path) -> tuple[Path, ...]:
    return tuple(sorted((data / "gsm8k").glob("*train*.jsonl*")))


def _needed(name: str, data: Path | None) -> Path:
    if data is None:
        raise InputNotFoundError(
            f"{name} needs its data",
            why="the project ships no test sets",
            fix="name their folder with --data FOLDER; docs/evaluation.md says what lies where",
        )
    if not data.is_dir():
        raise InputNotFoundError(f"there is no folder {data}", fix="name the folder with the test sets")
    return data


def check_settings(settings: ExamSettings) -> None:
    """UsageError for values that make no sense."""
    for name, value, least in (
        ("n", settings.n, 1),
        ("samples", settings.samples, 1),
        ("max-tokens", settings.max_tokens, 1),
        ("shots", settings.shots, 0),
        ("seed", settings.seed, 0),
        ("thinking-budget", settings.thinking_budget, 0),
    ):
        if value is not None and value < least:
            raise UsageError(f"--{name} {value} is not possible", fix=f"give {least} or more")
    for name, value, most in (("n", settings.n, MAX_ROWS), ("samples", settings.samples, MAX_SAMPLES)):
        if value is not None and value > most:
            raise UsageError(f"--{name} {value} is too many", fix=f"give at most {most:,}")
    if settings.temperature is not None and not 0 <= settings.temperature <= 10:
        raise UsageError(f"--temperature {settings.temperature} is not possible", fix="give 0 to 10")
    if settings.samples > 1 and settings.temperature == 0:
        raise UsageError(
            f"--samples {settings.samples} at temperature 0 would be the same answer every time",
            fix="leave --temperature out, or give one above 0",
        )


def check_uses(named: Sequence[Named], settings: ExamSettings, verifier: Path | None) -> None:
    """UsageError for a setting that none of the tasks goes by."""
    given = {field.name for field in fields(settings) if getattr(settings, field.name) != field.default}
    idle = sorted(given - {"seed"} - {name for task in named for name in task.uses})
    if verifier is not None and not any("samples" in task.uses for task in named):
        idle.append("verifier")
    if idle:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        tasks = ", ".join(task.name for task in named)
        raise UsageError(f"{names}: of no effect on {tasks}", fix=f"leave {names} out, or add other tasks")


def evaluate_model(
    model: Path,
    tasks: Sequence[str],
    *,
    data: Path | None = None,
    settings: ExamSettings | None = None,
    weights: str = "auto",
    device: str = "cpu",
    batch: int = 64,
    out: Path | None = None,
    quiet: bool = False,
    verifier: Path | None = None,
) -> dict[str, Any]:
    """Examine the model in a folder or GGUF file -> all results, as they stand in `out`.

    With the folder of a `verifier` its choice among several samples is scored, too.
    Errors before any work: UsageError, InputNotFoundError, BadFileError, ModelFileMissingError, RefusedError.
    """
    settings = settings or ExamSettings()
    check_settings(settings)
    named = find_tasks(tasks, data, settings)
    check_uses(named, settings, verifier)
    chosen_by = _verifier_folder(verifier, settings)
    head: dict[str, Any] = {
        "kind": KIND,
        "version": CODE_VERSION,
        "model": str(model),
        "model_sha256": hash_model(model),
        "weights": weights,
        "device": device,
    }
    before = _kept(out, head)
    judge = {} if chosen_by is None else {"verifier_sha256": hash_model(chosen_by)}
    results: dict[str, Any] = dict(before.get("results") or {})
    known: dict[str, Any] = {key: before[key] for key in ("chat_format", "context") if key in before}
    made: dict[str, Any] = {**head, **known, "results": results}
    prints = {task.name: _fingerprint(task, head, judge, settings) for task in named}
    missing = [task for task in named if results.get(task.name, {}).get("fingerprint") != prints[task.name]]
    progress = Progress("eval", quiet=quiet)
    if missing:
        _check_walls(missing)
        if out is not None:
            write_json(out, made)  # where it can't be written, now and not after hours
        from ayllu.engine.engine import Engine, SamplingParams

        with Engine(model, weights=weights, device=device, max_sequences=batch) as engine:
            assert engine.tokenizer is not None, "an engine from a folder has one"
            subject = Subject(engine, chat_of(model, engine.tokenizer))
            if settings.thinking_budget is not None:
                bounded(SamplingParams(), subject.chat, Transcript(), settings.thinking_budget)
                subject = replace(subject, says_budget=engine.tokenizer.native and taught(model))
            if chosen_by is not None:
                subject = replace(subject, verifier=_load_verifier(chosen_by, subject, device))
            made |= {"chat_format": _form_of(subject), "context": engine.context_length}
            for task in missing:
                began = time.perf_counter()
                found = _examine(task, subject, data, settings, progress)
                found["seconds"] = round(time.perf_counter() - began, 3)
                found["seed"], found["data"] = settings.seed, _hashes(task)
                found["machine"] = machine.describe()  # each its own: a file may be gone on with elsewhere
                found["fingerprint"] = prints[task.name]
                if "samples" in task.uses:
                    found |= judge
                results[task.name] = found
                if out is not None:
                    write_json(out, made)
                progress.say(line(found))
    asked = {task.name: results[task.name] for task in named}
    return {**made, "results": asked}


def _check_walls(tasks: Sequence[Named]) -> None:
    """RefusedError where programs of the model would have to run on a machine that can't hold them in: now,
    and not when all of them are written."""
    if any(task.official is not None and task.official.form == "program" for task in tasks):
        Sandbox().close()
    with toolbox_for([task.name for task in tasks if task.official is None]):
        pass


def _verifier_folder(verifier: Path | None, settings: ExamSettings) -> Path | None:
    """Where the verifier lies. UsageError when there would be nothing to choose from."""
    if verifier is None:
        return None
    if settings.samples < 2:
        raise UsageError(
            "a verifier chooses among several answers, and each question gets one",
            fix="add --samples 8, or leave --verifier out",
        )
    return find_verifier(verifier)


def _load_verifier(folder: Path, subject: Subject, device: str) -> Verifier:
    """UsageError for a verifier of another vocabulary, or a model that has no chat format."""
    if subject.continues:
        raise UsageError(
            "a verifier scores conversations, and this model has no chat format", fix="leave --verifier out"
        )
    made = load_verifier(folder, device)
    check_fits(made, subject.engine.vocab_size)
    return made


def _examine(
    task: Named, subject: Subject, data: Path | None, settings: ExamSettings, progress: Progress
) -> dict[str, Any]:
    if task.official is None:
        return examine_family(EXAMS[task.name], subject, settings, progress)
    return examine(task.official, list(task.rows), subject, data or Path(), settings, progress)


def _form_of(subject: Subject) -> str:
    if isinstance(subject.chat, Continuation):
        return "none"
    return "the model's template" if isinstance(subject.chat, TemplateChat) else "ayllu"


def hash_model(model: Path) -> str:
    """SHA-256 over the names and hashes of a model's files. ModelFileMissingError without any weights."""
    if model.is_file():
        return sha256_json({model.name: sha256_file(model)})
    patterns = [*(f"*{suffix}" for suffix in _WEIGHTS), *_BESIDE]
    files = sorted({file for pattern in patterns for file in model.glob(pattern) if file.is_file()})
    if not any(file.suffix in _WEIGHTS for file in files):
        raise ModelFileMissingError(f"{model} has no weights", fix="copy the whole model folder again")
    return sha256_json({file.relative_to(model).as_posix(): sha256_file(file) for file in files})


def _hashes(task: Named) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in task.files}


def _fingerprint(
    task: Named, head: Mapping[str, Any], judge: Mapping[str, Any], settings: ExamSettings
) -> str:
    kept = {key: value for key, value in head.items() if key != "model"}
    kept |= judge if "samples" in task.uses else {}
    wanted = {name: getattr(settings, name) for name in task.uses}
    return sha256_json([task.name, kept, wanted, _hashes(task)])


def _kept(out: Path | None, head: Mapping[str, Any]) -> dict[str, Any]:
    """The results made before. UsageError for a file of something else, BadFileError for a damaged one."""
    if out is None or not out.exists():
        if out is not None and not out.parent.is_dir():
            raise InputNotFoundError(f"there is no folder {out.parent}", fix="make it, or name another --out")
        return {}
    before = read_json(out)
    if not isinstance(before, dict) or before.get("kind") != KIND:
        raise UsageError(f"{out} is no file of results", fix="name another file as --out")
    if any(before.get(key) != head[key] for key in ("model_sha256", "weights", "device")):
        raise UsageError(
            f"{out} has the results of another model",
            why="its files, its --weights or the device differ",
            fix="name another file as --out",
        )
    return before
