"""seccomp: the system calls that exist for a program (seccomp(2)); all others answer "not permitted".

The filter is a program for the kernel's packet-filter machine (McCanne and Jacobson 1993), which sees the
number of a call and its plain arguments, never what a pointer points to. It is a list of what is allowed,
so that a call which a later kernel adds is refused. A computation with files needs about a hundred calls;
there are none among them for sockets, other processes, new programs, tracing, mounts, keys or shared memory.

Four kinds of refusal:
  EPERM       the default.
  ENOSYS      where the C library has an older way that can be judged: clone3's flags lie behind a pointer,
              so it goes, and `clone` is judged.
  a plain 0   chmod and its kin do nothing and say so: `shutil.copy` and `tarfile` need an answer, but modes
  are
              not for guests to set (a set-user-id file left in the work folder would outlive the sandbox, a
              folder without rights would hide what is in it).
  the end     a call in another processor's convention (32-bit on x86-64), where numbers mean other things.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

from ayllu.tools.walls.kernel import LIBC, MACHINE, checked, prctl
from ayllu.tools.walls.kernel import PR_SET_NO_NEW_PRIVS as NO_NEW_PRIVS

# name:x86-64:arm64 (asm/unistd_64.h and asm-generic/unistd.h of Linux 6.1); "-": that processor has none
PLAIN = """
    read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
    preadv2:327:286 pwritev2:328:287 close:3:57 close_range:436:436 lseek:8:62 fstat:5:80 stat:4:- lstat:6:-
    newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439 getdents:78:-
    getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:-
    unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 umask:95:166 fsync:74:82 fdatasync:75:83
    ftruncate:77:46 mmap:9:222 munmap:11:215 mprotect:10:226 mremap:25:216 madvise:28:233 msync:26:227
    mincore:27:232 brk:12:214 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139
    rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 pipe:22:-
    pipe2:293:59 select:23:- pselect6:270:72 poll:7:- ppoll:271:73 epoll_create:213:- epoll_create1:291:20
    epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 eventfd:284:- eventfd2:290:19 timerfd_create:283:85
    timerfd_settime:286:86 timerfd_gettime:287:87 dup:32:23 dup2:33:- dup3:292:24 gettimeofday:96:169
    clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101 time:201:-
    times:100:153 getrusage:98:165 sysinfo:99:179 uname:63:160 getpid:39:172 getppid:110:173 gettid:186:178
    getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getgroups:115:158 getpgrp:111:-
    getresuid:118:148 getresgid:120:150 sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121
    sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126 getcpu:309:168
    futex:202:98 set_robust_list:273:99 rseq:334:293 set_tid_address:218:96 exit:60:93 exit_group:231:94
    restart_syscall:219:128 getrandom:318:278 membarrier:324:283 arch_prctl:158:- getitimer:36:102
    setitimer:38:103 alarm:37:- pause:34:- timer_create:222:107 timer_settime:223:110 timer_gettime:224:108
    timer_getoverrun:225:109 timer_delete:226:111 getrlimit:97:163 setrlimit:160:164 fadvise64:221:223
"""
# Calls that are judged by one argument: its index, what is asked of it, the values.
JUDGED: tuple[tuple[str, int, str, tuple[int, ...]], ...] = (
    # F_DUPFD, GETFD, SETFD, GETFL, SETFL, locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. Without F_SETOWN and
    # F_SETSIG no descriptor sends signals to others; without F_SETPIPE_SZ pipes stay small.
    ("fcntl:72:25", 1, "one of", (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)),
    # TCGETS (isatty), FIONBIO, FIONREAD, FIONCLEX, FIOCLEX
    ("ioctl:16:29", 1, "one of", (0x5401, 0x5421, 0x541B, 0x5450, 0x5451)),
    ("prctl:157:167", 0, "one of", (15, 16)),  # the thread's name
    ("prlimit64:302:261", 0, "one of", (0,)),  # limits of this process, not of others
    # No file is born set-user-id or set-group-id.
    ("open:2:-", 2, "none of the bits", (0o6000,)),
    ("openat:257:56", 3, "none of the bits", (0o6000,)),
    ("creat:85:-", 1, "none of the bits", (0o6000,)),
)
CLONE = "clone:56:220"
CLONE_THREAD, NEW_NAMESPACES = 0x1_0000, 0x7E02_0080
PRETENDED = """
    chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 utime:132:- utimes:235:- utimensat:280:88
    futimesat:261:-
"""
MISSING = """
    clone3:435:435 openat2:437:437 copy_file_range:326:285 sendfile:40:71 splice:275:76 tee:276:77
    vmsplice:278:75 futex_waitv:449:449 epoll_pwait2:441:441 fallocate:285:47
"""
# Allowed in a room of its own, where they see and change nothing but the work folder.
INDOORS = "readlink:89:- readlinkat:267:78 truncate:76:45"

_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_EPERM, _ENOSYS = 1, 38
_ARCHITECTURE = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}  # AUDIT_ARCH_*
_SET_MODE_FILTER = 2  # PR_SET_SECCOMP's second argument


def number(entry: str) -> int | None:
    """The number of `name:x86-64:arm64` on this processor."""
    text = entry.split(":")[2 if MACHINE == "aarch64" else 1]
    return None if text == "-" else int(text)


def _statement(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    return _statement(_LOAD, 16 + 8 * index)  # the low half: kernels ignore the high one of int arguments


def _when(entry: str, block: Sequence[bytes]) -> list[bytes]:
    """`block` (which ends in a return) if the call is `entry`; nothing where the processor lacks it."""
    known = number(entry)
    return [] if known is None else [_statement(_EQUAL, known, 0, len(block)), *block]


def program(*, indoors: bool, threads: bool) -> bytes:
    """The filter. `indoors`: the process has a room of its own; `threads`: it may start threads."""
    allow, refuse = _statement(_RETURN, _ALLOW), _statement(_RETURN, _ERRNO | _EPERM)
    lines = [_statement(_LOAD, 4), _statement(_EQUAL, _ARCHITECTURE[MACHINE], 1, 0)]
    lines += [_statement(_RETURN, _KILL), _statement(_LOAD, 0)]
    for entry in PLAIN.split() + (INDOORS.split() if indoors else []):
        lines += _when(entry, [allow])
    for entry, index, rule, values in JUDGED:
        if rule == "one of":
            tests = [line for value in values for line in (_statement(_EQUAL, value, 0, 1), allow)]
            lines += _when(entry, [_argument(index), *tests, refuse])
        else:
            lines += _when(entry, [_argument(index), _statement(_BITS, values[0], 0, 1), refuse, allow])
    if threads:  # a clone that shares the process and makes no namespace is a thread
        judge = [_argument(0), _statement(_BITS, CLONE_THREAD, 1, 0), refuse]
        lines += _when(CLONE, [*judge, _statement(_BITS, NEW_NAMESPACES, 0, 1), refuse, allow])
    for entry in PRETENDED.split():
        lines += _when(entry, [_statement(_RETURN, _ERRNO)])
    for entry in MISSING.split():
        lines += _when(entry, [_statement(_RETURN, _ERRNO | _ENOSYS)])
    return b"".join([*lines, refuse])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


def restrict(filter_: bytes) -> None:
    """Install a filter on this (single-threaded) process, for good."""
    prctl(NO_NEW_PRIVS, 1)
    bpf = _Program(len(filter_) // 8, filter_)
    checked(LIBC.prctl(22, _SET_MODE_FILTER, ctypes.addressof(bpf), 0, 0), "seccomp")
