"""What speculation gains where a text copies, and costs where it doesn't: `python bench/speculate.py MODEL`

MODEL (one or more) is a model folder, or a preset's name, which gets random weights. Each prompt is continued
greedily with speculation and without, in turn, in one process: medians of tokens a second, and the texts must
be the same.

A folder's prompts: a passage that is said three times and begun again (copying), and a sentence to be
continued. Random weights don't copy, so there they are arranged: nothing is added to the residual stream
(attention and MLP are computed as ever, but their last matrices are zero), and the head names the token that
follows in a ring of 48, which is what copying looks like to the engine; a step costs what it costs with any
weights. The other prompt has the random weights as they come.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from ayllu import machine
from ayllu.engine.engine import Engine
from ayllu.engine.packed import FORMATS, PackedModel, pack_model
from ayllu.engine.request import SamplingParams
from ayllu.model.decoder import Decoder
from ayllu.model.presets import preset
from ayllu.native import available
from ayllu.text.tokenizer import Tokenizer

PASSAGE = "The herds stay together: ten llamas, four alpacas and a dog. Each family counts its own at night. "
SENTENCE = "Once upon a time there was a village high in the mountains, and"
RING = 48  # tokens


def random_model(name: str, *, copying: bool) -> Decoder:
    """A preset's shape with random weights; `copying`: it follows rings of tokens."""
    config = preset(name).config()
    if copying:
        config = replace(config, tied=False)
    torch.manual_seed(0)
    model = Decoder(config).requires_grad_(False).eval()
    block_N = torch.randn(1 << 20)
    for key, weight in model.named_parameters():
        if weight.dim() >= 2:
            weight.view(-1).copy_(block_N.repeat(-(-weight.numel() // len(block_N)))[: weight.numel()])
            weight *= 0.02
            if copying and key.endswith(("attention.out.weight", "mlp.down.weight", "mlp.down")):
                weight.zero_()
    if copying:
        torch.nn.init.normal_(model.embedding.weight)  # repeated rows would be near ties
        token_V = torch.arange(config.vocab_size)
        start_V = token_V // RING * RING
        size_V = (config.vocab_size - start_V).clamp(max=RING)
        follower_V = start_V + (token_V - start_V + 1) % size_V
        model.head.weight[follower_V] = model.embedding.weight
    return model


def cases(name: str) -> Iterator[tuple[str, Decoder | Path, list[int], Tokenizer | None]]:
    """(what, the model, the prompt, its tokenizer), the copying one first."""
    folder = Path(name)
    if folder.is_dir():
        tokenizer = Tokenizer.load(folder)
        copy = tokenizer.encode(PASSAGE * 3 + PASSAGE[:20])
        yield "copies", folder, [*tokenizer.prefix, *copy], tokenizer
        yield "doesn't copy", folder, [*tokenizer.prefix, *tokenizer.encode(SENTENCE)], tokenizer
        return
    ring = list(range(10 * RING, 11 * RING))
    yield "copies", random_model(name, copying=True), ring + ring[:8], None
    yield "doesn't copy", random_model(name, copying=False), ring, None


def packed_once(model: Decoder | Path, weights: str) -> Decoder | PackedModel | Path:
    """What both engines compute with: packed here, if anything is to be packed."""
    if isinstance(model, Decoder) and weights in FORMATS and available():
        return pack_model(model, weights)
    return model


def measure(engines: dict[bool, Engine], prompt: list[int], tokens: int, runs: int) -> dict[str, object]:
    """Both engines in turn, speculating or not; the first runs warm up."""
    params = SamplingParams(max_tokens=tokens, temperature=0)
    speeds: dict[bool, list[float]] = {False: [], True: []}
    texts = set()
    for run in range(runs + 1):
        for fast, engine in engines.items():
            sequence = engine.submit(prompt, params)
            while not sequence.token_ids:
                engine.step()
            begun, first = time.perf_counter(), len(sequence.token_ids)
            while not sequence.finished:
                engine.step()
            if run:
                seconds = time.perf_counter() - begun
                speeds[fast].append((len(sequence.token_ids) - first) / seconds)
            texts.add(tuple(sequence.token_ids))
    stats = engines[True].stats()
    without, with_it = statistics.median(speeds[False]), statistics.median(speeds[True])
    return {
        "tokens_per_second": without,
        "speculating": with_it,
        "ratio": with_it / without,
        "same_text": len(texts) == 1,
        "guessed": stats.drafted // (runs + 1),
        "accepted": stats.accepted // (runs + 1),
        "distinct_tokens": len(set(next(iter(texts)))),
        "all": {"without": speeds[False], "speculating": speeds[True]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folders, or presets")
    parser.add_argument("--weights", default="auto", help="as for the engine (default auto)")
    parser.add_argument("--draft", type=Path, help="a smaller model's folder instead of lookup")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5, help="runs that count (default 5)")
    parser.add_argument("--copies-only", action="store_true", help="leave out the text that doesn't copy")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    results = []
    for name in wish.models:
        for what, found, prompt, tokenizer in islice(cases(name), 1 if wish.copies_only else None):
            model = packed_once(found, wish.weights)
            del found  # a large model in float32
            engines = {
                fast: Engine(
                    model,
                    weights=wish.weights,
                    tokenizer=tokenizer,
                    max_sequences=1,
                    prefix_cache=False,
                    speculate=(wish.draft or "ngram") if fast else None,
                )
                for fast in (False, True)
            }
            room = min(engine.context_length for engine in engines.values()) - len(prompt)
            result = measure(engines, prompt, min(wish.tokens, room), wish.runs)
            results.append({"model": Path(name).name, "text": what, **result})
            if not wish.json:
                print(
                    f"{Path(name).name}, {what}: {result['tokens_per_second']:.1f} tokens/s, speculating "
                    f"{result['speculating']:.1f} ({result['ratio']:.2f} x), {result['accepted']} of "
                    f"{result['guessed']} guesses right, "
                    + ("the same text" if result["same_text"] else "NOT THE SAME TEXT")
                )
    if wish.json:
        print(json.dumps({"results": results, "machine": machine.describe()}, indent=2))
    if not all(result["same_text"] for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
