"""`ayllu quantize`: a model folder with packed weights, and what they cost in quality.

The folder is a model like any other for run, chat, serve and bench. Its card and quantization.json say how
far it is from the float32 model on text that the model was not trained on: the held-out part of the embedded
corpus and, for a model that knows our conversations, worked problems of the test split.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayllu.errors import InputNotFoundError, UsageError
from ayllu.exchange import copy_beside, find_plain, write_from_gguf
from ayllu.files import new_folder, own_file, write_json, write_text

if TYPE_CHECKING:
    from ayllu.engine.quality import Text
    from ayllu.text.tokenizer import Tokenizer

CORPUS = Path(__file__).parents[1] / "data" / "default"
KINDS = ("int8", "int4")
FAMILIES = ("arithmetic", "calculator", "countdown3", "dialogue")
_TITLES = {
    "held_out_text": "held-out text",
    "conversations": "worked conversations",
    "text": "the given text",
}
_CONVERSATIONS = 200
_CHANCE = "worse than chance would, so that the change of perplexity there says nothing"


def quantize_model(
    name: str, out: Path, *, weights: str = "int8", text: Path | None = None, tokens: int = 16_384
) -> dict[str, Any]:
    """Write the model `name` with packed weights as the folder `out`, which must not exist.

    `text`: a file or folder to measure on instead of the embedded corpus; `tokens`: of each text, about.
    Returns the content of quantization.json. Errors: UsageError, RequestError for a decoder that the native
    step can't run, those of `load_model`.
    """
    from ayllu.engine.quality import compare
    from ayllu.engine.quantize import open_packed, pack_files, quantize_files, verify_packed

    if weights not in KINDS:
        raise UsageError(f"--weights {weights} is not known", fix=f"give one of {', '.join(KINDS)}")
    if tokens < 2:
        raise UsageError(f"--tokens {tokens} is too few", fix="give some thousands")
    source = find_plain(name, "packed again")
    with new_folder(out, replace=False) as folder:
        _beside(source, folder)
        file = quantize_files(source, weights, folder)
        verify_packed(folder)
        texts = _texts(source, folder, text)
        packed, reference = open_packed(folder), _reference(source)
        exact = pack_files(source, reference)
        quality = {kind: compare(exact, packed, found, most=tokens) for kind, found in texts.items()}
        said: dict[str, Any] = {
            "model": str(out),
            "weights": weights,
            "reference": reference,
            "bytes_before": source.stat().st_size if source.is_file() else _size(source),
            "bytes_after": file.stat().st_size,
            "bits_per_weight": 8 * packed.nbytes / _numbers(packed),
            "formats": _formats(packed),
            "quality": quality,
        }
        write_json(folder / "quantization.json", {key: v for key, v in said.items() if key != "model"})
        card = folder / "README.md"
        before = card.read_text(encoding="utf-8") if card.is_file() else f"# {out.name}\n"
        write_text(card, before.rstrip() + "\n\n" + _section(said))
    return said


def _beside(source: Path, folder: Path) -> None:
    """All that belongs to the model but its weights."""
    if source.is_file():
        write_from_gguf(source, folder)
        return
    copy_beside(source, folder)
    if (source / "config.json").is_file():
        shutil.copyfile(own_file(source, "config.json"), folder / "config.json")
    else:
        raise UsageError(
            f"{source} is in Meta's form",
            fix="import it first: ayllu import MODEL FOLDER, then quantise that",
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _numbers(packed: Any) -> int:
    matrices = sum(m.rows * m.columns * m.count for m in packed.matrices.values())
    return int(matrices + sum(v.numel() for v in packed.vectors.values()))


def _formats(packed: Any) -> dict[str, int]:
    """Weights in each format."""
    from ayllu.engine.packed import FORMATS

    names = {number: name for name, number in FORMATS.items()}
    out: dict[str, int] = {}
    for m in packed.matrices.values():
        out[names[m.format]] = out.get(names[m.format], 0) + m.rows * m.columns * m.count
    return out


def _reference(source: Path) -> str:
    """float32 where it fits into half of the memory, else bfloat16."""
    from ayllu import machine
    from ayllu.model.counts import weight_bytes
    from ayllu.model.weights import load_config

    return (
        "float32" if weight_bytes(load_config(source), "float32") < machine.memory_bytes() / 2 else "bfloat16"
    )


def _begin(folder: Path) -> list[int]:
    """The token that begins a text, where the model has one."""
    from ayllu.files import read_json

    bos = read_json(folder / "config.json").get("bos_token_id")
    return [bos] if type(bos) is int else []


# ---- texts
def _texts(source: Path, folder: Path, given: Path | None) -> dict[str, list[Text]]:
    """The texts to measure on, by kind."""
    from ayllu.engine.quality import Text
    from ayllu.text.readers import read_corpus
    from ayllu.text.tokenizer import Tokenizer

    tokenizer, begin = Tokenizer.load(folder), _begin(folder)

    def plain(texts: list[str]) -> list[Text]:
        if not any(texts):
            raise UsageError("there is no text to measure on", fix="name one with --text")
        return [Text(begin + tokenizer.encode(text)) for text in texts if text]

    if given is not None:
        if not given.exists():
            raise InputNotFoundError(f"there is no {given}", fix="name a file or folder of text")
        documents = read_corpus([given], licence="private").documents
        return {"text": plain([document.text for document in documents])}
    out = {"held_out_text": plain(_held_out(source))}
    if "<|user|>" in tokenizer.control:
        out["conversations"] = _conversations(tokenizer)
    return out


def _held_out(source: Path) -> list[str]:
    """Of the run that the model was made in, or of the embedded corpus."""
    from ayllu.text.mix import hold_out
    from ayllu.text.readers import read_corpus
    from ayllu.text.stage import TextSettings, read_kept

    run = source.parent / "text"
    if (run / "documents.jsonl").is_file():
        return [document.text for document in read_kept(run, "heldout")]
    if not CORPUS.is_dir():
        raise UsageError("the embedded corpus is not here", fix="name a text to measure on with --text")
    documents = read_corpus([CORPUS]).documents
    held = hold_out(documents, share=TextSettings().heldout, seed=0).heldout
    return [document.text for document in documents if document.id in held]


def _conversations(tokenizer: Tokenizer) -> list[Text]:
    """Worked problems of the test split, of families that every model of ours has practised; what the model
    has to write counts."""
    import numpy as np

    from ayllu.engine.quality import Text
    from ayllu.reason.practice import TASKS, draw_level
    from ayllu.reason.task import conversation
    from ayllu.reason.transcript import Chat

    rng, chat = np.random.default_rng(0), Chat(tokenizer)
    out = []
    for index in range(_CONVERSATIONS):
        task = TASKS[FAMILIES[index % len(FAMILIES)]]
        problem = task.problem(rng, draw_level(rng, task), "test")
        transcript = conversation(chat, problem, task.trace(problem, rng))
        out.append(Text(transcript.ids(), transcript.sampled()))
    return out


# ---- for people
def _section(said: Mapping[str, Any]) -> str:
    """Of the card."""
    lines = [
        "## Quantised weights",
        "",
        f"Packed by Ayllu as {said['weights']} ({said['bits_per_weight']:.2f} bits a weight, "
        f"{said['bytes_after'] / 1e6:,.1f} MB; before {said['bytes_before'] / 1e6:,.1f} MB). "
        f"Against the {said['reference']} model:",
        "",
        "| text | tokens | perplexity | packed | change (95 %) | KL mean | KL 99 % | same first choice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, q in said["quality"].items():
        low, high = q["perplexity_change_95"]
        lines.append(
            f"| {_TITLES[kind]} | {q['tokens']:,} | {q['perplexity_float32']:.3f} | {q['perplexity']:.3f} "
            f"| {q['perplexity_change']:+.2%} ({low:+.2%} to {high:+.2%}) "
            f"| {q['kl_mean']:.5f} | {q['kl_p99']:.4f} | {q['top1_agreement']:.2%} |"
        )
    if chance := [_TITLES[kind] for kind, q in said["quality"].items() if q["worse_than_chance"]]:
        lines += ["", f"The model foretells {' and '.join(chance)} {_CHANCE}."]
    return "\n".join(lines) + "\n"


def page(said: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    before, after = said["bytes_before"] / 1e6, said["bytes_after"] / 1e6
    lines = [
        f"{said['model']}: {said['weights']}, {said['bits_per_weight']:.2f} bits a weight, "
        f"{after:,.1f} MB (before {before:,.1f} MB)"
    ]
    for kind, q in said["quality"].items():
        low, high = q["perplexity_change_95"]
        lines += [
            f"on {_TITLES[kind]}, {q['tokens']:,} tokens, against {said['reference']}:",
            f"  perplexity      {q['perplexity']:.3f} instead of {q['perplexity_float32']:.3f}, "
            f"{q['perplexity_change']:+.2%} (95 %: {low:+.2%} to {high:+.2%})",
            f"  KL divergence   {q['kl_mean']:.5f} nats a token, 99th percentile {q['kl_p99']:.4f}",
            f"  first choice    the same for {q['top1_agreement']:.2%} of the tokens",
        ]
        lines += [f"  the model foretells it {_CHANCE}"] * q["worse_than_chance"]
    return "\n".join(lines)
