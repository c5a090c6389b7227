"""Practice written ahead by other processes: a GPU mustn't wait for the one core that writes problems.

On a CPU training and writing share the cores, and nothing is won. Beside a GPU the others are idle: each of
some processes draws and packs whole chunks of batches. A chunk is a function of the seed and its number, so
that it doesn't matter who makes it; where a process dies, its chunk is made here. They talk by pipes: what is
practised as a line of JSON, then numbers; back come arrays in NumPy's own form, which holds nothing but
numbers. (A stage's peak of memory counts the training process alone.)
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch

from ayllu import machine
from ayllu.reason.practice import read_rows
from ayllu.reason.transcript import Chat
from ayllu.text.tokenizer import Tokenizer
from ayllu.train.packing import CHUNK, Practice, pack_rows
from ayllu.train.step import Batch

MOST = 8  # processes
_SPARED = 2  # cores left for training itself
_FIELDS = ("tokens_BT", "targets_BT", "weights_BT", "document_BT")


class Source(Protocol):
    """Where batches come from."""

    def batch(self, number: int, device: str) -> Batch: ...


@contextlib.contextmanager
def ahead(
    practice: Practice, tokenizer: Path, given: Mapping[str, Any], *, device: str, steps: int
) -> Iterator[Source]:
    """`practice`, or other processes that do the same beside a GPU. `given`: the folders of the user's own
    rows (`gsm8k`) and the one that they are relative to (`root`)."""
    workers = min(MOST, machine.physical_cores() - _SPARED) if device != "cpu" else 0
    if workers < 1:
        yield practice
        return
    with Ahead(practice, tokenizer, given, workers=workers, steps=steps) as source:
        yield source


class Ahead:
    """Batches of a Practice without kept conversations, made by `workers` processes."""

    def __init__(
        self, practice: Practice, tokenizer: Path, given: Mapping[str, Any], *, workers: int, steps: int
    ) -> None:
        assert not practice.kept, "what was kept is only here"
        self.practice, self.ahead, self.last = practice, 2 * workers, (steps - 1) // CHUNK
        told = {name: getattr(practice, name) for name in ("shares", "rows", "length", "seed", "budgets")}
        told |= {"tokenizer": str(tokenizer.resolve())} | dict(given)
        self._told = (json.dumps(told) + "\n").encode()
        self._coming: dict[int, Future[list[np.ndarray]]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ayllu-ahead")
        self._mine, self._lock = threading.local(), threading.Lock()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._closing = False

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closing = True  # from here on nobody is started, and nothing is made here
            for worker in self._workers:
                worker.kill()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            _buried(worker)

    def batch(self, number: int, device: str) -> Batch:
        """As Practice gives it."""
        here = number // CHUNK
        for chunk in range(here, min(here + self.ahead, self.last) + 1):
            if chunk not in self._coming:
                self._coming[chunk] = self._pool.submit(self._made, chunk)
        for chunk in [chunk for chunk in self._coming if chunk < here]:
            del self._coming[chunk]
        arrays = self._coming[here].result()
        return Batch(*(torch.from_numpy(array[number % CHUNK]).to(device) for array in arrays))

    # ---- on the pool's threads
    def _made(self, chunk: int) -> list[np.ndarray]:
        with contextlib.suppress(OSError, EOFError, ValueError):
            worker = self._worker()
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write(b"%d\n" % chunk)
            worker.stdin.flush()
            size = int.from_bytes(_exactly(worker.stdout, 8), "little")
            with np.load(io.BytesIO(_exactly(worker.stdout, size)), allow_pickle=False) as found:
                return [found[f"arr_{place}"] for place in range(len(_FIELDS))]
        with self._lock:  # it has died, for want of memory, say
            if self._closing:
                raise CancelledError
            return pack_chunk(self.practice, chunk)

    def _worker(self) -> subprocess.Popen[bytes]:
        """This thread's process. One that has died isn't replaced: OSError."""
        if getattr(self._mine, "worker", None) is None:
            words = [sys.executable, "-m", "ayllu.train.ahead"]
            with self._lock:
                if self._closing:
                    raise CancelledError
                worker = subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C in a terminal is for us
                )
                self._workers.append(worker)
            assert worker.stdin is not None
            worker.stdin.write(self._told)
            self._mine.worker = worker
        found: subprocess.Popen[bytes] = self._mine.worker
        return found


def _buried(worker: subprocess.Popen[bytes]) -> None:
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):  # what was on its way to a dead one
            if pipe is not None:
                pipe.close()


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def pack_chunk(practice: Practice, number: int) -> list[np.ndarray]:
    """Tokens, targets, weights and documents of a chunk's batches, each (CHUNK, rows, length)."""
    rows = practice.chunk(number)
    batches = [
        pack_rows(rows[first : first + practice.rows], practice.length, "cpu")
        for first in range(0, CHUNK * practice.rows, practice.rows)
    ]
    return [np.stack([getattr(batch, name).numpy() for batch in batches]) for name in _FIELDS]


def main() -> None:
    """A process: reads what is practised, then writes the chunks that it is asked for."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # what anybody prints must not get between
    told = json.loads(sys.stdin.buffer.readline())
    read_rows(Path(told.pop("root")), told.pop("gsm8k"))
    chat = Chat(Tokenizer.load(Path(told.pop("tokenizer"))))
    practice = Practice(chat, **told)
    torch.set_num_threads(1)
    for line in sys.stdin.buffer:
        data = io.BytesIO()
        np.savez(data, *pack_chunk(practice, int(line)))
        out.write(len(data.getbuffer()).to_bytes(8, "little"))
        out.write(data.getbuffer())
        out.flush()


if __name__ == "__main__":
    main()
