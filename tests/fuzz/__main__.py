"""`python -m tests.fuzz --count N --seed S`: exit code 1 when a damaged file got more than a typed error."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from .rounds import Round, run
from .samples import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="damaged files (default 100000)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the first case; the next run goes on behind the last"
    )
    parser.add_argument(
        "--minutes", type=float, default=60, help="stop then, and say where to go on (default 60)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--kind", action="append", default=[], choices=[kind.name for kind in KINDS])
    wish = parser.parse_args()

    until = time.monotonic() + 60 * wish.minutes
    step = max(1, min(5000, -(-wish.count // wish.jobs)))
    starts = range(wish.seed, wish.seed + wish.count, step)
    total = Round()
    with ThreadPoolExecutor(wish.jobs) as pool:
        jobs = [
            pool.submit(run, first, min(step, wish.seed + wish.count - first), until, wish.kind)
            for first in starts
        ]
        unfinished = None
        for first, job in zip(starts, jobs, strict=True):
            done = job.result()
            total.add(done)
            for failure in done.failures:
                print(json.dumps(failure), flush=True)
            if unfinished is None and done.next_seed < min(first + step, wish.seed + wish.count):
                unfinished = done.next_seed
            print(f"seed {first}: {total.cases} cases, {len(total.failures)} failures", file=sys.stderr)
    print(
        f"{total.cases} damaged files: {total.refused} refused, {total.read} harmless, "
        f"{len(total.failures)} failures"
    )
    if unfinished is not None:
        left = wish.seed + wish.count - unfinished
        print(f"time is up; go on with: python -m tests.fuzz --seed {unfinished} --count {left}")
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
