"""The table of escape attempts: (name, program, how it may end). A program that gets out prints ESCAPED or the
secret, or leaves a trace outside; `world.py` plants what there is to find.

Words in capitals are filled in by the world: SECRET (a file with the secret), OUTSIDE (its folder, writable),
PORT, UDP, ABSTRACT (listeners), VICTIM (a process id), SHMID, SHMNAME, HOST (the id of the process that holds the sandbox).
"""

# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """`control`: without walls the program succeeds, which a test shows. `ends`: how it may be stopped.
    `limits`: it is about a limit, and runs under short ones."""

    name: str
    code: str
    control: bool = True
    ends: tuple[str | None, ...] = (None,)
    limits: bool = False


HIT = "\nprint('ESCAPED')"
C = "import ctypes, os, mmap, sys, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"
TABLE: list[Attempt] = []


def add(name: str, code: str, *, control: bool = True) -> None:
    TABLE.append(Attempt(name, code, control))


def limit(name: str, code: str, *ends: str | None) -> None:
    TABLE.append(Attempt(name, code, False, ends, True))


# ---- reading files: by every spelling, through every door
for _name, _path in {
    "absolute": "SECRET",
    "double slash": "//SECRET",
    "dots": "../../../../../../../../../..SECRET",
    "through proc root": "/proc/self/root/SECRET",
    "through proc cwd": "/proc/self/cwd/../../../../../../..SECRET",
    "through the host's root": "/proc/HOST/root/SECRET",
    "through proc 1 root": "/proc/1/root/SECRET",
    "passwd": "/etc/passwd",
    "hosts": "/etc/hosts",
    "own environment": "/proc/self/environ",
    "own maps": "/proc/self/maps",
    "own status": "/proc/self/status",
    "own mounts": "/proc/self/mountinfo",
    "host command line": "/proc/HOST/cmdline",
    "host environment": "/proc/HOST/environ",
    "host maps": "/proc/HOST/maps",
    "victim's command line": "/proc/VICTIM/cmdline",
    "kernel version": "/proc/version",
    "kernel symbols": "/proc/kallsyms",
    "processor": "/proc/cpuinfo",
    "sockets": "/proc/net/tcp",
    "sysctl": "/proc/sys/kernel/hostname",
    "interfaces": "/sys/class/net/lo/address",
    "shared memory": "/dev/shm/SHMNAME",
}.items():
    add(
        f"read {_name}",
        f"print('ESCAPED', len(open({_path!r}, 'rb').read(4096)))",
        control="proc 1" not in _name,
    )
for _name, _code in {
    "os.open": "import os; print(os.read(os.open('SECRET', 0), 99))",
    "O_PATH and fd path": "import os; f = os.open('SECRET', os.O_PATH); print(open(f'/proc/self/fd/{f}').read())",
    "dir_fd": "import os; d = os.open('OUTSIDE', os.O_DIRECTORY); print(os.read(os.open('secret', 0, dir_fd=d), 99))",
    "chdir": "import os; os.chdir('OUTSIDE'); print(open('secret').read())",
    "mmap": "import mmap; f = open('SECRET', 'rb'); print(mmap.mmap(f.fileno(), 0, access=1)[:])",
    "io.FileIO": "import io; print(io.FileIO('SECRET').read())",
    "pathlib": "import pathlib; print(pathlib.Path('SECRET').read_text())",
    "linecache": "import linecache; print(linecache.getlines('SECRET'))",
    "fileinput": "import fileinput; print(list(fileinput.input('SECRET')))",
    "import": "import sys; sys.path.insert(0, 'OUTSIDE'); import canary_module",
    "runpy": "import runpy; runpy.run_path('OUTSIDE/canary_module.py')",
    "loader": "import importlib.machinery as m; print(m.FileFinder('OUTSIDE').path_importer_cache if 0 else "
    "m.SourceFileLoader('x', 'SECRET').get_data('SECRET'))",
    "shutil": "import shutil; shutil.copyfile('SECRET', 'mine'); print(open('mine').read())",
    "hard link": "import os; os.link('SECRET', 'mine'); print(open('mine').read())",
    "symbolic link": "import os; os.symlink('SECRET', 'mine'); print(open('mine').read())",
    "rename in": "import os; os.rename('OUTSIDE/movable', 'mine')" + HIT,
    "rename a folder in": "import os; os.rename('OUTSIDE/folder', 'mine')" + HIT,
    "zipfile": "import zipfile; z = zipfile.ZipFile('m', 'w'); z.write('SECRET', 'a'); print(z.read('a'))",
    "tarfile": "import tarfile; t = tarfile.open('m', 'w'); t.add('SECRET'); t.close(); print(open('m','rb').read())",
    "sqlite": "import sqlite3; print(sqlite3.connect('OUTSIDE/base.db').execute('select * from t').fetchall())",
    "sqlite attach": "import sqlite3; c = sqlite3.connect(':memory:'); c.execute(\"attach 'OUTSIDE/base.db' as b\"); "
    "print(c.execute('select * from b.t').fetchall())",
    "urllib file": "import urllib.request as r; print(r.urlopen('file://SECRET').read())",
    "fopen in C": "import ctypes; l = ctypes.CDLL(None); l.fopen.restype = ctypes.c_void_p; "
    "f = l.fopen(b'SECRET', b'r'); b = ctypes.create_string_buffer(99); "
    "f and l.fgets(b, 99, ctypes.c_void_p(f)); print(b.value)",
    "list the folder": "import os; assert 'secret' in os.listdir('OUTSIDE')" + HIT,
    "list the root's etc": "import os; assert os.listdir('/etc')" + HIT,
    "list home": "import os; assert os.listdir('/home') is not None" + HIT,
    "list proc": "import os; assert os.listdir('/proc')" + HIT,
    "glob": "import glob; assert glob.glob('OUTSIDE/*')" + HIT,
    "walk": "import os; assert [f for _, _, f in os.walk('OUTSIDE')]" + HIT,
    "climbing": "import os; names = [n for up in ('..', '../..', '../../..') for n in os.listdir(up)]\n"
    "assert os.path.basename('OUTSIDE') in names" + HIT,
    "descriptors of the host": "import os; assert os.listdir('/proc/HOST/fd')" + HIT,
    "site-packages": "import sysconfig, os; assert os.listdir('SITE')" + HIT,
    "a package not allowed": "import sys; sys.path.append('SITE'); import pytest" + HIT,
    "our own source": "import os; print('ESCAPED', len(open('REPO/ayllu/errors.py').read()))",
    "dlopen outside": "import ctypes; ctypes.CDLL('OUTSIDE/library.so')" + HIT,
    "name_to_handle_at": C + "b = ctypes.create_string_buffer(b'\\x80\\0\\0\\0' + bytes(136)); m = ctypes.c_int()\n"
    "assert libc.syscall(NR_name_to_handle_at, -100, b'SECRET', b, ctypes.byref(m), 0) == 0" + HIT,
    "openat2": C + "h = (ctypes.c_uint64 * 3)(0, 0, 0)\nf = libc.syscall(437, -100, b'SECRET', h, 24)\nprint(os.read(f, 99))",
    "open_tree": C + "f = libc.syscall(428, -100, b'OUTSIDE', 0)\nassert f >= 0" + HIT,
    "sendfile": "import os; f = os.open('SECRET', 0); os.sendfile(os.open('m', os.O_CREAT | os.O_RDWR), f, 0, 99); print(open('m').read())",
    "splice": "import os; f = os.open('SECRET', 0); r, w = os.pipe(); os.splice(f, w, 99); print(os.read(r, 99))",
    "copy_file_range": "import os; f = os.open('SECRET', 0); g = os.open('m', os.O_CREAT | os.O_RDWR); os.copy_file_range(f, g, 99); print(open('m').read())",
    "inotify": C + "f = libc.inotify_init(); assert libc.inotify_add_watch(f, b'OUTSIDE', 0xfff) >= 0" + HIT,
    "readlink of the host": "import os; assert os.readlink('/proc/HOST/exe')" + HIT,
    "xattr": "import os; os.listxattr('SECRET')" + HIT,
}.items():  # fmt: skip
    add(f"read by {_name}", _code, control=_name not in ("climbing", "list home"))

# ---- writing outside
for _name, _code in {
    "open": "open('OUTSIDE/new', 'w').write('x')",
    "append": "open('OUTSIDE/movable', 'a').write('x')",
    "truncate": "import os; os.truncate('OUTSIDE/movable', 1)",
    "mkdir": "import os; os.mkdir('OUTSIDE/made')",
    "unlink": "import os; os.unlink('OUTSIDE/movable')",
    "rmdir": "import os; os.rmdir('OUTSIDE/empty')",
    "rename out": "open('m', 'w').write('x'); import os; os.rename('m', 'OUTSIDE/new')",
    "hard link out": "open('m', 'w').write('x'); import os; os.link('m', 'OUTSIDE/new')",
    "symlink out": "import os; os.symlink('/etc/passwd', 'OUTSIDE/new')",
    "symlinked folder": "import os; os.symlink('OUTSIDE', 'd'); open('d/new', 'w').write('x')",
    "mkfifo": "import os; os.mkfifo('OUTSIDE/new')",
    "mknod": "import os; os.mknod('OUTSIDE/new')",
    "tempfile": "import tempfile; tempfile.mkstemp(dir='OUTSIDE')",
    "sqlite": "import sqlite3; sqlite3.connect('OUTSIDE/new.db').execute('create table x(a)')",
    "rename over": "open('m', 'w').write('x'); import os; os.replace('m', 'OUTSIDE/movable')",
    "exchange": C + "open('m','w').write('x')\nassert libc.renameat2(-100, b'm', -100, b'OUTSIDE/movable', 2) == 0",
    "O_TMPFILE": "import os; f = os.open('OUTSIDE', os.O_TMPFILE | os.O_RDWR, 0o600); os.write(f, b'x')",
    "shared mapping": "import mmap, os; f = os.open('OUTSIDE/movable', os.O_RDWR); mmap.mmap(f, 0)[0] = 65",
    "own mode": "import os, stat; os.chmod('OUTSIDE/movable', 0o600); assert os.stat('OUTSIDE/movable').st_mode & 0o777 == 0o600",
    "times": "import os; os.utime('OUTSIDE/movable', (1, 1)); assert os.stat('OUTSIDE/movable').st_mtime == 1",
    "set an attribute": "import os; os.setxattr('OUTSIDE/movable', 'user.a', b'x')",
}.items():  # fmt: skip
    add(f"write by {_name}", _code + HIT)
for _name, _code in {
    "the standard library": "import json, os; open(os.path.dirname(json.__file__) + '/canary.py', 'w')",
    "a module of it": "import json; open(json.__file__, 'a')",
    "bytecode": "import json, os; open(os.path.dirname(json.__file__) + '/__pycache__/canary.pyc', 'w')",
    "site-packages": "open('SITE/canary.pth', 'w')",
    "tmp": "open('/tmp/ayllu-canary-file', 'w')",
    "dev shm": "open('/dev/shm/ayllu-canary-file', 'w')",
    "var tmp": "open('/var/tmp/ayllu-canary-file', 'w')",
    "the room's root": "open('/canary', 'w')",
    "the work folder's parent": "open('../ayllu-canary-file', 'w')",
    "home": "import os; open('HOME/ayllu-canary-file', 'w')",
    "a core pattern": "open('/proc/sys/kernel/core_pattern', 'w').write('|x')",
    "oom score of the host": "open('/proc/HOST/oom_score_adj', 'w').write('1000')",
    "sysrq": "open('/proc/sysrq-trigger', 'w').write('h')",
    "its own memory file": "open('/proc/self/mem', 'r+b')",
    "the host's memory": "open('/proc/HOST/mem', 'r+b')",
    "a user map": "open('/proc/self/uid_map', 'w').write('0 0 1')",
    "ld.so.preload": "open('/etc/ld.so.preload', 'w')",
    "a cgroup": "import os; os.mkdir('/sys/fs/cgroup/ayllu-canary')",
    "a terminal": "open('/dev/tty', 'w')",
    "kernel messages": "open('/dev/kmsg', 'w').write('x')",
    "the disk": "open('/dev/vda', 'r+b')",
    "memory device": "open('/dev/mem', 'r+b')",
    "ptmx": "open('/dev/ptmx', 'r+b')",
    "fuse": "open('/dev/fuse', 'r+b')",
    "kvm": "open('/dev/kvm', 'r+b')",
}.items():
    add(f"write to {_name}", _code + HIT, control=False)
for _name, _code in {
    "set-user-id by mode": "import os; os.close(os.open('m', os.O_CREAT | os.O_WRONLY, 0o4755))",
    "set-user-id by chmod": "import os; open('m', 'w'); os.chmod('m', 0o6755)",
    "set-user-id by fchmod": "import os; f = open('m', 'w'); os.fchmod(f.fileno(), 0o4755)",
    "set-user-id by creat": C + "libc.creat(b'm', 0o4755)",
}.items():
    add(f"leave {_name}", _code + "\nimport os\nassert os.stat('m').st_mode & 0o6000" + HIT)

# ---- the network
for _family in [
    "AF_UNIX",
    "AF_INET",
    "AF_INET6",
    "AF_NETLINK",
    "AF_PACKET",
    "AF_VSOCK",
    "AF_ALG",
    "AF_BLUETOOTH",
    "AF_CAN",
    "AF_TIPC",
    "AF_QIPCRTR",
    "AF_KEY",
    "AF_RDS",
    "AF_APPLETALK",
    "AF_X25",
    "AF_IPX",
    "AF_ROSE",
]:
    for _kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW") if _family in ("AF_INET", "AF_INET6") else ("",):
        _use = f"socket.{_kind}" if _kind else "k"
        add(
            f"socket {_family} {_kind}".strip(),
            f"import socket\nfor k in (1, 2, 3, 5):\n    try: s = socket.socket(socket.{_family}, {_use})\n"
            "    except PermissionError: raise\n    except OSError: continue\n    else: print('ESCAPED')",
            control=_family in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK") and _kind != "SOCK_RAW",
        )
for _name, _code in {
    "connect to loopback": "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
    "listen": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
    "send a datagram": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', UDP))",
    "abstract socket": "import socket; socket.socket(1, 1).connect('\\0ABSTRACT')",
    "named socket": "import socket; socket.socket(1, 1).connect('OUTSIDE/socket')",
    "bind a named socket": "import socket; socket.socket(1, 1).bind('s')",
    "socketpair": "import socket; socket.socketpair()",
    "http": "import urllib.request as r; r.urlopen('http://127.0.0.1:PORT/', timeout=2).read(1)",
    "asyncio": "import asyncio; asyncio.run(asyncio.open_connection('127.0.0.1', PORT))",
    "resolve through files": "import socket; assert socket.gethostbyname('localhost')",
    "in C": C + "f = libc.socket(2, 1, 0); assert f >= 0",
    "raw system call": C + "f = libc.syscall(NR_socket, 2, 1, 0); assert f >= 0",
    "multiprocessing": "from multiprocessing.connection import Client; Client(('127.0.0.1', PORT)) if 0 else __import__('socket').create_connection(('127.0.0.1', PORT), 2)",
}.items():  # fmt: skip
    add(f"network: {_name}", _code + HIT)

# ---- processes and signals
for _name, _code in {
    "fork": "import os; p = os.fork(); os._exit(0) if p == 0 else os.waitpid(p, 0)",
    "vfork by subprocess": "import subprocess; subprocess.run(['/bin/true'])",
    "system": "import os; assert os.system('true') == 0",
    "popen": "import os; assert os.popen('echo x').read()",
    "shell": "import subprocess; assert subprocess.check_output(['/bin/sh', '-c', 'echo x'])",
    "spawn": "import os; assert os.spawnv(os.P_WAIT, '/bin/true', ['true']) == 0",
    "posix_spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": "import multiprocessing as m, os; c = m.get_context('fork'); p = c.Process(target=print); p.start(); p.join(); assert p.exitcode == 0",
    "process pool": "import os; from multiprocessing import get_context; p = get_context('fork').Process(target=id, args=(1,)); p.start(); p.join()",
    "pty": "import pty; p, f = pty.fork(); p or __import__('os')._exit(0)",
    "clone in C": C + "p = libc.syscall(NR_clone, 17, 0, 0, 0, 0)\nif p == 0: os._exit(0)\nassert p > 0",
    "clone3": C + "a = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)\np = libc.syscall(435, a, 88)\nif p == 0: os._exit(0)\nassert p > 0",
    "daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    os._exit(0)",
    "grandchild that writes later": "import os, time\nif os.fork() == 0:\n    if os.fork() == 0:\n        time.sleep(0.1)\n    os._exit(0)",
    "interpreter again": "import subprocess, sys; assert subprocess.run(['PYTHON', '-c', '1']).returncode == 0",
    "ctypes system": C + "assert libc.system(b'true') == 0",
    "ptrace a child": C + "assert libc.ptrace(0, 0, 0, 0) == 0",
}.items():  # fmt: skip
    add(f"process: {_name}", _code + HIT)
for _name, _code in {
    "victim": "import os; os.kill(VICTIM, 0)",
    "host": "import os; os.kill(HOST, 0)",
    "parent": "import os; assert os.getppid() > 1; os.kill(os.getppid(), 0)",
    "group": "import os; os.killpg(0, 0)",
    "thread": C + "assert libc.syscall(NR_tgkill, VICTIM, VICTIM, 0) == 0",
    "tkill": C + "assert libc.syscall(NR_tkill, VICTIM, 0) == 0",
    "queue": C + "assert libc.sigqueue(VICTIM, 0, 0) == 0",
    "pidfd": "import os; os.pidfd_open(VICTIM)",
    "stop": "import os, signal; os.kill(VICTIM, signal.SIGCONT)",
    "owner of a descriptor": "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, VICTIM)",
    "signal of a descriptor": "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETSIG, 9)",
    "limits of the victim": "import resource; resource.prlimit(VICTIM, resource.RLIMIT_NOFILE)",
    "memory of the victim": C
    + "b = ctypes.create_string_buffer(8); v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)\n"
    "r = libc.process_vm_readv(VICTIM, v, 1, v, 1, 0)\nassert r >= 0 or ctypes.get_errno() == 14",
    "attach to the victim": C
    + "r = libc.ptrace(0x4206, VICTIM, 0, 0); assert r == 0; libc.ptrace(17, VICTIM, 0, 0)",
    "priority of the victim": C + "assert libc.setpriority(0, VICTIM, 19) == 0",
    "scheduler of the victim": "import os; os.sched_setaffinity(VICTIM, {0})",
    "robust list of the victim": C + "a = ctypes.c_void_p(); b = ctypes.c_size_t()\n"
    "assert libc.syscall(NR_get_robust_list, VICTIM, ctypes.byref(a), ctypes.byref(b)) == 0",
}.items():
    add(f"signal: {_name}", _code + HIT, control=_name != "parent")

# ---- shared memory, descriptors, environment, the harness
for _name, _code in {
    "system V memory": C + "libc.shmat.restype = ctypes.c_void_p\na = libc.shmat(SHMID, None, 0)\nassert a != 2**64 - 1\nprint(ctypes.string_at(a, 40))",
    "new system V memory": C + "i = libc.shmget(0, 4096, 0o1600); assert i >= 0; libc.shmctl(i, 0, None)",
    "system V queue": C + "i = libc.msgget(0, 0o1600); assert i >= 0; libc.msgctl(i, 0, None)",
    "system V semaphores": C + "i = libc.semget(0, 1, 0o1600); assert i >= 0; libc.semctl(i, 0, 0)",
    "posix memory": C + "f = ctypes.CDLL('librt.so.1').shm_open(b'/SHMNAME', 0, 0); print(os.read(f, 99))",
    "posix semaphore": "import _multiprocessing as m; m.SemLock(1, 1, 1, '/ayllu-canary-sem', True)",
    "memfd": "import os; os.memfd_create('x')",
    "memfd and exec": "import os; f = os.memfd_create('x'); os.write(f, b'#!/bin/true')",
    "secret memory": C + "assert libc.syscall(447, 0) >= 0 or ctypes.get_errno() == 38 and not os",
    "message queue": C + "q = ctypes.CDLL('librt.so.1').mq_open(b'/ayllu-canary', 0o102, 0o600, None); assert q >= 0; ctypes.CDLL('librt.so.1').mq_unlink(b'/ayllu-canary')",
    "shared_memory": "from multiprocessing.shared_memory import SharedMemory as S; s = S(create=True, size=9); s.unlink()",
}.items():  # fmt: skip
    add(f"shared: {_name}", _code + HIT, control=_name not in ("secret memory",))
for _name, _code in {
    "open descriptors": "import os\nfor f in range(3, 1024):\n    try: os.fstat(f)\n    except OSError: continue\n    print('ESCAPED', f)",
    "sockets among them": "import os, stat\nfor f in range(1024):\n    try: m = os.fstat(f).st_mode\n    except OSError: continue\n    if stat.S_ISSOCK(m): print('ESCAPED', f)",
    "sockets among objects": "import gc, _socket\nprint('ESCAPED' if any(isinstance(o, _socket.socket) and o.fileno() >= 0 for o in gc.get_objects()) else '')\n"
    "import os\nfor f in range(3, 64):\n    try: os.write(f, b'{}')\n    except OSError: pass\n    else: print('ESCAPED')",
    "descriptors through rules": "import gc\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Keeper':\n        import os\n        for f, _ in o.rules: os.fstat(f); print('ESCAPED')\n        os.listdir(o.proc)",
    "environment": "import os; print(dict(os.environ), os.getenv('AYLLU_CANARY'))",
    "environment in C": C + "libc.getenv.restype = ctypes.c_char_p; print(libc.getenv(b'AYLLU_CANARY'))",
    "environment block": C + "e = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\ni = 0\nwhile e and e[i]: print(e[i]); i += 1",
    "arguments": "import sys; print(sys.orig_argv if 'OUTSIDE' in str(sys.orig_argv) else '', sys.argv)",
    "frames": "import sys\nf = sys._getframe()\nwhile f:\n    print(f.f_locals.get('request'), f.f_locals.get('spec'))\n    f = f.f_back",
    "gc": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'AYLLU_CANARY' in o: print('ESCAPED', o['AYLLU_CANARY'])",
    "code of other calls": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and isinstance(o.get('code'), str) and 'marker of an earlier call' in o['code'][:40]: print('ESCAPED')",
    "put back os._exit": "import os\nos._exit = lambda *a: None\nimport builtins\nbuiltins.print = None",
    "standard input": "import sys; d = sys.stdin.read(); assert d" + HIT,
    "terminal injection": "import fcntl; fcntl.ioctl(0, 0x5412, b'x')" + HIT,
    "terminal on stdout": "import fcntl; fcntl.ioctl(1, 0x5412, b'x')" + HIT,
    "pipe size": "import fcntl; fcntl.fcntl(1, 1031, 1 << 20)" + HIT,
    "steal the output of others": "import os; print(os.read(1, 10))" + HIT,
    "lease": "import fcntl, json; fcntl.fcntl(open(json.__file__), fcntl.F_SETLEASE, fcntl.F_RDLCK)" + HIT,
    "lock the library": "import fcntl, json; fcntl.flock(open(json.__file__), fcntl.LOCK_EX)" + HIT,
    "directory notices": "import fcntl, os; fcntl.fcntl(os.open('.', 0), 1026, 1)" + HIT,
}.items():  # fmt: skip
    add(f"harness: {_name}", _code, control=_name in ("pipe size", "lock the library", "directory notices"))  # fmt: skip
for _name, _code in {
    "pickle bomb as a result": "class R:\n    def __reduce__(self): return (open, ('OUTSIDE/new', 'w'))\nR()",
    "value whose repr escapes": "class R:\n    def __repr__(self): return open('SECRET').read()\nR()",
    "value whose repr is endless": "class R:\n    def __repr__(self): return 'x' * (1 << 40)\nR()",
    "value whose repr is no text": "class R:\n    def __repr__(self): return 7\nR()",
    "report of a keeper forged": "import os\nfor f in range(1, 64):\n    try: os.write(f, b'{\"status\": 0, \"wall\": \"x\"}')\n    except OSError: pass",
    "exception that prints badly": "class E(Exception):\n    def __str__(self): return open('SECRET').read()\nraise E",
    "exception that is a class of none": "raise type('E', (BaseException,), {'__str__': lambda s: 1 / 0})",
    "exit status forged": "import sys; sys.exit(10 ** 400 if 0 else 256)",
    "lone surrogates": "print('\\ud800')",
    "no utf-8": "import sys; sys.stdout.buffer.write(bytes(range(128, 256)))",
    "display hook": "import sys; sys.displayhook = lambda v: print(open('SECRET').read())\n1",
    "exception hook": "import sys; sys.excepthook = lambda *a: print(open('SECRET').read())\n1 / 0",
    "trace function": "import sys; sys.settrace(lambda *a: print(open('SECRET').read()))\ndef f(): pass\nf()",
    "audit hook": "import sys; sys.addaudithook(lambda *a: None); print(open('SECRET').read())",
    "at exit": "import atexit; atexit.register(lambda: print(open('SECRET').read()))",
    "destructor": "class D:\n    def __del__(self): print(open('SECRET').read())\nx = D(); del x",
    "thread that outlives": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(open('SECRET').read()))).start()",
    "daemon thread": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(5), open('OUTSIDE/new', 'w')), daemon=True).start()",
    "timer": "import signal, time; signal.signal(14, lambda *a: print(open('SECRET').read())); signal.setitimer(0, 0.01); time.sleep(0.1)",
    "the code evaluator": "().__class__.__base__.__subclasses__()\nprint([c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'FileLoader'][0]('x', 'SECRET').get_data('SECRET'))",
    "builtins put back": "__builtins__.__dict__ if 0 else None\nimport importlib; print(importlib.import_module('os').popen('cat SECRET').read())",
    "eval of a string": "print(eval('__import__(\"io\").open(\"SECRET\").read()'))",
    "a code object by hand": "def f(): pass\nf.__code__ = compile('print(open(\"SECRET\").read())', 'x', 'exec')\nf()",
    "format string": "print('{0.__class__}'.format(1), open('SECRET').read())",
    "LD_PRELOAD": "import os; os.environ['LD_PRELOAD'] = 'OUTSIDE/library.so'; os.execv('PYTHON', ['python', '-c', 'print(\"ESCAPED\")'])",
    "exec over itself": "import os; os.execv('/bin/cat', ['cat', 'SECRET'])",
    "exec from the work folder": "import os; open('x', 'w').write('#!/bin/sh\\ncat SECRET'); os.chmod('x', 0o755); os.execv('x', ['x'])",
    "execveat": C + "a = (ctypes.c_char_p * 3)(b'cat', b'SECRET', None)\nlibc.syscall(NR_execveat, -100, b'/bin/cat', a, None, 0)",
    "machine code": C + "assert os.uname().machine == 'x86_64'\nm = mmap.mmap(-1, 4096, prot=7)\n"
    "m.write(bytes.fromhex('b8390000000f05c3'))\np = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n"
    "if p == 0: os._exit(0)\nif p > 0: print('ESCAPED')",
    "the old 32-bit door": C + "assert os.uname().machine == 'x86_64'\nm = mmap.mmap(-1, 4096, prot=7)\n"
    "m.write(bytes.fromhex('b802000000cd80c3'))\np = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n"
    "if p == 0: os._exit(0)\nif p > 0: print('ESCAPED')",
    "the x32 door": C + "p = libc.syscall(0x40000000 + 57)\nif p == 0: os._exit(0)\nif p > 0: print('ESCAPED')",
    "null pointer": "import ctypes; ctypes.string_at(0)",
}.items():  # fmt: skip
    _ends = ("crash",) if _name in ("null pointer", "the old 32-bit door") else (None,)
    _shown = ("SECRET" in _code and _name not in ("execveat",)) or _name in ("machine code", "LD_PRELOAD")
    _shown = _shown and _name != "exception hook" and not _name.startswith(("exec from", "LD_"))
    TABLE.append(Attempt(f"trick: {_name}", _code, _shown, _ends))

# ---- limits: nothing is planted here, the judge looks at how the program ended and what is left
limit("time: a loop", "while True: pass", "time", "cpu")
limit("time: sleep", "import time; time.sleep(100)", "time")
limit("time: a loop in C", "sum(range(10 ** 12))", "time", "cpu")
limit("time: a power", "print(len(str(7 ** 10 ** 8)))", "time", "cpu", None)
limit("time: a regex", "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')", "time", "cpu")
limit("time: all signals ignored", "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass", "time", "cpu")  # fmt: skip
limit("time: a lock nobody opens", "import threading; l = threading.Lock(); l.acquire(); l.acquire()", "time")
limit("time: reading an empty pipe", "import os; os.read(os.pipe()[0], 1)", "time")
limit("time: exit that never ends", "import atexit, threading\nthreading.Thread(target=threading.Event().wait).start()", "time", None)  # fmt: skip
limit("time: exceptions swallowed", "while True:\n    try:\n        while True: pass\n    except BaseException: pass", "time", "cpu")  # fmt: skip
limit("memory: one block", "x = bytearray(1 << 31)" + HIT, None)
limit("memory: a list", "x = []\nwhile True: x.append(bytearray(1 << 20))", None, "time")
limit("memory: doubling text", "x = 'a'\nwhile True: x += x", None, "time")
limit("memory: anonymous map", "import mmap; m = mmap.mmap(-1, 1 << 31)" + HIT, None)
limit("memory: shared map", "import mmap; m = mmap.mmap(-1, 1 << 31, flags=mmap.MAP_SHARED)" + HIT, None)
limit("memory: a sparse file", "f = open('m', 'wb'); f.truncate(1 << 31)" + HIT, None)
limit("memory: locked", C + "m = mmap.mmap(-1, 1 << 20); assert libc.mlockall(3) == 0" + HIT, None)
limit("memory: endless int", "x = 1 << (1 << 33)" + HIT, None)
limit("memory: deep recursion", "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()", None, "crash", "time", "cpu")  # fmt: skip
limit("memory: deep nesting", "eval('(' * 100000)", None, "crash")
limit(
    "memory: raise the limit", "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))" + HIT, None
)
limit("processes: fork bomb", "import os\nwhile True: os.fork()", None)
limit("processes: hidden fork bomb", "import os\nfor _ in range(10 ** 4):\n    try: os.fork()\n    except OSError: pass", None, "time")  # fmt: skip
limit("processes: thread bomb", "import threading, time\nn = 0\ntry:\n    while n < 400: threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); n += 1\nexcept RuntimeError: pass\nprint('ESCAPED' if n > 40 else n)", None)  # fmt: skip
limit("processes: raise the limit", "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999)); n = resource.getrlimit(6)[1]\nassert n > 99" + HIT, None)  # fmt: skip
limit(
    "files: descriptors", "x = []\nwhile len(x) < 4000: x.append(open('/dev/null'))\nprint('ESCAPED')", None
)
limit("files: pipes", "import os\nx = []\nwhile len(x) < 4000: x.append(os.pipe())\nprint('ESCAPED')", None)
limit(
    "disk: one large file",
    "f = open('m', 'wb')\nfor _ in range(200): f.write(bytes(1 << 20))\nf.flush()" + HIT,
    None,
)
limit(
    "disk: many files",
    "n = 0\nwhile True:\n    n += 1\n    open(f'm{n}', 'wb').write(bytes(1 << 19))",
    "disk",
)
limit("disk: unlinked but open", "import os\nx = []\nfor n in range(200):\n    f = open('m', 'wb'); f.write(bytes(1 << 21)); f.flush(); os.unlink('m'); x.append(f)\nprint('ESCAPED')", None, "disk")  # fmt: skip
limit("disk: empty files", "n = 0\nwhile True:\n    n += 1\n    open(f'm{n}', 'w').close()", "disk")
limit("disk: folders", "import os\nn = 0\nwhile True:\n    n += 1\n    os.mkdir(f'm{n}')", "disk")
limit("disk: deep folders", "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')", "disk")
limit("disk: hidden in a closed folder", "import os\nos.mkdir('d', 0o700); os.chmod('d', 0)\nn = 0\nwhile True:\n    n += 1\n    open(f'd/m{n}', 'wb').write(bytes(1 << 19))", "disk")  # fmt: skip
limit("disk: reserved", "import os\nfor n in range(400):\n    f = os.open(f'm{n}', os.O_CREAT | os.O_RDWR); os.posix_fallocate(f, 0, 1 << 22)", "disk", None)  # fmt: skip
limit("disk: through a map", "import mmap\nfor n in range(100):\n    f = open(f'm{n}', 'w+b'); f.truncate(1 << 20); m = mmap.mmap(f.fileno(), 0); m[:] = bytes([1]) * (1 << 20)", "disk")  # fmt: skip
limit("disk: core dump", "import ctypes, os\nos.chmod('.', 0o777); ctypes.memset(0, 0, 1)", "crash")
limit("output: flood", "while True: print('x' * 10000)", "output", "time")
limit(
    "output: flood of errors", "import sys\nwhile True: print('x' * 10000, file=sys.stderr)", "output", "time"
)
limit("output: no line ends", "import os\nwhile True: os.write(1, b'x' * 65536)", "output", "time")
limit("output: from threads", "import threading, os\nfor _ in range(4): threading.Thread(target=lambda: [os.write(1, b'x' * 9999) for _ in range(10 ** 6)]).start()", "output", "time", None)  # fmt: skip
