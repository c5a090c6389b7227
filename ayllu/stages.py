"""The stages of a run as a table, and the fingerprint that says whether a stage's result still holds.

A stage is a function of its settings, its inputs and its code. The fingerprint is the hash of all of
that (the idea of build systems: Mokhov, Mitchell and Peyton Jones 2018, "Build systems à la carte",
constructive traces): equal fingerprint, equal result, nothing to do. What was hashed is kept beside
the hash as its basis, so that a person can be told what has changed.

A `Plan` is everything about a run that is known before its input files are looked at: the complete
recipe, the chosen device and thread count, code versions. Making one imports the stages' modules, and
with them torch; therefore the plan is kept in the run folder and read back as long as the recipe, the
overrides and Ayllu's own code are the same to the byte.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ayllu import machine
from ayllu.errors import RecipeError
from ayllu.files import read_json, sha256_file, sha256_json
from ayllu.recipe import TABLES, compose, compose_run, load_name


@dataclass(frozen=True)
class Extra:
    """A further keyword argument of a stage function, beside its context and its settings.

    Without `source` it is the settings object of `table`. With one it is what `source` (module:function)
    returns for `(settings of table, seed)`, or for `(seed,)` when there is no table. `by_content`: it is
    quickly made and its own hash counts, rather than the settings that it was made from.
    """

    keyword: str
    table: str = ""
    source: str = ""
    by_content: bool = False


@dataclass(frozen=True)
class Stage:
    """One row: what makes it, from what, into which folder of the run."""

    name: str
    function: str  # module:function, imported when the stage is run
    table: str  # its settings in the recipe
    needs: tuple[str, ...] = ()
    output: str = ""  # folder of its results where that isn't its name
    files: tuple[str, ...] = ()  # settings that name input files and folders, of another table `table.name`
    reads: tuple[str, ...] = ("seed", "threads", "device")
    extras: tuple[Extra, ...] = ()
    code: tuple[str, ...] = ()  # further functions that its result depends on
    before: str = ""  # of an optional stage: the one that it stands before
    read_by: tuple[str, ...] = ()  # of an optional stage: those that take up its result

    def folder(self, run: Path) -> Path:
        """Where the results go."""
        return run / (self.output or self.name)

    def marker(self, run: Path) -> Path:
        """The file that says that the stage is done, and how it went."""
        return run / self.name / "stage.json"


PRACTICE = "ayllu.reason.practice"
_SOURCES = (".py", ".toml", ".json", ".jinja", ".css", ".txt")
STAGES: tuple[Stage, ...] = (
    Stage(
        "text",
        "ayllu.text.stage:make_text",
        "text",
        files=("corpus", "evaluation"),
        reads=("seed",),
        extras=(Extra("evaluation_texts", "eval", f"{PRACTICE}:evaluation_prompts", by_content=True),),
    ),
    Stage(
        "tokenizer",
        "ayllu.text.stage:make_tokenizer",
        "tokenizer",
        needs=("text",),
        reads=("seed",),
        extras=(Extra("practice_texts", "sft", f"{PRACTICE}:tokenizer_texts", by_content=True),),
    ),
    Stage(
        "pretrain",
        "ayllu.train.pretrain:pretrain",
        "pretrain",
        needs=("text", "tokenizer"),
        extras=(Extra("model", "model"),),
    ),
    Stage(
        "sft",
        "ayllu.train.sft:sft",
        "sft",
        needs=("text", "tokenizer", "pretrain"),
        files=("gsm8k",),
    ),
    Stage(
        "rl",
        "ayllu.train.rl:rl",
        "rl",
        needs=("text", "tokenizer", "sft"),
        extras=(Extra("practice", "sft"),),
    ),
    Stage(
        "eval",
        "ayllu.evals.stage:evaluate",
        "eval",
        needs=("text", "tokenizer", "sft", "rl"),
        extras=(Extra("practice", "sft"),),
    ),
    Stage(
        "release",
        "ayllu.release:release",
        "release",
        needs=("text", "tokenizer", "pretrain", "sft", "rl", "eval"),
        output="model",
        reads=("name",),
    ),
)
# Stages that a run has when its recipe has their table.
OPTIONAL: tuple[Stage, ...] = (
    Stage(
        "guard",
        "ayllu.evals.guard:guard",
        "guard",
        files=("examined", "sft.gsm8k"),
        reads=("seed",),
        extras=tuple(Extra(table, table) for table in ("sft", "rl", "expert", "verifier", "distill")),
        code=("ayllu.train.sft:sft",),  # raised when practice asks other problems
        before="text",
        read_by=("release",),  # its report and manifest say what was compared
    ),
    Stage(
        "expert",
        "ayllu.train.expert:expert",
        "expert",
        needs=("text", "tokenizer", "sft"),
        extras=(Extra("practice", "sft"),),
        before="rl",
        read_by=("rl",),
    ),
    Stage(
        "verifier",
        "ayllu.train.verifier:verifier",
        "verifier",
        needs=("text", "tokenizer", "rl"),
        extras=(Extra("practice", "sft"),),
        before="eval",
        read_by=("release",),
    ),
    Stage(
        "distill",
        "ayllu.train.distill:distill",
        "distill",
        needs=("text", "tokenizer", "rl"),
        extras=(Extra("practice", "sft"),),
        before="eval",
        read_by=("release",),
    ),
)


def stages_of(raw: Mapping[str, Any], stages: Sequence[Stage] = STAGES) -> tuple[Stage, ...]:
    """`stages` with each optional one whose table is in the recipe `raw`, in its place; what it would be
    given of optional tables that aren't in the recipe is left out."""
    found = list(stages)
    absent = {stage.table for stage in OPTIONAL} - set(raw)
    for extra in OPTIONAL:
        names = [stage.name for stage in found]
        if extra.table in raw and extra.before in names and extra.name not in names:
            given = tuple(more for more in extra.extras if more.table not in absent)
            found.insert(names.index(extra.before), replace(extra, extras=given))
            for at, stage in enumerate(found):
                if stage.name in extra.read_by:
                    found[at] = replace(stage, needs=(*stage.needs, extra.name))
    return tuple(found)


@dataclass(frozen=True)
class Plan:
    """A run before it has begun; plain values only."""

    recipe: dict[str, Any]  # complete, with the chosen threads and device
    code: dict[str, dict[str, Any]]  # stage -> {function or source: CODE_VERSION of its module, or a hash}
    key: str = ""

    @property
    def given(self) -> dict[str, Any]:
        """Name, seed, threads and device."""
        return {name: self.recipe.get(name) for name in ("name", "seed", "threads", "device")}


def make_plan(
    raw: Mapping[str, Any],
    kept_at: Path | None = None,
    *,
    stages: Sequence[Stage] = STAGES,
    tables: Mapping[str, str] = TABLES,
) -> Plan:
    """Check the recipe `raw` and complete it. The plan kept in a file is used if its key is still the same.

    Writes nothing. Raises what `compose` raises, and ResourceError when a GPU is asked for and absent.
    """
    run = compose_run(raw, tables)  # the quick checks first
    key = sha256_json(
        {
            "raw": _keyable(raw),
            "code": code_hash(),
            "stages": [asdict(stage) for stage in stages],
            "tables": dict(tables),
            "cores": machine.physical_cores(),
            "gpu": machine.cuda_may_be_here(),
        }
    )
    if kept_at is not None and kept_at.exists():
        try:
            kept = Plan(**read_json(kept_at))
        except Exception:  # an old or damaged plan is no loss: make it again
            kept = Plan({}, {})
        if kept.key == key:
            return kept
    threads = run.threads or machine.physical_cores()
    use_threads(threads)  # before torch is imported
    for optional in OPTIONAL:
        if optional.table in raw and optional.name not in {stage.name for stage in stages}:
            raise RecipeError(
                f"this run has no stage for the table [{optional.table}]", fix="leave the table out"
            )
    without = {stage.table for stage in OPTIONAL} - set(raw)
    recipe = compose(raw, {name: path for name, path in tables.items() if name not in without})
    complete = recipe.as_dict() | {"threads": threads, "device": machine.choose_device(run.device)}
    code = {stage.name: _code_of(stage, recipe.tables, run.seed) for stage in stages}
    return Plan(complete, code, key)


def use_threads(count: int) -> None:
    """Set the arithmetic's thread count for this process, whether or not torch is imported already."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def extra_value(extra: Extra, tables: Mapping[str, Any], seed: int) -> Any:
    """What the stage function gets for this keyword."""
    if not extra.source:
        return tables[extra.table]
    return load_name(extra.source)(*([tables[extra.table]] if extra.table else []), seed)


def code_hash() -> str:
    """Hash of Ayllu's own source files, with the phrases, templates and tables beside them."""
    package = Path(__file__).parent
    files = sorted(p for p in package.rglob("*") if p.suffix in _SOURCES and p.is_file())
    return sha256_json({str(p.relative_to(package)): sha256_file(p) for p in files})


def _code_of(stage: Stage, tables: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """CODE_VERSION of each module that makes the stage's result; content hashes where asked for.

    A module without CODE_VERSION counts as version 1: comments and refactors don't cost a run, a
    change of what is computed has to be told by raising the number.
    """
    found: dict[str, Any] = {}
    for path in (stage.function, *stage.code, *(extra.source for extra in stage.extras if extra.source)):
        module = importlib.import_module(path.partition(":")[0])
        found[path] = getattr(module, "CODE_VERSION", 1)
    for extra in stage.extras:
        if extra.by_content:
            found[extra.keyword] = sha256_json(list(extra_value(extra, tables, seed)))
    return found


def _keyable(raw: Any) -> Any:
    """`raw` with what JSON lacks (TOML's dates) as text; such values are refused later."""
    if isinstance(raw, Mapping):
        return {str(key): _keyable(value) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        return [_keyable(value) for value in raw]
    return raw if isinstance(raw, str | int | float | bool) else repr(raw)


# ---- fingerprints
def _idle(name: str, plan: Plan) -> bool:
    """Whether a given value touches no result: threads, where a GPU computes (a run may go on beside another
    number of cores)."""
    return name == "threads" and (plan.given.get("device") or "cpu") != "cpu"


def basis(
    stage: Stage, plan: Plan, fingerprints: Mapping[str, str], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """All that the stage's result depends on. `inputs`: hashes of input files by path."""
    tables = {stage.table: plan.recipe.get(stage.table, {})}
    for extra in stage.extras:
        if extra.table and not extra.by_content:
            tables[extra.table] = plan.recipe.get(extra.table, {})
    return {
        "settings": tables,
        "given": {name: plan.given[name] for name in stage.reads if not _idle(name, plan)},
        "code": plan.code.get(stage.name, {}),
        "files": dict(inputs),
        "needs": {name: fingerprints[name] for name in stage.needs},
    }


def _named_inputs(stage: Stage, plan: Plan) -> Iterator[str]:
    for setting in stage.files:
        table, _, key = setting.rpartition(".")
        value = plan.recipe.get(table or stage.table, {}).get(key, [])
        yield from [value] if isinstance(value, str) else value


def input_files(stage: Stage, plan: Plan, root: Path) -> dict[str, Path]:
    """The files below the paths that the stage's settings name, by these names: a folder named from the
    root of the disk is the same wherever one stands. Absent ones are the stage's to report."""
    found: dict[str, Path] = {}
    for name in _named_inputs(stage, plan):
        path = root / name
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in inside:
            if file.is_file() and not _left_behind(file):
                found[os.path.normpath(Path(name) / file.relative_to(path))] = file
    return found


def absent_inputs(stage: Stage, plan: Plan, root: Path) -> str:
    """The first name among the stage's inputs at which there is nothing; empty when all are there."""
    return next((name for name in _named_inputs(stage, plan) if not (root / name).exists()), "")


def _left_behind(path: Path) -> bool:
    """Whether it is what file browsers leave in folders (.DS_Store, .directory), which nobody reads."""
    return path.name.startswith(".") and not path.suffix


def hash_files(files: Sequence[Path], base: Path, known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`hash_named` by the paths below `base`."""
    return hash_named({os.path.relpath(path, base): path for path in files}, known)


def hash_named(files: Mapping[str, Path], known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{name: {bytes, mtime_ns, sha256}}`; a file with the size and time of `known` isn't read."""
    made = {}
    for name, path in files.items():
        status = path.stat()
        entry = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        old = known.get(name, {})
        same = all(old.get(key) == value for key, value in entry.items())
        made[name] = entry | {"sha256": old["sha256"] if same and "sha256" in old else sha256_file(path)}
    return made


def what_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The difference between two bases in words, at most three points."""
    before, after = _flat(old), _flat(new)
    points = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key):
            continue
        part, _, name = key.partition(".")
        if part in ("settings", "given"):
            points.append(f"{name} {before.get(key, 'unset')} -> {after.get(key, 'unset')}")
        elif part == "files":
            points.append(f"the input {name}")
        elif part == "code":
            what = name.partition(":")[0]
            points.append(f"the code of {what}" if "." in what else what.replace("_", " "))
        else:
            points.append(f"what {name} makes")
    more = f" and {len(points) - 3} more" if len(points) > 3 else ""
    return ", ".join(points[:3]) + more


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    pairs = (_flat(v, f"{prefix}.{key}" if prefix else str(key)) for key, v in value.items())
    return {key: v for flat in pairs for key, v in flat.items()}
