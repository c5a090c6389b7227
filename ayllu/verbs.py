"""The verbs of the command line that make and use models, each a typed function that cyclopts parses for.
Those that examine are in verbs_examine.py; cli.py has the list of all.

Imports stand inside the verbs: parsing needs neither torch nor a model.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ayllu.errors import CutOffError, RequestError, UsageError
from ayllu.serve.options import HOT, ChoiceOptions, EngineOptions

if TYPE_CHECKING:
    from ayllu.talk import Talk

Flag = Parameter(negative=())
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print the result as JSON.")]
_ANY = Parameter(help="A model folder, a run folder, a name under models/, a .gguf file.")
Model = Annotated[Path, _ANY]
AnyModel = Annotated[str, _ANY]
EngineFlags = Annotated[EngineOptions, Parameter(name="*")]
ChoiceFlags = Annotated[ChoiceOptions, Parameter(name="*")]
_USUAL, _ONE = EngineOptions(), ChoiceOptions()


def make(
    recipe: Path,
    /,
    *,
    until: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    threads: int | None = None,
    quiet: Annotated[bool, Flag] = False,
    as_json: Json = False,
) -> None:
    """Make a model: all stages of a recipe, from text to a released model folder.

    Stages that are done are skipped; a stage that was broken off goes on where it stopped.

    Parameters
    ----------
    recipe
        A recipe file, such as recipes/demo.toml.
    until
        The last stage to do: (guard,) text, tokenizer, pretrain, sft, (expert,) rl, (verifier,)
        (distill,) eval or release.
    out
        The run folder (default: runs/NAME).
    seed
        Overrules the recipe's seed.
    threads
        Overrules the recipe's threads (0: the physical cores).
    quiet
        No progress, only the result.
    """
    from ayllu.run import make as make_run

    done = make_run(recipe, until=until, out=out, seed=seed, threads=threads, quiet=quiet)
    if as_json:
        print(json.dumps(done, indent=2))
        return
    from ayllu.progress import clock

    if not done["finished"]:
        print(f"{done['run']}: {', '.join(done['stages'])} done, {clock(done['wall_seconds'])} in all")
        return
    me = own_name()
    print(f"The model is in {done['model']}, made in {clock(done['wall_seconds'])}; report: {done['report']}")
    print(f'  ask it     {me} run {done["run"]} "What is 417 + 385?"')
    print(f"  chat       {me} chat {done['run']}")
    print(f"  serve it   {me} serve {done['run']}")


def run(
    model: Model,
    prompt: str | None = None,
    /,
    *,
    max_tokens: int | None = None,
    thinking_budget: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    tools: Annotated[bool, Parameter(name="--tools", negative="--no-tools")] = True,
    tool: Annotated[list[str] | None, Parameter(negative=())] = None,
    quiet: Annotated[bool, Flag] = False,
    record: Path | None = None,
    replay: Path | None = None,
    as_json: Json = False,
    choice: ChoiceFlags = _ONE,
    engine: EngineFlags = _USUAL,
) -> None:
    """Answer one prompt: the answer to stdout, thinking and tool calls to stderr.

    Parameters
    ----------
    prompt
        The question; `-` or nothing reads it from stdin.
    max_tokens
        At most so many tokens, thinking included (default: what the context holds).
    thinking_budget
        At most so many tokens of thinking before the answer, besides the two that mark it; 0: answer at once.
    temperature
        0 always takes the likeliest token (default: as the model's generation_config.json says; 0.7 for
        several answers).
    seed
        Makes sampling repeatable.
    tools
        Let the model call its tools.
    tool
        Offer a further tool: clock, units, sql=FILE, documents=FOLDER, ... (docs/tools.md); repeatable.
    quiet
        Only the answer, no thinking.
    record
        Write the turn to this new file: question, sampling, tools, what each call gave.
    replay
        Answer the turn of such a file again, without running its calls; an error if it comes out otherwise.
    """
    from ayllu.recording import Recording
    from ayllu.talk import load_talk
    from ayllu.terminal import one_answer, read_prompt

    k = choice.answers(temperature)
    if k and temperature is None:
        temperature = HOT
    own = [prompt, max_tokens, thinking_budget, temperature, seed, tool, record, None if tools else tools]
    recording = Recording(record, replay, own=any(value is not None for value in own), answers=k)
    turn, seed, engine = recording.replayed, recording.seed(seed), recording.engine(engine)
    folder = model_folder(model)
    question = read_prompt(prompt, folder) if turn is None else turn.prompt
    wish: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    wish |= {"tools": tools, "further": tool or (), "budget": thinking_budget, "replay": turn}
    with load_talk(folder, engine=_named(engine), **wish) as talk:
        recording.begin(talk, question)
        if k:
            said = _chosen(talk, question, k, choice, engine.device or "cpu", quiet=quiet, silent=as_json)
        else:
            said = one_answer(talk, question, quiet=quiet, silent=as_json, on_done=recording.done)
    if as_json:
        print(json.dumps(said, indent=2, ensure_ascii=False))
    recording.finish(talk, question, said["answer"], engine)
    if said["finish_reason"] == "length":
        if not said["answer"].strip():
            raise CutOffError(said["tokens"], talk.params.max_tokens)
        print("(cut off: no room or no tokens were left)", file=sys.stderr)


def _chosen(
    talk: Talk, prompt: str, k: int, choice: ChoiceOptions, device: str, *, quiet: bool, silent: bool
) -> dict[str, Any]:
    """Answer k times and paint the chosen answer; what happened, as plain values (`chosen`: how).

    UsageError for a model without a chat format, RequestError without a prompt, CutOffError when no answer
    came to its end, and what reading a verifier raises.
    """
    from ayllu.reason.foreign import Continuation
    from ayllu.reason.verify import check_fits, load_verifier
    from ayllu.reason.vote import agreeing, several
    from ayllu.terminal import paint_answer

    if isinstance(talk.chat, Continuation):
        raise UsageError(
            "this model has no chat format: texts that it goes on with can't be voted on",
            fix="leave --votes, --best-of and --verifier out",
        )
    judge = None
    if choice.verifier is not None:
        judge = load_verifier(choice.verifier, device)
        check_fits(judge, talk.engine.vocab_size)
    if not prompt.strip():
        raise RequestError("the prompt is empty")
    begun = talk.begin(prompt)
    answers = several(
        talk.engine,
        talk.chat,  # type: ignore[arg-type]  # TemplateChat has the same methods
        begun,
        talk.toolbox,
        talk.bounded(begun),
        k,
        rules=talk.rules,
        constrain=talk.constrain,
    )
    texts = [a.told or talk.chat.answer(a.transcript) if a.finish_reason == "stop" else None for a in answers]
    scores = judge.score([answer.transcript for answer in answers]) if judge is not None else None
    place, agree = agreeing(texts, scores, best=choice.best_of is not None)
    if place is None:
        raise CutOffError(max(answer.tokens for answer in answers), talk.params.max_tokens)
    said = paint_answer(talk, begun, answers[place], quiet=quiet, silent=silent)
    by = "most answers" if scores is None else "scores" if choice.best_of is None else "the best score"
    rows = [{"answer": text} for text in texts]
    if scores is not None:
        rows = [{**row, "score": round(score, 4)} for row, score in zip(rows, scores, strict=True)]
    if not silent:
        note = f"{agree} of {k} agree"
        if scores is not None:
            note += f"; chosen by {by}, it has {scores[place]:.2f}"
        print(f"({note})", file=sys.stderr)
    return {**said, "chosen": {"by": by, "agree": agree, "of": k, "answers": rows}}


def chat(
    model: Model,
    /,
    *,
    max_tokens: int | None = None,
    thinking_budget: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    tools: Annotated[bool, Parameter(name="--tools", negative="--no-tools")] = True,
    tool: Annotated[list[str] | None, Parameter(negative=())] = None,
    engine: EngineFlags = _USUAL,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves.

    Parameters
    ----------
    max_tokens
        At most so many tokens an answer, thinking included.
    thinking_budget
        At most so many tokens of thinking before each answer; 0 answers at once.
    temperature
        0 always takes the likeliest token (default: as the model's generation_config.json says).
    seed
        Makes sampling repeatable.
    tools
        Let the model call its tools.
    tool
        Offer a further tool: clock, units, sql=FILE, documents=FOLDER, ... (docs/tools.md); repeatable.
    """
    from ayllu.talk import load_talk
    from ayllu.terminal import converse

    folder = model_folder(model)
    wish = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "engine": _named(engine)}
    with load_talk(
        folder,
        tools=tools,
        further=tool or (),
        budget=thinking_budget,
        conversing=True,
        **wish,  # type: ignore[arg-type]
    ) as talk:
        converse(talk)


def serve(
    model: Model, /, *, host: str = "127.0.0.1", port: int = 8080, engine: EngineFlags = _USUAL
) -> None:
    """Serve a model over HTTP (OpenAI's chat completions) until Ctrl-C.

    Parameters
    ----------
    host
        Address to listen on. One that others can reach needs the key AYLLU_API_KEY (at least 16 characters).
    port
        Port to listen on; 0 takes a free one.
    """
    from ayllu.serve.app import serve as serve_model

    serve_model(model_folder(model), host, port, options=_named(engine))


def import_(
    source: Annotated[str, Parameter(help="A .gguf file, or a folder in Meta's or Hugging Face's form.")],
    out: Path,
    /,
    *,
    dtype: str = "auto",
    as_json: Json = False,
) -> None:
    """Import a model: any form that is read becomes a Hugging Face folder.

    Parameters
    ----------
    out
        The folder to make.
    dtype
        float32, bfloat16 or float16 (default: as stored; packed weights become float32).
    """
    from ayllu.exchange import import_model, sentence

    said = import_model(source, out, dtype=dtype)
    print(json.dumps(said, indent=2, ensure_ascii=False) if as_json else sentence(said))


def export(
    model: AnyModel,
    out: Path,
    /,
    *,
    form: Annotated[str, Parameter(name="--format")] = "auto",
    kind: str | None = None,
    as_json: Json = False,
) -> None:
    """Export a model for other programs: one GGUF file (llama.cpp), or a Hugging Face folder.

    Parameters
    ----------
    out
        The file (or, for hf, the folder) to make; it must not exist.
    form
        gguf or hf (default: gguf for a name that ends in .gguf, else hf).
    kind
        How a GGUF file holds the matrices: F16 (default), BF16, Q8_0 or Q4_0.
    """
    from ayllu.exchange import export_model, sentence

    said = export_model(model, out, form=form, kind=kind)
    print(json.dumps(said, indent=2, ensure_ascii=False) if as_json else sentence(said))


def model_folder(name: Path) -> Path:
    from ayllu.models import resolve_model

    return resolve_model(str(name))


def _named(engine: EngineOptions) -> EngineOptions:
    """With the folder of the model that guesses."""
    if engine.speculate in (None, "none", "ngram"):
        return engine
    return replace(engine, speculate=str(model_folder(Path(str(engine.speculate)))))


def own_name() -> str:
    """How this program was called, so that a printed command can be copied."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{_near(Path(sys.executable))} -m ayllu"
    found = shutil.which(called.name)
    if found and Path(found).resolve() == called.resolve():
        return called.name
    return _near(called.absolute())


def _near(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
