"""A run folder: the stages that fill it, each skipped when done and gone on with when half done.

    runs/NAME/recipe.toml            the complete recipe
              text/ tokenizer/ ...   one folder a stage, with its stage.json (marker.py)
              model/                 what `release` makes
              metrics.jsonl  report.json  report.html  log.txt
              old/                   results that no longer fit the recipe; never deleted

A run can be killed at any moment: a stage counts as done when its stage.json is there, which is written
last and as a whole. The same command then goes on. Nothing is made twice, and nothing is trusted that
has changed since it was made.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ayllu import machine
from ayllu.errors import (
    BadFileError,
    FolderReadOnlyError,
    InputNotFoundError,
    ResourceError,
    RunBusyError,
    RunStoppedError,
    UsageError,
)
from ayllu.files import (
    locked,
    make_folder,
    plain,
    read_json,
    sha256_json,
    typed_os_errors,
    write_json,
    write_text,
)
from ayllu.marker import damaged, made_by, of_recipe, output_files, read_marker, take_rows, used
from ayllu.progress import Progress, clock, every
from ayllu.recipe import TABLES, compose, load_name, nearest, read_recipe, to_toml
from ayllu.stage import StageContext
from ayllu.stages import (
    OPTIONAL,
    STAGES,
    Plan,
    Stage,
    absent_inputs,
    basis,
    extra_value,
    hash_files,
    hash_named,
    input_files,
    make_plan,
    stages_of,
    use_threads,
    what_changed,
)
from ayllu.stopwatch import Stopwatch

REPORT = "ayllu.report:write_report"
LIVE = 20.0  # seconds between two reports while a stage is at work


def make(
    recipe_path: Path,
    *,
    until: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    threads: int | None = None,
    quiet: bool = False,
    stages: Sequence[Stage] = STAGES,
    tables: Mapping[str, str] = TABLES,
    report: str = REPORT,
) -> dict[str, Any]:
    """Bring the run of a recipe to its end (or to the end of stage `until`).

    `out` is the run folder (default runs/NAME); `seed` and `threads` overrule the recipe. Returns
    `{"run", "model", "report", "finished", "wall_seconds", "stages": {name: seconds}}`. Raises what the
    stages raise, RunBusyError when another process works there, RunStoppedError after a signal.
    """
    raw = read_recipe(recipe_path)
    raw |= {key: value for key, value in (("seed", seed), ("threads", threads)) if value is not None}
    stages = stages_of(raw, stages)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        near = nearest(until, names)
        if until in {stage.name for stage in OPTIONAL}:
            raise UsageError(
                f"this recipe has no stage {until!r}",
                fix=f"add a table [{until}] to it, or name another",
            )
        hint = f"did you mean {near}?" if near else f"the stages are: {', '.join(names)}"
        raise UsageError(f"there is no stage {until!r}", fix=hint)
    folder = out or Path("runs") / Path(str(raw["name"])).name
    # Before anything is written: a recipe that can't be run leaves no trace.
    plan = make_plan(raw, folder / ".plan.json", stages=stages, tables=tables)
    _claim(folder)
    with locked(folder / ".lock"), _signals_stop():
        run = Run(folder, plan, stages, tables, quiet=quiet, report=report)
        try:
            run.advance(until)
        except KeyboardInterrupt as error:
            raise RunStoppedError(
                f"stopped; what is done so far is in {folder}",
                fix="run the same command again: it goes on where it stopped",
            ) from error
        return run.summary(until)


def _claim(folder: Path) -> None:
    """Make the run folder. An existing one must be a run's or empty: stages replace what is in it."""
    if folder.exists() and not folder.is_dir():
        raise FolderReadOnlyError(f"{folder} is a file, not a folder", fix="choose another one with --out")
    make_folder(folder)
    if not (folder / ".plan.json").exists() and any(
        not path.name.startswith(".") for path in folder.iterdir()
    ):
        raise UsageError(
            f"{folder} is not empty and not the folder of a run",
            fix="choose a new or empty folder with --out",
        )


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGTERM and SIGHUP stop a run as Ctrl-C does: as KeyboardInterrupt. The last checkpoint stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Run:
    """One run folder with its plan. `advance` does the work; nothing else writes there."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        stages: Sequence[Stage] = STAGES,
        tables: Mapping[str, str] = TABLES,
        *,
        quiet: bool = False,
        report: str = REPORT,
    ) -> None:
        self.folder, self.plan, self.stages, self.tables = folder, plan, tuple(stages), tables
        self.quiet, self.report = quiet, report
        self.by_name = {stage.name: stage for stage in self.stages}
        self.fingerprints: dict[str, str] = {}
        self.clock = Stopwatch(folder / ".clock.json")
        self.composed: Mapping[str, Any] | None = None

    def advance(self, until: str | None = None) -> None:
        """Do what is left of each stage in turn."""
        write_json(self.folder / ".plan.json", asdict(self.plan))
        write_text(self.folder / "recipe.toml", to_toml(self.plan.recipe, "The complete recipe of this run."))
        for left in self.folder.glob(".*.part"):  # half a write of a run that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        worked = False
        for stage in self.stages:
            marker = read_marker(stage, self.folder) or {}
            if marker and (gone := absent_inputs(stage, self.plan, Path.cwd())):
                raise InputNotFoundError(
                    f"{gone} isn't here, and the stage {stage.name} was made from it",
                    fix=f"run the command where {gone} is, or name it in the recipe as it is seen from here",
                )
            inputs = hash_named(input_files(stage, self.plan, Path.cwd()), marker.get("inputs", {}))
            hashes = {name: entry["sha256"] for name, entry in inputs.items()}
            made_from = basis(stage, self.plan, self.fingerprints, hashes)
            fingerprint = self.fingerprints[stage.name] = sha256_json(made_from)
            if self._holds(stage, marker, fingerprint, made_from):
                self._progress(stage).say(f"done before, in {clock(marker['seconds'])}")
            else:
                self._do(stage, fingerprint, made_from, inputs)
                worked = True
                self.write_report()
            if stage.name == until:
                break
        if not worked and self._report_is_old():
            self.write_report()

    def _report_is_old(self) -> bool:
        """Whether the report is missing or of another recipe (a name changes few stages), or a kill came
        between a stage's marker and the report of it."""
        reports = [self.folder / f"report{kind}" for kind in (".json", ".html")]
        if not all(path.exists() for path in reports):
            return True
        markers = [m for stage in self.stages if (m := stage.marker(self.folder)).exists()]
        newest = max((m.stat().st_mtime_ns for m in markers), default=0)
        try:
            told = read_json(reports[0]).get("recipe")
        except (BadFileError, AttributeError):
            return True
        same = sha256_json(told) == sha256_json(plain(self.plan.recipe))
        return not same or min(path.stat().st_mtime_ns for path in reports) < newest

    def _holds(self, stage: Stage, marker: Mapping[str, Any], fingerprint: str, made_from: Any) -> bool:
        """Whether the stage's result is there and good. What doesn't fit any more is moved to old/."""
        began = self.clock.entries.get(stage.name, {})
        if not marker:
            if began.get("fingerprint") != fingerprint and used(stage, self.folder):
                change = what_changed(began["basis"], made_from) if began else ""
                why = f"begun otherwise ({change})" if began else "nothing says what it was made from"
                self._set_aside(stage, why)
            elif began.get("needs", needs := self._needs(stage)) != needs:
                self._set_aside(stage, "begun from something else than what is there now")
            return False
        if marker["fingerprint"] != fingerprint:
            self._set_aside(stage, what_changed(marker["basis"], made_from))
            return False
        for name, made in self._needs(stage).items():
            if marker["needs"][name] != made:
                self._set_aside(stage, f"{name} made something else this time")
                return False
        if damage := damaged(marker, stage.folder(self.folder)):
            self._set_aside(stage, damage)
            return False
        return True

    def _do(
        self, stage: Stage, fingerprint: str, made_from: dict[str, Any], inputs: Mapping[str, Any]
    ) -> None:
        """Run the stage's function and write its marker."""
        progress, threads = self._progress(stage), self.plan.recipe["threads"]
        before = self.clock.entries.get(stage.name, {}).get("seconds", 0.0)
        progress.say(f"goes on after {clock(before)}" if before else "begins")
        make_folder(stage.folder(self.folder))
        make_folder(stage.marker(self.folder).parent)
        with (
            self.clock.running(stage.name, fingerprint, made_from, self._needs(stage)) as entry,
            typed_os_errors(stage.folder(self.folder)),
            typed_memory_errors(stage.name),
            every(LIVE, self.write_report),
        ):
            use_threads(threads)
            function = load_name(stage.function)
            composed = self.settings()
            use_threads(threads)  # again, because torch may have been imported by now
            seed = self.plan.recipe["seed"]
            extras = {extra.keyword: extra_value(extra, composed, seed) for extra in stage.extras}
            context = StageContext(
                folder=stage.folder(self.folder),
                inputs={name: self.by_name[name].folder(self.folder) for name in stage.needs},
                seed=seed,
                threads=threads,
                device=self.plan.recipe["device"],
                progress=progress,
                metrics=self.folder / "metrics.jsonl",
                root=Path.cwd(),
            )
            result = function(context, composed[stage.table], **extras)
            outputs = hash_files(output_files(stage, self.folder), stage.folder(self.folder), {})
        marker = {
            "stage": stage.name,
            "fingerprint": fingerprint,
            "seconds": entry["seconds"],
            "peak_memory_mb": entry["peak_memory_mb"],
            "starts": entry["starts"],
            "machine": machine.describe(threads),
            "result": result,
            "outputs": outputs,
            "inputs": inputs,
            "needs": self._needs(stage),
            "basis": made_from,
        }
        write_json(stage.marker(self.folder), marker)
        # Its working memory (checkpoints above all) and half writes from before a kill.
        for left in list(stage.folder(self.folder).rglob(".*")):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        self.clock.drop(stage.name)
        progress.finish(f"done in {clock(entry['seconds'])}, memory at most {entry['peak_memory_mb']:.0f} MB")

    def settings(self) -> Mapping[str, Any]:
        """The recipe's tables as settings objects; those of optional stages that it doesn't name aren't
        there."""
        if self.composed is None:
            tables = {name: path for name, path in self.tables.items() if name in self.plan.recipe}
            self.composed = compose(self.plan.recipe, tables).tables
        return self.composed

    def _set_aside(self, stage: Stage, why: str) -> None:
        """Move the stage's results to old/. Those that were made from them stay until their turn comes, so
        that a mistake in the recipe that stops an early stage doesn't take the finished model away."""
        if not used(stage, self.folder):
            self.clock.drop(stage.name)
            return
        stamp = time.strftime("%Y%m%d-%H%M%S")
        names = (
            f"{stage.name}-{stamp}{suffix}"
            for suffix in itertools.chain([""], map("-{}".format, range(2, 999)))
        )
        target = next(p for name in names if not (p := self.folder / "old" / name).exists())
        with typed_os_errors(self.folder):
            make_folder(target.parent)
            home = self.folder / stage.name
            if home.exists():
                home.rename(target)
            make_folder(target)
            if stage.output and (output := stage.folder(self.folder)).exists():
                output.rename(target / stage.output)
        take_rows(self.folder / "metrics.jsonl", stage.name, target / "metrics.jsonl")
        self.clock.drop(stage.name)
        self._progress(stage).say(f"made again: {why}; what was there is in {target}")

    def write_report(self) -> None:
        """report.json and report.html from the stages that are done."""
        load_name(self.report)(self.folder, self.plan.recipe, of_recipe(self.stages, self.plan, self.folder))

    def summary(self, until: str | None = None) -> dict[str, Any]:
        """What `make` returns, of the stages up to `until`: those behind it may be of another recipe."""
        names = [stage.name for stage in self.stages]
        stages = self.stages[: names.index(until) + 1] if until else self.stages
        markers = {s.name: marker for s in stages if (marker := read_marker(s, self.folder))}
        seconds = {name: marker["seconds"] for name, marker in markers.items()}
        last = self.stages[-1]
        return {
            "run": str(self.folder),
            "model": str(last.folder(self.folder)) if last.name in markers else None,
            "report": str(self.folder / "report.html"),
            "finished": len(markers) == len(self.stages),
            "wall_seconds": round(sum(seconds.values()), 3),
            "stages": seconds,
        }

    def _needs(self, stage: Stage) -> dict[str, str]:
        """What the stage is made from, as hashes of what those before it made."""
        return {name: made_by(self._marker(self.by_name[name])) for name in stage.needs}

    def _marker(self, stage: Stage) -> dict[str, Any]:
        return read_marker(stage, self.folder) or {}

    def _progress(self, stage: Stage) -> Progress:
        return Progress(stage.name, quiet=self.quiet, log=self.folder / "log.txt")


def rewrite_report(folder: Path) -> Path:
    """Make the report of a run folder anew from its markers and metrics; where the page is.

    Raises InputNotFoundError when `folder` holds no run.
    """
    if not (folder / "recipe.toml").is_file():
        raise InputNotFoundError(f"{folder} is not the folder of a run", fix="name one, such as runs/demo")
    plan = Plan(read_recipe(folder / "recipe.toml"), {})
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RunBusyError):  # a run under way has a report too
            stack.enter_context(locked(folder / ".lock"))
        Run(folder, plan, stages_of(plan.recipe)).write_report()
    return folder / "report.html"


@contextlib.contextmanager
def typed_memory_errors(stage: str) -> Iterator[None]:
    """Out of memory, in Python's, torch's and CUDA's words, as a ResourceError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error).lower()
        signs = ("not enough memory", "out of memory", "can't allocate memory")
        if isinstance(error, MemoryError) or any(sign in words for sign in signs):
            raise ResourceError(
                f"not enough memory for the stage {stage}",
                why=str(error).splitlines()[0][:200] if str(error) else "",
                fix="free some, or make the model or its batches smaller in the recipe",
            ) from error
        raise
