"""Files that are either whole or absent: atomic writes, hashes, safe joins, locks.

A write goes to a temporary name in the same folder, is synced, renamed, and the folder is synced
(the order that survives a power cut on POSIX file systems). ENOSPC, EDQUOT, EROFS and EACCES become
typed errors that leave the old file in place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ayllu.errors import (
    BadFileError,
    DiskFullError,
    FolderReadOnlyError,
    ResourceError,
    RunBusyError,
    UsageError,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def typed_os_errors(path: Path) -> Iterator[None]:
    """Turn the disk's refusals into DiskFullError and FolderReadOnlyError that name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"no room to write {path}",
                why=error.strerror or "the disk is full",
                fix="free some space and run the same command again: it goes on from the last checkpoint",
            ) from error
        if error.errno in _READ_ONLY:
            asked = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
            if asked is not None and asked.exists() and not os.access(asked, os.R_OK):
                raise ResourceError(
                    f"{asked} can't be read",
                    why=error.strerror or "no permission",
                    fix="change its permissions, or ask whoever it belongs to",
                ) from error
            raise FolderReadOnlyError(
                f"{path} can't be written",
                why=error.strerror or "no permission",
                fix="choose a folder of your own with --out, or change its permissions",
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents; typed errors."""
    with typed_os_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # what /proc and its like say for "no"
            raise PermissionError(errno.EACCES, "no folder can be made there") from error
    return folder


@contextlib.contextmanager
def new_file(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` as a whole when the block ends without an error.

    Until then it has a temporary name; a failed block leaves what was at `path` untouched.
    """
    with typed_os_errors(path):
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` so that `path` holds either the old or the new content, never a part. `mode`: who may read
    it."""
    with new_file(path, mode) as file:
        file.write(data)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """`write_bytes` for text, UTF-8."""
    write_bytes(path, text.encode("utf-8"), mode)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """`write_bytes` for JSON: two spaces, keys as given, one trailing newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mode)


def read_json(path: Path, *, limit: int | None = None) -> Any:
    """Read JSON. Raises FileNotFoundError, or BadFileError when it can't be parsed or has more than
    `limit` bytes (parsed JSON takes many times the memory of its text)."""
    if limit is not None and path.stat().st_size > limit:
        raise BadFileError(f"{path} is not what it says", why=f"it has more than {limit:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # ValueError: no JSON, no UTF-8, or a number of endless digits. RecursionError: endless nesting.
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is not valid JSON", why=str(error)) from error


def append_line(path: Path, line: str) -> None:
    """Append one line (for logs such as metrics.jsonl; not synced)."""
    with typed_os_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON (sorted keys)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def safe_join(folder: Path, name: str) -> Path:
    """`folder / name`, refused when it would leave `folder` (.., absolute, symlink), and when it would be a
    path of another kind on another system (backslash, drive letter) or can't be a name at all."""
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve()) and not re.search(r"[\\\0]|^[A-Za-z]:", name)
    except (ValueError, OSError, RuntimeError):  # a NUL, lone surrogates, a circle of links
        inside = False
    if not inside:
        raise BadFileError(
            f"{ascii(name)[:200]} points outside {folder}",
            fix="don't use files from a source you don't trust",
        )
    return path


def own_file(folder: Path, name: str) -> Path:
    """Where the file `name` of a stranger's folder lies; BadFileError for a link that leaves it.

    A snapshot of the Hugging Face cache is links into the `blobs` folder of the same model; these, and no
    others, may.
    """
    blobs = folder.resolve().parent.parent / "blobs"
    if folder.resolve().parent.name == "snapshots" and (folder / name).resolve().parent == blobs:
        return (folder / name).resolve()
    return safe_join(folder, name)


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Fill a temporary folder that becomes `path` as a whole when the block ends without an error.

    An existing `path` is replaced; without `replace` it is a UsageError, also when it came meanwhile. A
    failed block leaves the old one untouched.
    """
    if not replace:
        refuse_existing(path)
    make_folder(path.parent)
    with typed_os_errors(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            os.chmod(temporary, 0o755)  # noqa: S103 (as any new folder: others may read it)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            sync_folder(temporary)
            if not replace:
                refuse_existing(path)
            if path.exists():
                aside = temporary.with_suffix(".old")
                os.replace(path, aside)
                try:
                    os.replace(temporary, path)
                except BaseException:
                    os.replace(aside, path)
                    raise
                shutil.rmtree(aside)
            else:
                os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def refuse_existing(path: Path) -> None:
    """UsageError where there is something already."""
    if path.exists():
        raise UsageError(f"{path} exists already", fix="name a folder that doesn't")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path` (made if absent); RunBusyError when another process has it.

    The kernel drops the lock with the process, so that a killed run never blocks the next.
    """
    with typed_os_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunBusyError(
                f"{path.parent} is in use by another process",
                fix="wait for it, or stop it; both would write the same files",
            ) from error
        yield
    finally:
        os.close(handle)


def plain(value: Any) -> Any:
    """The value as strict JSON can hold it: paths as text, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
