"""Problems of a family with their worked solutions, for tests to look into."""

import re

import numpy as np

from ayllu.reason.transcript import Kind

SLOW = {"zebra": 9, "countdown4": 40}  # problems of families that take long to draw


def problems(task, split="train", n=80, seed=0):
    rng = np.random.default_rng(seed)
    return [task.problem(rng, 1 + i % task.levels, split) for i in range(n)]


def traced(task, n=80, seed=0):
    rng = np.random.default_rng(seed)
    return [(p, task.trace(p, rng)) for p in problems(task, "train", n, seed)]


def thinking(task, n=80):
    return [(p, t[0].text.split("\n"), t[-1].text) for p, t in traced(task, n) if t[0].kind == Kind.THINK]


def value(text):
    assert re.fullmatch(r"[\d+\-*/()]+", text), text
    return eval(text.replace("/", "//"))
