"""Privileges given up and limits taken on: capabilities(7), PR_SET_NO_NEW_PRIVS, setrlimit(2)."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from collections.abc import Mapping

from ayllu.tools.walls import kernel

_CAPABILITY_VERSION_3 = 0x2008_0522


def become(user: int) -> None:
    """Turn root into the ordinary user `user`, without any group. /proc stays writable for user maps."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)


def drop() -> None:
    """Give up every capability, for good; no program that is started could bring one back."""
    with contextlib.suppress(OSError):  # needs a capability itself: who has none has nothing to drop
        for capability in range(64):
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
    with contextlib.suppress(OSError):
        kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    header, empty = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    kernel.syscall("capset", header, empty)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def limit(limits: Mapping[str, float], *, count_threads: bool) -> None:
    """Take on `limits` (fields of sandbox.Limits). CPU time ends with SIGKILL: soft and hard are the same."""
    wanted = {
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_CPU: max(1, round(limits["cpu_seconds"])),
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
    }
    # The keeper and the first thread count too. Where threads can't be counted there are none (seccomp.py).
    wanted[resource.RLIMIT_NPROC] = limits["threads"] + 1 if count_threads else 1
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        capped = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        resource.setrlimit(kind, (capped, capped))
