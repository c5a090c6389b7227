"""Tensors out of a file of `torch.save`: a zip archive whose entries are the numbers themselves.

`NAME/data.pkl` says which tensors there are (pickled.py reads it without running it), and `NAME/data/KEY`
are their numbers, stored as they lie in memory (PyTorch, notes on serialization). What the archive says
of itself is checked first: nothing is compressed, entries lie inside the file and don't overlap, and each
storage has the size that its tensors need.
"""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ayllu.errors import AylluError, ModelFileDamagedError, ModelFileMissingError, RefusedError
from ayllu.model.formats.pickled import StoredTensor, tensors_in

_COPY_AGAIN = "copy the file again from where it was published"
_MOST_PICKLE = 16 * 2**20  # bytes; the 405B model's is under 1 MB
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # PKWARE's APPNOTE, 4.3.7


class StorageFile:
    """One file of torch.save. `tensors`: what it holds by name; `read(name)`: one of them.

    Reading asks the system for a place in the file and shares nothing between threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ModelFileMissingError(f"{path} is missing", fix="copy the whole model folder again")
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._places, program = self._archive()
            self.tensors = self._checked(tensors_in(program))
        except AylluError as error:
            os.close(self._handle)
            error.args = (f"{path}: {error.what}",)
            error.what = error.args[0]
            raise
        except BaseException:
            os.close(self._handle)
            raise

    def close(self) -> None:
        """Give the file back."""
        os.close(self._handle)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor, or a range of its rows, in memory of its own, contiguous."""
        stored = self.tensors[name]
        if rows is not None:
            first, last, _ = rows.indices(stored.shape[0])
            stored = replace(
                stored,
                offset=stored.offset + first * stored.strides[0],
                shape=(max(0, last - first), *stored.shape[1:]),
            )
        (start, _), size = self._places[stored.storage.key], stored.storage.dtype.itemsize
        bytes_N = torch.empty(stored.span * size, dtype=torch.uint8)
        self._fill(memoryview(bytes_N.numpy()), start + stored.offset * size)
        numbers_N = bytes_N.view(stored.storage.dtype)
        return numbers_N.as_strided(stored.shape, stored.strides).contiguous()

    def _fill(self, room: memoryview, at: int) -> None:
        while room:
            count = os.preadv(self._handle, [room[: 2**30]], at)
            if not count:
                raise ModelFileDamagedError(f"{self.path} has become shorter", fix=_COPY_AGAIN)
            room, at = room[count:], at + count

    def _archive(self) -> tuple[dict[str, tuple[int, int]], bytes]:
        """First byte and length of each storage; the pickle. Nothing is believed unseen."""
        head = os.pread(self._handle, 512, 0)
        if head[:4] != b"PK\x03\x04":
            if head[:1] == b"\x80" or head[257:262] == b"ustar":
                raise RefusedError(
                    "it is in torch's format from before version 1.6",
                    why="that one can't be read without running its pickle",
                    fix="take the weights as .safetensors, or have somebody who trusts the file save it anew",
                )
            raise ModelFileDamagedError("it is no file of torch.save", why="no zip archive", fix=_COPY_AGAIN)
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self._entries(archive)
        # zipfile lets out what its struct, int and codec calls raise on damaged directories.
        except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, EOFError, NotImplementedError,
                RuntimeError, LookupError, OSError) as error:  # fmt: skip
            raise ModelFileDamagedError(
                "the zip archive is damaged", why=str(error)[:200], fix=_COPY_AGAIN
            ) from error

    def _entries(self, archive: zipfile.ZipFile) -> tuple[dict[str, tuple[int, int]], bytes]:
        entries = archive.infolist()
        programs = [e for e in entries if e.filename.count("/") == 1 and e.filename.endswith("/data.pkl")]
        if len(programs) != 1 or len({e.filename for e in entries}) != len(entries):
            raise ModelFileDamagedError("it holds no list of tensors", why="no single data.pkl")
        prefix = programs[0].filename.removesuffix("data.pkl")
        places, spans = {}, []
        for entry in entries:
            start = self._start(entry)
            spans.append((start, start + entry.file_size))
            if entry.filename.startswith(f"{prefix}data/"):
                places[entry.filename.removeprefix(f"{prefix}data/")] = (start, entry.file_size)
        spans.sort()
        begins = [begin for begin, _ in spans[1:]] + [archive.start_dir]
        if any(end > begin for (_, end), begin in zip(spans, begins, strict=True)):
            raise ModelFileDamagedError("entries of the zip archive overlap", fix=_COPY_AGAIN)
        if programs[0].file_size > _MOST_PICKLE:
            raise ModelFileDamagedError(f"its list of tensors has {programs[0].file_size:,} bytes")
        for entry in entries:
            if entry.filename == f"{prefix}byteorder" and (
                entry.file_size > 6 or archive.read(entry) != b"little"
            ):
                raise ModelFileDamagedError("its numbers are not little-endian")
        return places, archive.read(programs[0])

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin, from its own header in front of them."""
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ModelFileDamagedError(f"{entry.filename[:80]!r} is compressed, which torch.save never does")
        if entry.flag_bits & 0x1:
            raise ModelFileDamagedError(f"{entry.filename[:80]!r} is encrypted")
        header = os.pread(self._handle, _LOCAL_HEADER.size, entry.header_offset)
        magic, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if magic != b"PK\x03\x04":
            raise ModelFileDamagedError(f"{entry.filename[:80]!r} is not where the archive says")
        return entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length

    def _checked(self, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
        """The same tensors: each storage is there in full, and they don't all show the same few numbers."""
        shown, held = 0, {}
        for name, tensor in tensors.items():
            storage = tensor.storage
            _, size = self._places.get(storage.key, (0, -1))
            if size != storage.count * storage.dtype.itemsize:
                raise ModelFileDamagedError(
                    f"the numbers of {name[:80]!r} are missing or cut", fix=_COPY_AGAIN
                )
            shown += tensor.span * storage.dtype.itemsize
            held[storage.key] = size
        if shown > 2 * sum(held.values()):  # a tied head may be there twice
            raise ModelFileDamagedError("its tensors claim more numbers than it holds")
        return tensors
