"""The walls of the sandbox, one file each: what the Linux kernel offers to keep a program in.

    namespaces.py   a room of its own: mounts, network, processes, users (unshare(2), pivot_root(2))
    landlock.py     which files may be opened, whoever asks (landlock(7))
    seccomp.py      which system calls exist at all (seccomp(2))
    privileges.py   no capabilities, no new ones, limits on memory, time and files
    inmate.py       the program inside: runs the code and prints what it gave
    keeper.py       the warm interpreter that forks a walled child for each call
    folder.py       what a work folder holds, counted and emptied without trusting its content
    libraries.py    which shared libraries the interpreter's own modules need

Only the standard library is used here, and nothing of the rest of the package: these files are loaded by
the interpreter that model-written code is later forked from.
"""
