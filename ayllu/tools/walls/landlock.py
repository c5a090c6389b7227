"""Landlock: files that may be opened, as a property of the process (landlock(7), kernel 5.13 and newer).

A ruleset names what it governs; whatever it governs and no rule allows is refused, for this process and
all that it will ever start. It needs no privilege and can't be taken back. Newer kernels govern more: moving
between folders (ABI 2), truncation (3), TCP (4), devices (5), signals and abstract sockets (6).
Not governed by any ABI so far: stat, chmod, utime, setxattr, readlink, chdir; seccomp.py deals with those.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from ayllu.tools.walls.kernel import syscall

READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_FILE = 1 << 4, 1 << 5, 1 << 7, 1 << 8
MOVE, TRUNCATE = 1 << 13, 1 << 14
WORK = READ_FILE | READ_DIR | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_FILE | MOVE | TRUNCATE
_RULE_PATH_BENEATH, _ASK_VERSION = 1, 1


def version() -> int:
    """The kernel's Landlock ABI; OSError where it has none or it is switched off."""
    return syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION))


def governed(abi: int) -> tuple[int, int, int]:
    """Every right on files, on TCP and on others' signals and sockets that this ABI knows."""
    files = (1 << 13) - 1
    files |= (MOVE if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    return files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0


def restrict(abi: int, rules: Iterable[tuple[int, int]]) -> None:
    """Confine this process to `rules`: (descriptor of a file or folder, rights beneath it)."""
    files, network, scope = governed(abi)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attributes = struct.pack("QQQ", files, network, scope)[:size]
    ruleset = syscall("landlock_create_ruleset", attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    for descriptor, rights in rules:
        rule = struct.pack("=Qi", rights & files, descriptor)
        syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, rule, ctypes.c_uint(0))
    syscall("landlock_restrict_self", ruleset, ctypes.c_uint(0))
    os.close(ruleset)
