"""The verbs of the command line that examine: what a model is, costs, knows, and how fast it runs.

Imports stand inside the verbs, as in verbs.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ayllu import __version__
from ayllu.errors import UsageError
from ayllu.verbs import AnyModel, Flag, Json, model_folder


def show(
    model: Annotated[str | None, Parameter(help="A preset, a model folder, a .gguf file.")] = None,
    /,
    *,
    presets: Annotated[bool, Parameter(name="--list", negative=())] = False,
    length: int | None = None,
    measure: Annotated[bool, Flag] = False,
    as_json: Json = False,
) -> None:
    """Show what a model is and costs: parameters, bytes, cache, operations, what fits.

    Nothing is loaded: a model of two trillion parameters is shown as fast as a small one.

    Parameters
    ----------
    presets
        List the presets (also without MODEL).
    length
        Tokens of text for the cache and the operations (default: the context, at most 8,192).
    measure
        Measure how fast memory is read, and say how many tokens a second that allows.
    """
    from ayllu import shape

    if presets or model is None:
        listed = shape.listing()
        print(json.dumps(listed, indent=2) if as_json else shape.list_page(listed))
        return
    said = shape.describe(model, length=length, measure=measure)
    print(json.dumps(said, indent=2, ensure_ascii=False) if as_json else shape.page(said))


def quantize(
    model: AnyModel,
    /,
    *,
    out: Path,
    weights: str = "int8",
    text: Path | None = None,
    tokens: int = 16_384,
    as_json: Json = False,
) -> None:
    """Pack a model's weights in int8 or int4, and measure what that costs.

    Parameters
    ----------
    out
        The folder to make: a model for run, chat, serve and bench.
    weights
        int8 (8.5 bits a weight) or int4 (4.5 bits).
    text
        Measure on this file or folder of text (default: held-out text of the embedded corpus).
    tokens
        Measure on about so many tokens of each text.
    """
    from ayllu.quantizing import page, quantize_model

    said = quantize_model(model, out, weights=weights, text=text, tokens=tokens)
    print(json.dumps(said, indent=2, ensure_ascii=False) if as_json else page(said))


def bench(
    mode: Annotated[str, Parameter(help="decode, prefill or batch.")],
    model: Annotated[str | None, Parameter(help="A model folder, or a .gguf file.")] = None,
    /,
    *,
    preset: str | None = None,
    random: Annotated[bool, Flag] = False,
    weights: str = "auto",
    cache: str = "auto",
    prompt_tokens: int = 512,
    tokens: int = 64,
    sequences: int = 8,
    context: int = 128,
    threads: int = 0,
    runs: int = 5,
    engine: Annotated[bool, Flag] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast a model decodes, reads prompts, and serves many texts at once.

    Parameters
    ----------
    preset
        A published shape (ayllu show lists them) instead of a model.
    random
        With weights made up on the spot; a preset has no others.
    weights
        float32, bfloat16, int8 or int4 (default: packed ones as they are, others in
        float32; int8 for a preset).
    cache
        float32, bfloat16 or int8.
    prompt_tokens
        Tokens of a prompt (prefill).
    tokens
        Steps of a run (decode, batch).
    sequences
        Texts at once (batch).
    context
        Tokens before the first step (decode, batch); with --engine a text begins with one.
    threads
        0: the physical cores.
    runs
        Runs, each beside a measurement of the machine's roof.
    engine
        Scheduling and sampling included.
    """
    from ayllu import bench as measuring

    if preset is not None and not random:
        raise UsageError(f"the preset {preset} is a shape without weights", fix="add --random")
    if random and preset is None:
        raise UsageError("--random is for a preset, and this model has weights", fix="leave it out")
    said = measuring.bench(
        mode, model, preset=preset, weights=weights, cache=cache, prompt_tokens=prompt_tokens, tokens=tokens,
        sequences=sequences, context=context, threads=threads, runs=runs, through_engine=engine,
    )  # fmt: skip
    print(json.dumps(said, indent=2, ensure_ascii=False) if as_json else measuring.page(said))


def eval_(
    model: AnyModel,
    /,
    *,
    tasks: str,
    data: Path | None = None,
    n: int | None = None,
    samples: int = 1,
    verifier: Path | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    thinking_budget: str | None = None,
    shots: int | None = None,
    ask_as: str = "auto",
    seed: int = 0,
    weights: str = "auto",
    device: str = "cpu",
    as_json: Json = False,
    out: Path | None = None,
) -> None:
    """Examine a model: official test sets, the project's own families, bits per byte of a text.

    Parameters
    ----------
    tasks
        Names with commas between, such as gsm8k,mmlu,stories_en; also official, families, and text:PATH for
        a file or a folder of texts.
    data
        The folder with the official sets, which the project doesn't ship (docs/evaluation.md).
    n
        So many rows of each task, by lot (default: all; 1,000 problems of a family).
    samples
        Answers to each question: pass@k and the answer that most give (maj@k).
    verifier
        A verifier's folder, or a run or model that has one: its best answer and its weighted vote, too.
    temperature
        Default: 0, and 0.7 with several samples.
    max_tokens
        Of one answer, thinking included (default: as the task has it, 512 for a family; for an official set
        and a model that converses 1,024 at the least).
    thinking_budget
        At most so many tokens of thinking before each answer; 0 answers at once. Several, such as 0,16,64:
        accuracy against the tokens thought.
    shots
        Worked examples (default: 0; of who is asked as text as the task has it, 4 for a family).
    ask_as
        text: to be gone on with, as lm-eval asks; chat: a conversation (default: auto, chat where the model
        has a chat format).
    seed
        Draws rows, examples, problems and samples.
    weights
        float32, bfloat16, int8 or int4 (default: packed ones as they are, others in
        float32, on a GPU bfloat16).
    device
        cpu, cuda, cuda:1 or auto.
    out
        Keep results in this file as tasks are done; called again, it goes on with what is missing.
    """
    from ayllu.evals.evaluation import budgets_of, evaluate_model
    from ayllu.evals.examine import ExamSettings
    from ayllu.evals.page import page
    from ayllu.machine import choose_device
    from ayllu.serve.options import checked_device

    budgets = budgets_of(thinking_budget) if thinking_budget is not None else ()
    settings = ExamSettings(n, samples, temperature, max_tokens, shots, seed, ask_as=ask_as)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    said = evaluate_model(
        model_folder(Path(model)), names, data=data, settings=settings, budgets=budgets, weights=weights,
        device=choose_device(checked_device(device, auto=True)), out=out, verifier=verifier,
    )  # fmt: skip
    print(json.dumps(said, indent=2, ensure_ascii=False) if as_json else page(said))


def report(run_folder: Annotated[Path, Parameter(name="RUN")], /, *, as_json: Json = False) -> None:
    """Write report.json and report.html of a run anew from what its stages recorded.

    Parameters
    ----------
    run_folder
        A run folder, such as runs/demo.
    """
    from ayllu.run import rewrite_report

    written = rewrite_report(run_folder)
    print((run_folder / "report.json").read_text(encoding="utf-8").rstrip() if as_json else written)


def version(*, as_json: Json = False) -> None:
    """Versions of Ayllu and of what it stands on."""
    import platform

    from ayllu.machine import package_version

    versions = {"ayllu": __version__, "python": platform.python_version()}
    versions |= {name: package_version(name) for name in ("torch", "tokenizers", "safetensors", "numpy")}
    print(json.dumps(versions, indent=2) if as_json else "\n".join(f"{k} {v}" for k, v in versions.items()))
