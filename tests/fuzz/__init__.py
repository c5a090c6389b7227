"""Damaged files by the hundred thousand: `make fuzz`, or `python -m tests.fuzz --count N --seed S`.

samples.py makes one whole sample of each kind of file, damage.py spoils a copy, worker.py reads it in a
process with little memory, and __main__.py starts workers and counts. Every case is one seed, so that a
failure can be made again alone and a run can go on where another stopped.
"""
