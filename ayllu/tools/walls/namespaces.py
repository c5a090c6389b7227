"""A room of one's own: a file system that holds nothing but what the code needs (mount_namespaces(7)).

The room is an empty in-memory file system, read-only in the end, into which are bound: the standard library,
the shared libraries that it loads, three devices and the work folder. There is no /proc, no /sys, no /etc, no
home. The process is then turned into it with pivot_root(2), and what was outside has no name any more.

Root builds it as root and becomes an ordinary user afterwards. An ordinary user builds it in a user namespace
(user_namespaces(7)), where he has the capability for it; not every system allows that.
"""

# ruff: noqa: PTH103, PTH116, PTH120

from __future__ import annotations

import contextlib
import os
import stat

from ayllu.tools.walls import kernel
from ayllu.tools.walls.kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT

WORK = "/sandbox"  # a name under which no package lies: it would cover it
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_ALONE = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
# statvfs(3) flag -> mount(2) flag: a bind may not drop what its source was mounted with
_KEPT = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}


def leave(proc: int) -> None:
    """Leave the mounts, the network, the IPC objects and the host name of the machine."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        try:
            kernel.unshare(_ALONE)
        except OSError:  # root of a container, without the capability: as an ordinary user
            pass
        else:
            return
    kernel.unshare(_ALONE | kernel.CLONE_NEWUSER)
    map_self(proc, user, group)


def map_self(proc: int, user: int, group: int) -> None:
    """In a new user namespace: this user is himself, and nobody else exists. `proc`: descriptor of /proc."""
    pid = os.getpid()
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        handle = os.open(f"{pid}/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(handle, text.encode())
        os.close(handle)


def enter(room: str, readable: list[str], hidden: list[str], work: str) -> None:
    """Build the room at the empty folder `room` and move in. `hidden`: folders shown empty inside others."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    kernel.mount("tmpfs", room, "tmpfs", flags, "mode=755,size=1m")
    for path in readable:
        _bind(path, room + path, MS_RDONLY | MS_NOSUID | MS_NODEV)
        for inside in hidden:  # before anything that lies in them is bound
            if os.path.dirname(inside) == path:
                kernel.mount("tmpfs", room + inside, "tmpfs", flags, "mode=755,size=64k")
    for path in hidden:
        kernel.mount("none", room + path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)
    for path in DEVICES:
        _bind(path, room + path, MS_NOSUID | MS_NOEXEC)
    _bind(work, room + WORK, flags)
    os.chdir(room)
    kernel.syscall("pivot_root", b".", b".")
    kernel.checked(kernel.LIBC.umount2(b".", kernel.MNT_DETACH), "umount2")
    os.chdir("/")
    kernel.mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)


def private_call(proc: int, folder: str) -> None:
    """For one call: processes, users and mounts of its own, with only `folder` to work in.

    Counts of processes begin anew in a user namespace, which makes RLIMIT_NPROC the limit of this call.
    """
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)
    map_self(proc, user, group)
    if folder:
        kernel.mount(f"{WORK}/{folder}", WORK, None, MS_BIND)


def _bind(source: str, target: str, flags: int) -> None:
    """Show `source` at `target` with `flags`, and with those that its own mount has."""
    if stat.S_ISDIR(os.stat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o444))
    kernel.mount(source, target, None, MS_BIND)
    present = os.statvfs(target).f_flag
    kept = sum(there for here, there in _KEPT.items() if present & here)
    kernel.mount("none", target, None, MS_REMOUNT | MS_BIND | flags | kept)
