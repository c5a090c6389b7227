"""Is greedy text the same alone, in a batch of 64, and after a prefix hit? `python bench/same_text.py`

1,000 prompts of 2 to 160 tokens, a third of which begin alike, are continued greedily in five ways by the
native executor: each alone; 64 at a time, with prompts read in small pieces beside others that decode; alone
and 64 at a time with all full blocks of the prompt taken from the cache; and, with --disk, in a new engine
from the cache on disk. A prompt counts as the same when the token ids and the log-probabilities (bit for bit)
of all ways are. It ends with exit code 1 unless all are.

MODEL is a folder (default: the stories260K of the tests) or "random", a made-up shape of 5 M parameters.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ayllu import machine
from ayllu.engine.batch import BLOCK
from ayllu.engine.engine import Engine
from ayllu.engine.packed import PackedModel, pack_model
from ayllu.engine.quantize import pack_files
from ayllu.engine.request import Completion
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder

STORIES = Path(__file__).parents[1] / "tests" / "fixtures" / "stories260K"
RANDOM = ModelConfig(256, 4096, (dense_layer(8, 2, 32, 704),) * 4, 1024)
TOGETHER = 64  # sequences
PIECES = 100  # prompt tokens of a step, so that nearly all prompts are read in pieces of odd sizes
LONGEST = 160  # tokens of a prompt


def opened(name: str, weights: str) -> PackedModel:
    """The folder's weights, or random ones that make clear favourites."""
    if name != "random":
        return pack_files(name, weights)
    generator = torch.Generator().manual_seed(0)
    model = Decoder(RANDOM).requires_grad_(False).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return pack_model(model, weights)


def prompts_of(count: int, vocab_size: int, longest: int = LONGEST) -> list[list[int]]:
    """Random ids; every third prompt begins with one of four shared texts."""
    rng = random.Random(0)
    shared = [[rng.randrange(vocab_size) for _ in range(longest // 2)] for _ in range(4)]
    own = [[rng.randrange(vocab_size) for _ in range(rng.randint(1, longest // 2))] for _ in range(count)]
    return [
        (shared[rng.randrange(4)] if index % 3 == 0 else own[rng.randrange(count)]) + prompt
        for index, prompt in enumerate(own)
    ]


def ways(
    packed: PackedModel, prompts: list[list[int]], tokens: int, cache: str, disk: Path | None
) -> Iterator[tuple[str, list[Completion]]]:
    """(how, the completions of all prompts)"""
    wish: dict[str, Any] = {"max_tokens": tokens, "temperature": 0.0}
    size = 1 << 28

    def batches(engine: Engine) -> list[Completion]:
        groups = (prompts[i : i + TOGETHER] for i in range(0, len(prompts), TOGETHER))
        return [done for group in groups for done in engine.generate(group, **wish)]

    def one_by_one(engine: Engine) -> list[Completion]:
        return [engine.generate([prompt], **wish)[0] for prompt in prompts]

    with Engine(packed, cache=cache, cache_bytes=size, max_sequences=1, prefix_cache=False) as engine:
        yield "alone", one_by_one(engine)
    with Engine(packed, cache=cache, cache_bytes=size, prefill_tokens=PIECES, prefix_cache=False) as engine:
        yield f"in a batch of {TOGETHER}", batches(engine)
    with Engine(packed, cache=cache, cache_bytes=size, prefill_tokens=PIECES, cache_folder=disk) as engine:
        batches(engine)  # fills the cache
        yield f"in a batch of {TOGETHER} with a prefix hit", batches(engine)
        yield "alone with a prefix hit", one_by_one(engine)
    if disk is not None:
        with Engine(packed, cache=cache, cache_bytes=size, cache_folder=disk) as engine:
            yield "after a restart, from the disk", batches(engine)


def compare(
    packed: PackedModel,
    prompts: list[list[int]],
    *,
    tokens: int,
    cache: str = "auto",
    disk: Path | None = None,
) -> dict[str, Any]:
    """How many prompts come out the same in every way, and how many came from the cache as far as can be."""
    same: dict[str, int] = {}
    hits: dict[str, int] = {}
    first: list[Completion] = []
    all_same = [True] * len(prompts)
    for how, done in ways(packed, prompts, tokens, cache, disk):
        first = first or done
        equal = [
            (a.token_ids, a.logprobs) == (b.token_ids, b.logprobs) for a, b in zip(first, done, strict=True)
        ]
        all_same = [before and now for before, now in zip(all_same, equal, strict=True)]
        same[how] = sum(equal)
        whole = [(len(prompt) - 1) // BLOCK * BLOCK for prompt in prompts]
        hits[how] = sum(0 < c.cached_tokens == w for c, w in zip(done, whole, strict=True))
    return {
        "prompts": len(prompts),
        "identical": sum(all_same),
        "same_as_alone": same,
        "prompts_wholly_from_the_cache": hits,
        "distinct_texts": len({tuple(c.token_ids) for c in first}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(STORIES), metavar="MODEL", help="a folder, or random")
    parser.add_argument("--weights", nargs="+", default=["float32", "int8"])
    parser.add_argument("--cache", default="auto", help="float32, bfloat16 or int8 (default: by the weights)")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer (default 48)")
    parser.add_argument("--disk", action="store_true", help="from the cache on disk, too")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    results = []
    for weights in wish.weights:
        packed, begun = opened(wish.model, weights), time.perf_counter()
        prompts = prompts_of(wish.prompts, packed.config.vocab_size)
        with tempfile.TemporaryDirectory() as folder:
            disk = Path(folder) / "cache" if wish.disk else None
            result = compare(packed, prompts, tokens=wish.tokens, cache=wish.cache, disk=disk)
        result |= {"weights": weights, "tokens": wish.tokens, "seconds": time.perf_counter() - begun}
        results.append(result)
        if not wish.json:
            print(f"{weights}: {result['identical']} of {result['prompts']} the same in all ways", end="")
            print(f" ({result['distinct_texts']} different texts, {result['seconds']:.0f} s)")
    if wish.json:
        said = {"model": Path(wish.model).name, "results": results, "machine": machine.describe()}
        print(json.dumps(said, indent=2))
    if any(result["identical"] != result["prompts"] for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
