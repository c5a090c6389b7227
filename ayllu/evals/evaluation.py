"""`ayllu eval`: a model, a list of tasks, and a file of results that grows task by task.

Everything that can be wrong with the words and the files is found before the model is loaded. A result is
kept in `--out` as soon as its task is done, with a fingerprint of what it depends on (the model's files, the
data's files, the settings); called again, an evaluation goes on with what is missing.

What was answered under a bound on thinking is a point of a curve as well, accuracy against tokens thought: it
stands under the task's name and the bound (`by_thinking_budget`), and a further bound adds a point.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ayllu import machine
from ayllu.engine.engine import Engine, SamplingParams
from ayllu.errors import InputNotFoundError, ModelFileMissingError, UsageError
from ayllu.evals.examine import ExamSettings, examine, examine_family
from ayllu.evals.page import line
from ayllu.evals.subject import ASK_AS, Subject
from ayllu.evals.tasks import Named, check_uses, find_tasks
from ayllu.files import read_json, sha256_file, sha256_json, write_json
from ayllu.progress import Progress
from ayllu.reason.foreign import Continuation, TemplateChat, chat_of
from ayllu.reason.practice import EXAMS, toolbox_for
from ayllu.reason.thinking import MOST, bounded, taught
from ayllu.reason.transcript import Chat, Transcript
from ayllu.reason.verify import Verifier, check_fits, find_verifier, load_verifier
from ayllu.tools.sandbox import Sandbox

CODE_VERSION = 7  # raised when the same settings would give another result; 7: how it was asked is a setting
KIND = "ayllu eval"
MAX_SAMPLES = 128
MAX_ROWS = 100_000  # of one task, as in the eval stage of a recipe
_WEIGHTS = (".safetensors", ".gguf", ".pth")
# What else an answer depends on.
_BESIDE = (
    "config.json", "params.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "chat_template*", "additional_chat_templates/*",
)  # fmt: skip


def budgets_of(text: str) -> tuple[int, ...]:
    """`16,32,64` -> the bounds on thinking that it names, each once. UsageError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.removeprefix("-").isdigit() and len(word) < 10 for word in words):
        raise UsageError(
            f"--thinking-budget {text[:80]!r} is no number of tokens",
            fix="give one, or several with commas between, without spaces: --thinking-budget 16,32,64",
        )
    return tuple(dict.fromkeys(map(int, words)))


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
    for name, value, most in (
        ("n", settings.n, MAX_ROWS),
        ("samples", settings.samples, MAX_SAMPLES),
        ("thinking-budget", settings.thinking_budget, MOST),
    ):
        if value is not None and value > most:
            raise UsageError(f"--{name} {value} is too many", fix=f"give at most {most:,}")
    if settings.temperature is not None and not 0 <= settings.temperature <= 10:
        raise UsageError(f"--temperature {settings.temperature} is not possible", fix="give 0 to 10")
    if settings.samples > 1 and settings.temperature == 0:
        raise UsageError(
            f"--samples {settings.samples} at temperature 0 would be the same answer every time",
            fix="leave --temperature out, or give one above 0",
        )
    if settings.ask_as not in ASK_AS:
        raise UsageError(f"--ask-as {settings.ask_as} is not possible", fix=f"give {', '.join(ASK_AS)}")
    if settings.ask_as == "text" and settings.thinking_budget is not None:
        raise UsageError(
            "--thinking-budget bounds thoughts, and who is asked as a text has none",
            fix="leave --ask-as text or --thinking-budget out",
        )


@dataclass(frozen=True)
class _Exam:
    """A task under one choice of settings. `budget`: its bound on thinking, where it goes by one; `alone`: it
    is no point of several that were asked for."""

    task: Named
    settings: ExamSettings
    fingerprint: str
    curve: str = ""  # the fingerprint of all points of one curve
    budget: int | None = None
    alone: bool = True


def _exams(
    named: Sequence[Named], each: Sequence[ExamSettings], head: Mapping[str, Any], judge: Mapping[str, Any]
) -> list[_Exam]:
    """Every task once, or under each bound where there are several and the task goes by one."""
    found = []
    for task in named:
        bounded_ = "thinking_budget" in task.uses and each[0].thinking_budget is not None
        for settings in each if bounded_ else each[:1]:
            exam = _Exam(task, settings, _fingerprint(task, head, judge, settings))
            if bounded_:
                curve = _fingerprint(task, head, judge, replace(settings, thinking_budget=None))
                exam = replace(exam, curve=curve, budget=settings.thinking_budget, alone=len(each) == 1)
            found.append(exam)
    return found


def evaluate_model(
    model: Path,
    tasks: Sequence[str],
    *,
    data: Path | None = None,
    settings: ExamSettings | None = None,
    budgets: Sequence[int] = (),
    weights: str = "auto",
    device: str = "cpu",
    batch: int = 64,
    out: Path | None = None,
    quiet: bool = False,
    verifier: Path | None = None,
) -> dict[str, Any]:
    """Examine the model in a folder or GGUF file -> all results, as they stand in `out`.

    `results` has tasks by name; `by_thinking_budget` those that were asked under a bound on thinking, by name
    and bound, with the points that `out` had of the same curve. With several `budgets`, which take the place
    of the settings' own, such a task stands there alone.
    With the folder of a `verifier` its choice among several samples is scored, too.
    Errors before any work: UsageError, InputNotFoundError, BadFileError, ModelFileMissingError, RefusedError.
    """
    settings = settings or ExamSettings()
    each = [replace(settings, thinking_budget=budget) for budget in budgets] or [settings]
    for one in each:
        check_settings(one)
    named = find_tasks(tasks, data, settings)
    check_uses(named, each[0], verifier)
    chosen_by = _verifier_folder(verifier, settings)
    files = _hash_files(model)
    head: dict[str, Any] = {
        "kind": KIND,
        "version": CODE_VERSION,
        "model": str(model),
        "model_sha256": sha256_json(files),
        "weights": weights,
        "device": device,
    }
    before = _kept(out, head)
    judge = {} if chosen_by is None else {"verifier_sha256": hash_model(chosen_by)}
    known: dict[str, Any] = {key: before[key] for key in ("chat_format", "context") if key in before}
    made: dict[str, Any] = {**head, "weights_sha256": _weights_sha256(files), **known, "results": {}}
    made |= {key: copy.deepcopy(before[key]) for key in ("results", "by_thinking_budget") if key in before}
    exams = _exams(named, each, head, judge)
    missing = []
    for exam in exams:
        if (found := _made_before(made, exam)) is None:
            missing.append(exam)
        else:
            _keep(made, exam, found)
    progress = Progress("eval", quiet=quiet)
    if missing:
        _check_walls([exam.task for exam in missing])
        if out is not None:
            write_json(out, made)  # where it can't be written, now and not after hours
        with Engine(model, weights=weights, device=device, max_sequences=batch) as engine:
            subject, form = _subject(engine, model, each[0])
            if chosen_by is not None:
                subject = replace(subject, verifier=_load_verifier(chosen_by, subject, device))
            made |= {"chat_format": form, "context": engine.context_length}
            for exam in missing:
                began = time.perf_counter()
                found = _examine(exam.task, subject, data, exam.settings, progress)
                found["seconds"] = round(time.perf_counter() - began, 3)
                found["seed"], found["data"] = settings.seed, _hashes(exam.task)
                found["machine"] = machine.describe()  # each its own: a file may be gone on with elsewhere
                found["fingerprint"] = exam.fingerprint
                if exam.budget is not None:
                    found["curve"] = exam.curve
                if "samples" in exam.task.uses:
                    found |= judge
                _keep(made, exam, found)
                if out is not None:
                    write_json(out, made)
                progress.say(line(found))
    elif out is not None and made != before:
        write_json(out, made)
    return _asked_for(made, exams)


def _made_before(made: Mapping[str, Any], exam: _Exam) -> dict[str, Any] | None:
    """The result of the same exam, from the file."""
    name, points = exam.task.name, made.get("by_thinking_budget", {})
    for found in (made["results"].get(name), points.get(name, {}).get(str(exam.budget))):
        if found and found.get("fingerprint") == exam.fingerprint:
            return dict(found)
    return None


def _keep(made: dict[str, Any], exam: _Exam, found: dict[str, Any]) -> None:
    """Put a result in its place. Points that other settings made belong to another curve, and go."""
    name = exam.task.name
    if exam.alone:
        made["results"][name] = found
    if exam.budget is not None:
        curves = made.setdefault("by_thinking_budget", {})
        points = {b: p for b, p in curves.get(name, {}).items() if p.get("curve") == exam.curve}
        points[str(exam.budget)] = found
        curves[name] = {budget: points[budget] for budget in sorted(points, key=int)}


def _asked_for(made: Mapping[str, Any], exams: Sequence[_Exam]) -> dict[str, Any]:
    """Of everything that was kept the tasks that were asked for."""
    asked = {**made, "results": {e.task.name: made["results"][e.task.name] for e in exams if e.alone}}
    asked.pop("by_thinking_budget", None)
    if curves := {e.task.name: made["by_thinking_budget"][e.task.name] for e in exams if e.curve}:
        asked["by_thinking_budget"] = curves
    return asked


def _subject(engine: Engine, model: Path, settings: ExamSettings) -> tuple[Subject, str]:
    """Who is asked, and whose chat format the model has. UsageError for a conversation with a model that has
    none, RequestError for a bound on thoughts that can't be kept."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None, "an engine from a folder has one"
    own = chat_of(model, tokenizer)
    if settings.ask_as == "chat" and isinstance(own, Continuation):
        raise UsageError(
            "--ask-as chat: this model has no chat format",
            why="its folder has no chat template: it was trained to continue texts, not to answer",
            fix="leave --ask-as out, or give --ask-as text",
        )
    subject = Subject(engine, Continuation(tokenizer) if settings.ask_as == "text" else own)
    if settings.thinking_budget is not None:
        bounded(SamplingParams(), subject.chat, Transcript(), settings.thinking_budget)
        subject = replace(subject, says_budget=tokenizer.native and taught(model))
    return subject, _form_of(own)


def _check_walls(tasks: Sequence[Named]) -> None:
    """RefusedError where programs of the model would have to run on a machine that can't hold them in: now,
    and not when all of them are written."""
    if any(task.official is not None and task.official.form == "program" for task in tasks):
        Sandbox().close()
    with toolbox_for([task.name for task in tasks if task.official is None]):
        pass


def _verifier_folder(verifier: Path | None, settings: ExamSettings) -> Path | None:
    """Where the verifier lies. UsageError when there would be nothing to choose from, or nothing to score."""
    if verifier is None:
        return None
    if settings.ask_as == "text":
        raise UsageError(
            "a verifier scores conversations, and --ask-as text has none",
            fix="leave --ask-as text or --verifier out",
        )
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


def _form_of(chat: Chat | TemplateChat) -> str:
    if isinstance(chat, Continuation):
        return "none"
    return "the model's template" if isinstance(chat, TemplateChat) else "ayllu"


def hash_model(model: Path) -> str:
    """SHA-256 over the names and hashes of a model's files. ModelFileMissingError without any weights."""
    return sha256_json(_hash_files(model))


def _hash_files(model: Path) -> dict[str, str]:
    if model.is_file():
        return {model.name: sha256_file(model)}
    patterns = [*(f"*{suffix}" for suffix in _WEIGHTS), *_BESIDE]
    files = sorted({file for pattern in patterns for file in model.glob(pattern) if file.is_file()})
    if not any(file.suffix in _WEIGHTS for file in files):
        raise ModelFileMissingError(f"{model} has no weights", fix="copy the whole model folder again")
    return {file.relative_to(model).as_posix(): sha256_file(file) for file in files}


def _weights_sha256(files: Mapping[str, str]) -> str | None:
    """The hash of the weights as a release has it, by which a run knows its own; None for other files."""
    hashes = {name: sha for name, sha in files.items() if name.endswith(".safetensors")}
    if not hashes:
        return None
    return hashes["model.safetensors"] if set(hashes) == {"model.safetensors"} else sha256_json(hashes)


def _hashes(task: Named) -> dict[str, str]:
    """Of the task's files, by their names; by their paths where several have the same."""
    distinct = len({file.name for file in task.files}) == len(task.files)
    return {file.name if distinct else file.as_posix(): sha256_file(file) for file in task.files}


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
