"""What one waits for and what it takes: `python bench/start.py`, or with --json.

Three things about a model with random packed weights (default: the shape of Llama 3.2 1B), each in processes
of its own, the interpreter's start and torch's import counted:

start    seconds from the process's start to the first token of a short text, the packed file warm
restart  a long conversation (10,000 tokens) is read and answered, the process is killed (SIGKILL), and a new
         one continues the conversation from the disk: seconds to the first token, each from its request on
memory   peak resident memory of reading 512 tokens and writing 64, beside the packed bytes and the cache

The first process of `start` isn't counted: it brings the files into the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tokenizers

from ayllu import machine
from ayllu.bench import random_packed
from ayllu.engine.quantize import save_packed
from ayllu.model import families
from ayllu.model.presets import preset

KINDS = ("start", "restart", "memory")

# Prints one line of JSON at the first token and one at the end; then it waits to be ended.
CHILD = """
import json, sys, time
wish = json.loads(sys.argv[1])
from ayllu.engine.engine import Engine, SamplingParams
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))
imported, bare = time.monotonic(), status("VmRSS")
engine = Engine(wish["folder"], cache_folder=wish["cache"], cache_bytes=wish["cache_bytes"])
opened = time.monotonic()
ids = wish["ids"] or engine.tokenizer.encode("Once upon a time")
sequence = engine.submit(ids, SamplingParams(max_tokens=wish["tokens"], temperature=0.0))
while not sequence.token_ids:
    engine.step()
first = time.monotonic()
begun = wish["begun"]
said = dict(seconds=first - begun, importing=imported - begun, opening=opened - imported,
            from_request=first - opened, cached=sequence.cached_tokens, prompt=len(ids))
while not sequence.finished:
    engine.step()
cache = len(engine.pool.references) * engine.executor.block_bytes
said |= dict(bare=bare, ids=sequence.token_ids, cache=cache)
said |= dict(peak=status("VmHWM"), anonymous=status("RssAnon"))
print(json.dumps(said), flush=True)
sys.stdin.read()
"""


def make_folder(folder: Path, shape: str, weights: str) -> int:
    """A model folder with random packed weights and a made-up vocabulary of the full size -> packed bytes."""
    config = preset(shape).config()
    packed = random_packed(config, weights)
    folder.mkdir()
    save_packed(packed, folder)
    values = families.family(config.family).config_to_hf(config)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    vocabulary(config.vocab_size).save(str(folder / "tokenizer.json"))
    return packed.nbytes


def vocabulary(size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE vocabulary with random merges."""
    rng = random.Random(0)
    pieces = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids, merges = {piece: number for number, piece in enumerate(pieces)}, []
    while len(ids) < size:
        left, right = rng.choice(pieces), rng.choice(pieces)
        if len(left + right) <= 12 and left + right not in ids:
            ids[left + right] = len(ids)
            pieces.append(left + right)
            merges.append((left, right))
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner


def run(
    folder: Path,
    *,
    ids: list[int] | None = None,
    tokens: int = 1,
    cache: Path | None = None,
    size: int = 1 << 30,
) -> dict[str, Any]:
    """One process, ended by SIGKILL once it has answered."""
    begun = time.monotonic()  # one clock for all processes
    wish = {
        "folder": str(folder),
        "ids": ids,
        "tokens": tokens,
        "cache": str(cache) if cache else None,
        "cache_bytes": size,
        "begun": begun,
    }
    # As installed: with compiled modules. The first process, which isn't counted, compiles them.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder.parent / "compiled")
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(wish)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if not said:
        raise SystemExit("the process that was to be measured failed")
    return dict(json.loads(said))


def spread(values: list[float]) -> dict[str, Any]:
    """Median, lowest, highest, all."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "all": values}


def start(folder: Path, runs: int) -> dict[str, Any]:
    """See above."""
    each = [run(folder) for _ in range(runs + 1)][1:]
    return {
        key: spread([one[key] for one in each]) for key in ("seconds", "importing", "opening", "from_request")
    }


def restart(folder: Path, runs: int, length: int, vocab_size: int, cache: Path) -> dict[str, Any]:
    """See above."""
    rng = random.Random(1)
    text = [rng.randrange(vocab_size) for _ in range(length)]
    first = run(folder, ids=text, tokens=32, cache=cache)
    text += first["ids"]
    seconds, whole, cached = [], [], []
    for _ in range(runs):
        question = [rng.randrange(vocab_size) for _ in range(40)]
        again = run(folder, ids=text + question, cache=cache)
        seconds.append(again["from_request"])
        whole.append(again["seconds"])
        cached.append(again["cached"])
    ratio = statistics.median(seconds) / first["from_request"]
    return {
        "prompt_tokens": length,
        "first": first["from_request"],
        "continued": spread(seconds),
        "ratio": ratio,
        "continued_with_the_process_start": spread(whole),
        "ratio_with_the_process_start": statistics.median(whole) / first["seconds"],
        "tokens_from_the_disk": cached,
        "cache_folder_bytes": sum(path.stat().st_size for path in cache.glob("*/*")),
    }


def memory(folder: Path, packed_bytes: int, vocab_size: int) -> dict[str, Any]:
    """See above."""
    rng = random.Random(2)
    ids = [rng.randrange(vocab_size) for _ in range(512)]
    said = run(folder, ids=ids, tokens=64, size=64 << 20)
    over = said["peak"] - packed_bytes - said["cache"]
    return {
        "packed_bytes": packed_bytes,
        "cache_bytes": said["cache"],
        "peak_bytes": said["peak"],
        "interpreter_and_torch_bytes": said["bare"],
        "anonymous_bytes": said["anonymous"],
        "beyond_weights_and_cache": over,
        "of_the_packed_bytes": over / packed_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), choices=[*KINDS, []], metavar="KIND")
    parser.add_argument("--preset", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--length", type=int, default=10_000, help="tokens of the conversation")
    parser.add_argument("--folder", type=Path, help="where to put the model (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    vocab_size = preset(wish.preset).config().vocab_size
    said: dict[str, Any] = {"preset": wish.preset, "weights": wish.weights}
    with tempfile.TemporaryDirectory(dir=wish.folder) as temporary:
        folder = Path(temporary) / "model"
        packed_bytes = make_folder(folder, wish.preset, wish.weights)
        os.sync()  # writing back 1.3 GB is not what is measured
        if "start" in wish.kinds:
            said["start"] = start(folder, wish.runs)
        if "memory" in wish.kinds:
            run(folder)  # compiles the modules
            said["memory"] = memory(folder, packed_bytes, vocab_size)
        if "restart" in wish.kinds:
            cache = Path(temporary) / "cache"
            run(folder)
            said["restart"] = restart(folder, wish.runs, wish.length, vocab_size, cache)
    said["machine"] = machine.describe()
    if wish.json:
        print(json.dumps(said, indent=2))
        return
    if found := said.get("start"):
        parts = ", ".join(
            f"{key} {found[key]['median']:.2f}" for key in ("importing", "opening", "from_request")
        )
        print(f"first token after {found['seconds']['median']:.2f} s ({parts})")
    if found := said.get("memory"):
        print(
            f"peak {found['peak_bytes'] / 1e6:,.0f} MB: packed {found['packed_bytes'] / 1e6:,.0f}, cache",
            end="",
        )
        print(
            f" {found['cache_bytes'] / 1e6:,.0f}, the rest {found['of_the_packed_bytes']:.1%} of the packed"
        )
    if found := said.get("restart"):
        print(
            f"{found['prompt_tokens']} tokens: first token after {found['first']:.2f} s; after a restart ",
            end="",
        )
        print(f"{found['continued']['median']:.2f} s ({found['ratio']:.1%})")


if __name__ == "__main__":
    main()
