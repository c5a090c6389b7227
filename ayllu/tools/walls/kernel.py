"""The kernel's doors that Python has no function for, through ctypes. A refusal is an OSError that names
it."""

from __future__ import annotations

import ctypes
import os
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
MACHINE = os.uname().machine

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
# name -> (x86-64, arm64); the system calls that the walls themselves need (those of programs: seccomp.py)
NUMBERS = {"pivot_root": (155, 41), "capset": (126, 91), "landlock_create_ruleset": (444, 444)}
NUMBERS |= {"landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446)}


def checked(result: int, what: str) -> int:
    """`result` of a C call, or the OSError that errno describes."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(name: str, *arguments: Any) -> int:
    """A raw system call by name. OSError where the kernel refuses or the processor isn't known."""
    if MACHINE not in ("x86_64", "aarch64"):
        raise OSError(38, f"{name}: unknown processor {MACHINE}")
    number = NUMBERS[name][MACHINE == "aarch64"]
    return checked(LIBC.syscall(ctypes.c_long(number), *arguments), name)


def prctl(option: int, *values: int) -> int:
    """prctl(2): settings of this process."""
    return checked(LIBC.prctl(option, *(*values, 0, 0, 0, 0)[:4]), "prctl")


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones."""
    checked(LIBC.unshare(flags), f"unshare {flags:#x}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    kind_bytes, data_bytes = kind and kind.encode(), data and data.encode()
    done = LIBC.mount(os.fsencode(source), os.fsencode(target), kind_bytes, ctypes.c_ulong(flags), data_bytes)
    checked(done, f"mount {target}")
