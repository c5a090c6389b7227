"""Do cancelled requests leave anything behind? `python bench/cancels.py`, or with --json.

10,000 sequences are cancelled at random moments: waiting, while their prompt is read, while they write;
several completions of one prompt, urgent ones, with shared beginnings and with guesses under way, in a cache
so small that sequences are pushed out. After each cancel the blocks that are held must be those of the tables
of the sequences that are left, no more and no fewer; at the end none.
It ends with exit code 1 unless that is so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import time
from pathlib import Path
from typing import Any

from ayllu import machine
from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams, Sequence
from ayllu.errors import QueueFullError

STORIES = Path(__file__).parents[1] / "tests" / "fixtures" / "stories260K"
BLOCKS = 80  # of the cache: five texts of the longest kind


def leaked(engine: Engine) -> int:
    """Blocks whose count of holders is not the number of tables that they stand in."""
    references = [0] * len(engine.pool.references)
    for sequence in [*engine.scheduler.running.values(), *engine.scheduler.waiting]:
        for block in sequence.table:
            references[block] += 1
    wrong = sum(a != b for a, b in zip(references, engine.pool.references, strict=True))
    spare = [*engine.pool.free, *engine.pool.idle]
    return wrong + len(spare) - len(set(spare)) + abs(references.count(0) - len(spare))


def cancel_many(engine: Engine, cancels: int, seed: int = 0) -> dict[str, Any]:
    """So many cancels at random moments."""
    chance = random.Random(seed)
    shared = [[chance.randrange(engine.vocab_size) for _ in range(60)] for _ in range(3)]
    live: list[Sequence] = []
    done = lost = 0
    when = {"waiting": 0, "reading": 0, "writing": 0}
    while done < cancels:
        draw = chance.random()
        if draw < 0.25:
            own = [chance.randrange(engine.vocab_size) for _ in range(chance.randrange(1, 120))]
            params = SamplingParams(
                max_tokens=chance.randrange(1, 80),
                n=chance.choice([1, 1, 1, 4]),
                priority=chance.choice([0, 0, 1]),
                cache_salt=chance.choice(["", "x"]),
            )
            with contextlib.suppress(QueueFullError):
                live += engine.submit_many(chance.choice(shared) * chance.randrange(2) + own, params)
        elif draw < 0.5 and live:
            sequence = live.pop(chance.randrange(len(live)))
            running = sequence.id in engine.scheduler.running
            when["writing" if sequence.token_ids else "reading" if running else "waiting"] += 1
            engine.cancel(sequence)
            done += 1
            lost += leaked(engine) + len(sequence.table)
        else:
            engine.step()
        live = [sequence for sequence in live if not sequence.finished]
    for sequence in live:
        engine.cancel(sequence)
    stats = engine.stats()
    return {
        "cancels": done,
        "cancelled_while": when,
        "leaked_blocks": lost + leaked(engine) + engine.pool.held,
        "preemptions": stats.preemptions,
        "tokens_from_the_cache": stats.cached,
        "tokens_guessed": stats.drafted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(STORIES), metavar="MODEL")
    parser.add_argument("--cancels", type=int, default=10_000)
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    begun = time.perf_counter()
    size = {"max_sequences": 12, "max_waiting": 30, "cache_blocks": BLOCKS, "prefill_tokens": 32}
    with Engine(wish.model, weights=wish.weights, speculate="ngram", **size) as engine:
        result = cancel_many(engine, wish.cancels)
    result |= {"seconds": time.perf_counter() - begun, "machine": machine.describe()}
    if wish.json:
        print(json.dumps(result, indent=2))
    else:
        when = ", ".join(f"{count} {what}" for what, count in result["cancelled_while"].items())
        print(f"{result['cancels']} cancels ({when}): {result['leaked_blocks']} blocks leaked")
    if result["leaked_blocks"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
