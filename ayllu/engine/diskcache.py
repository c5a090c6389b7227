"""Blocks of the cache on disk: a conversation goes on after a restart without being read again.

One file a block, named by the hash of the text up to its end. A file is used only if its length, its name,
the weights' fingerprint and the hash of its bytes are right; any other is removed. Files are bounded by their
bytes, the least recently used go first. What people wrote can be told from them, so that the folder is its
owner's alone (0700) and any other is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import stat
import tempfile
import threading
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from ayllu.errors import AylluWarning, InputNotFoundError, RefusedError
from ayllu.files import typed_os_errors

_MAGIC = b"AYLLUKV1"
_HEADER = len(_MAGIC) + 3 * 32  # then fingerprint, name, SHA-256 of the bytes
_WAITING = 256 << 20  # bytes on their way to the disk at most


class DiskCache:
    """`limit` bytes of files under `folder`, of all weights together. Reads on the caller's thread, writes on
    its own. Raises RefusedError for a folder that isn't the user's alone."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        own_folder(self.folder)
        self.bytes = 0
        self._files: OrderedDict[Path, int] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()
        self._fingerprint, self._home = b"", self.folder
        self._queue: queue.Queue[tuple[Path, bytes, bytes, Tensor] | None] = queue.Queue()
        self._waiting = 0
        self._thread: threading.Thread | None = None
        self._scan()

    def open(self, fingerprint: bytes) -> None:
        """From now on blocks are those of these weights (32 bytes)."""
        self._fingerprint = fingerprint
        self._home = self.folder / fingerprint.hex()[:16]
        own_folder(self._home)

    @property
    def has_room(self) -> bool:
        """Whether the thread keeps up with what it is given."""
        return self._waiting < _WAITING

    def has(self, name: bytes) -> bool:
        """Whether a file of this name is known."""
        return self._path(name) in self._files

    def get(self, name: bytes, size: int) -> Tensor | None:
        """The block's bytes, verified; None if there is no such file or it was damaged (then it's gone)."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            self._drop(path)
            return None
        payload = memoryview(data)[_HEADER:]
        wanted = _MAGIC + self._fingerprint + name + hashlib.sha256(payload).digest()
        if len(payload) != size or data[:_HEADER] != wanted:
            warnings.warn(f"{path} was damaged and is removed; its text is read again", AylluWarning, 2)
            self._drop(path)
            return None
        with self._lock, contextlib.suppress(OSError, KeyError):
            self._files.move_to_end(path)
            os.utime(path)  # the order outlives the process
        return torch.frombuffer(bytearray(payload), dtype=torch.uint8)

    def put(self, name: bytes, data: Tensor) -> None:
        """Have a block written, in the background."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="ayllu-disk-cache", daemon=True)
            self._thread.start()
        with self._lock:
            self._waiting += data.numel()
        self._queue.put((self._path(name), self._fingerprint, name, data))

    def flush(self) -> None:
        """Wait until all that was put is written."""
        self._queue.join()

    def close(self) -> None:
        """Write what is left and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _path(self, name: bytes) -> Path:
        return self._home / name.hex()

    def _scan(self) -> None:
        found = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                if path.suffix == ".part":
                    path.unlink()  # a process died while it wrote
                elif stat.S_ISREG((about := path.lstat()).st_mode) and len(path.name) == 64:
                    found.append((about.st_mtime_ns, path, about.st_size))
        for _, path, size in sorted(found):
            self._files[path] = size
            self.bytes += size
        self._make_room(0)

    def _write_all(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                self._write(*job)
            # Full, read-only, no memory: the cache is a help, not a need, and whoever closes waits for this.
            except Exception as error:
                text = next(iter(str(error).splitlines()), type(error).__name__)
                warnings.warn(f"a block of the cache was not written: {text}", AylluWarning, 2)
            finally:
                with self._lock:
                    self._waiting -= job[3].numel()
                self._queue.task_done()
        self._queue.task_done()

    def _write(self, path: Path, fingerprint: bytes, name: bytes, data: Tensor) -> None:
        if path in self._files:
            return
        payload = memoryview(data.numpy())
        header = _MAGIC + fingerprint + name + hashlib.sha256(payload).digest()
        size = len(header) + len(payload)
        if size > self.limit:
            return
        self._make_room(size)
        # Not synced: after a power cut a file may be torn, which its hash tells.
        with typed_os_errors(path):
            handle, temporary = tempfile.mkstemp(suffix=".part", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(header)
                    file.write(payload)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        with self._lock:
            self._files[path] = size
            self.bytes += size

    def _make_room(self, size: int) -> None:
        while True:
            with self._lock:  # who reads may drop a damaged one meanwhile
                oldest = next(iter(self._files), None) if self.bytes + size > self.limit else None
            if oldest is None:
                return
            self._drop(oldest)

    def _drop(self, path: Path) -> None:
        with self._lock:
            self.bytes -= self._files.pop(path, 0)
        with contextlib.suppress(OSError):
            path.unlink()


def own_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, or check that it is one. Raises RefusedError."""
    if not folder.parent.is_dir():
        raise InputNotFoundError(
            f"{folder.parent} does not exist", fix="make it first, or name another folder"
        )
    with typed_os_errors(folder), contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    why = ""
    if not stat.S_ISDIR(about.st_mode):
        why = "it is not a folder"
    elif about.st_uid != os.geteuid():
        why = "it belongs to somebody else"
    elif about.st_mode & 0o077:
        why = "others may read or write it"
    if why:
        raise RefusedError(
            f"{folder} can't be the cache folder",
            why=f"{why}: stored blocks tell what was written, and planted ones would change answers",
            fix=f"chmod 700 {folder}, or name a folder of your own",
        )
