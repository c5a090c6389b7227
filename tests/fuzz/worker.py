"""Reads damaged files in a process with little memory, and writes down what is not a typed error.

Memory is bounded twice: the address space ends a little above what reading whole samples took, so that a
huge wish fails at once, and the resident peak is looked at after every case.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ayllu.errors import AylluError

from .damage import damaged
from .samples import KINDS, Kind

MEBIBYTE = 1 << 20
ROOM = 512 * MEBIBYTE  # of address space: thread stacks and arenas reserve much and use little
BASE = 64 * MEBIBYTE  # resident, beside twice the file
SECONDS = 20  # for one file of a few kilobytes, on a busy machine


class TooSlowError(BaseException):
    """A file kept its reader busy."""


def work(
    first: int, count: int, until: float, names: list[str], progress: Callable[[int], None]
) -> Counter[str]:
    """Cases `first` to `first + count` (fewer when the time `until` comes); what became of them. Failures
    are printed, a JSON line each. `progress` is told every case before it begins."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _too_slow)
    kinds = [kind for kind in KINDS if not names or kind.name in names]
    outcome: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="ayllu-fuzz-") as temporary:
        samples = [_sample(kind, Path(temporary) / str(number)) for number, kind in enumerate(kinds)]
        size = _status("VmSize") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        peak = _status("VmHWM")
        for seed in range(first, first + count):
            if time.monotonic() > until:
                break
            progress(seed)
            chance = random.Random(seed)
            number = seed % len(kinds)
            kind, (folder, whole) = kinds[number], samples[number]
            data = damaged(chance, whole, chance.choice(samples)[1])
            (folder / kind.file).write_bytes(data)
            failure = _read(kind, folder, outcome)
            now = _status("VmHWM")
            if now - peak > BASE + 2 * len(data):
                failure = failure or f"{(now - peak) / MEBIBYTE:.0f} MiB for a file of {len(data)} bytes"
            if now > peak and failure:
                peak = now
            if failure:
                outcome["failed"] += 1
                print(json.dumps({"seed": seed, "kind": kind.name, "failure": failure}), flush=True)
            outcome["cases"] += 1
            (folder / kind.file).write_bytes(whole)
    return outcome


def _sample(kind: Kind, folder: Path) -> tuple[Path, bytes]:
    """A folder with a whole sample, which reads without an error."""
    folder.mkdir()
    kind.make(folder)
    kind.read(folder if kind.whole else folder / kind.file)
    return folder, (folder / kind.file).read_bytes()


def _read(kind: Kind, folder: Path, outcome: Counter[str]) -> str:
    """What went wrong, or nothing."""
    signal.alarm(SECONDS)
    try:
        kind.read(folder if kind.whole else folder / kind.file)
        outcome["read"] += 1
    except AylluError as error:
        outcome["refused"] += 1
        if not error.what or error.exit_code not in (4, 5, 8):
            return f"exit code {error.exit_code}: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException:  # a panic of a Rust library is no Exception
        return traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
    return ""


def _too_slow(number: int, frame: Any) -> None:
    raise TooSlowError(f"more than {SECONDS} seconds")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


@contextlib.contextmanager
def noted(path: Path) -> Iterator[Callable[[int], None]]:
    """A file that always holds the number of the case at work, whatever kills the process."""
    with open(path, "wb", buffering=0) as file:

        def note(seed: int) -> None:
            file.seek(0)
            file.write(b"%020d" % seed)

        yield note


def main() -> None:
    """Arguments: first seed, count, seconds, file for the case at work, names of kinds."""
    first, count, seconds, note, *names = sys.argv[1:]
    with noted(Path(note)) as progress:
        outcome = work(int(first), int(count), time.monotonic() + float(seconds), names, progress)
    print(json.dumps({"outcome": outcome}), flush=True)


if __name__ == "__main__":
    main()
