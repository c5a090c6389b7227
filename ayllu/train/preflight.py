"""Before the first update: a few problems of each family, and what they say about the hours to come.

RL can only make more frequent what a model does now and then. Whether it does, how many answers run out
of tokens and how long all of it will take can be known in a minute, and not knowing it has cost people
days (trl#5697: a run whose answers were cut off at 97 % and never earned anything; open-r1#255, #257).
So each family is sampled 16 times a problem, a table is printed, what a family can't teach is said in plain
words, and a run that can't work, or of which next to nothing would, is refused. A level with pass@1 far below
pass@16 is where RL has something to sharpen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ayllu import machine
from ayllu.errors import TrainingStoppedError
from ayllu.files import read_json, write_json
from ayllu.progress import clock
from ayllu.reason.curriculum import Curriculum, informative
from ayllu.reason.practice import TASKS
from ayllu.stage import StageContext

if TYPE_CHECKING:
    from ayllu.train.rl import RlSettings, Rollouts
    from ayllu.train.updates import Group

SAMPLES = 16
ROUNDS = 4  # of problems for a family before it is said to teach nothing: chance looks like that, too
LEAST = 0.05  # share of the families that teach something, below which a run isn't worth its hours
KEPT = ".preflight.json"  # beside the checkpoints: a resumed stage doesn't fly again


@dataclass(frozen=True)
class Flight:
    """What one family showed. Shares are from 0 to 1; `informative` of groups as large as the recipe's."""

    problems: int
    pass_1: float
    pass_16: float
    truncated: float
    informative: float
    tokens: float  # mean sampled tokens of an answer


def preflight(
    context: StageContext, rollouts: Rollouts, seconds: Callable[[list[Group]], float]
) -> dict[str, Any]:
    """Try `rollouts.settings.preflight` problems a family; print, keep and return what was found.

    `seconds(groups)` says how long forward and backward of some groups take. Raises TrainingStoppedError
    when no group of any family is informative, or only those of families with hardly any share are.
    """
    kept = context.folder / KEPT
    if kept.is_file():
        found: dict[str, Any] = read_json(kept)
        return found
    settings = rollouts.settings
    families = [family for family, share in settings.shares().items() if share]
    rollouts.engine.refresh()
    context.progress.start(len(families), "families")
    # What happens at first (kernels compiled, memory taken) is no part of what every step takes.
    rng = np.random.default_rng([rollouts.seed, 7])
    first = rollouts.answer([TASKS[families[0]].problem(rng, 1, "train")], 2, 0)
    seconds([replace(group, rewards=[1.0, 0.0]) for group in first])
    began = time.monotonic()
    by_family: dict[str, list[Group]] = {}
    for number, family in enumerate(families):
        rng = np.random.default_rng([rollouts.seed, 7, *family.encode()])
        task, drawn = TASKS[family], Curriculum()
        by_family[family] = []
        for _ in range(ROUNDS):
            problems = [
                task.problem(rng, drawn.draw_level(rng, task), "train") for _ in range(settings.preflight)
            ]
            by_family[family] += rollouts.answer(problems, SAMPLES, int(rng.integers(2**62)))
            if flight(by_family[family], settings.size).informative:
                break
        context.progress.update(number + 1, family)
    sampling = time.monotonic() - began
    every = [group for groups in by_family.values() for group in groups]
    flights = {family: flight(groups, settings.size) for family, groups in by_family.items()}
    shares = {family: settings.shares()[family] for family in families}
    notes = [line for family, each in flights.items() if (line := note(family, each, shares))]
    if not any(group.informative for group in every):
        raise nothing_to_learn(every)
    teaching = sum(share for family, share in shares.items() if flights[family].informative)
    if teaching < LEAST * sum(shares.values()):
        raise TrainingStoppedError(
            f"{100 - 100 * teaching / sum(shares.values()):.0f} % of the problems would teach nothing",
            why="; ".join(notes) or "hardly any group has both right and wrong answers",
            fix="give the other families more share, or the model more SFT (rl.preflight = 0 goes on anyway)",
        )
    tokens = sum(answer.tokens for group in every for answer in group.answers)
    an_answer = weighed(shares, {family: each.tokens for family, each in flights.items()})
    useful = [group for group in every if group.informative][: settings.groups]
    training = seconds(useful) / (len(useful) * SAMPLES)
    result = {
        "families": {family: asdict(each) for family, each in flights.items()},
        "tokens_per_second": tokens / sampling,
        "seconds": forecast(flights, settings, sampling / tokens * an_answer, training),
        "truncated": weighed(shares, {family: each.truncated for family, each in flights.items()}),
        "peak_memory_mb": machine.peak_memory_mb(),
    }
    for line in [*table(result), *notes]:
        context.progress.say(line)
    write_json(kept, result)
    return result


def flight(groups: list[Group], size: int) -> Flight:
    """The shares of some groups of one family, of which every `size` answers count as a group of training."""
    answers = [answer for group in groups for answer in group.answers]
    parts = [
        group.rewards[at : at + size]
        for group in groups
        for at in range(0, max(len(group.rewards) - size, 0) + 1, size)
    ]
    return Flight(
        len(groups),
        float(np.mean([value > 0 for group in groups for value in group.rewards])),
        float(np.mean([max(group.rewards) > 0 for group in groups])),
        float(np.mean([answer.finish_reason == "length" for answer in answers])),
        float(np.mean([informative(rewards) for rewards in parts])),
        float(np.mean([answer.tokens for answer in answers])),
    )


def weighed(shares: dict[str, float], values: dict[str, float]) -> float:
    """The mean of `values` over what will be sampled."""
    return sum(share * values[family] for family, share in shares.items()) / sum(shares.values())


def note(family: str, found: Flight, shares: dict[str, float]) -> str:
    """What is wrong with a family, in a sentence; "" where nothing is."""
    share = f"its {100 * shares[family] / sum(shares.values()):.0f} % of the problems"
    if found.truncated > 0.5:
        return f"{family}: {100 * found.truncated:.0f} % of the answers are cut off; raise rl.max_tokens"
    if found.pass_16 == 0:
        return f"{family}: not right once in {found.problems * SAMPLES} answers; {share} will teach nothing"
    if found.informative == 0:
        always = "always right" if found.pass_1 > 0.9 else "always right or never"
        return f"{family}: {always} in these {found.problems} problems; {share} may teach little"
    return ""


def forecast(flights: dict[str, Flight], settings: RlSettings, sampling: float, training: float) -> float:
    """Seconds of the whole stage, from those of sampling and of training on one answer.

    Groups that aren't informative are sampled for nothing; the SFT anchor counts as rows of answers.
    """
    shares = {family: settings.shares()[family] for family in flights}
    informative = weighed(shares, {family: each.informative for family, each in flights.items()})
    sampled, missing = 0.0, float(settings.groups)
    for _ in range(settings.rounds):  # as Rollouts.sample goes about it
        count = min(4 * settings.groups, max(missing, 0.0) / max(informative, 0.25))
        sampled, missing = sampled + count, missing - count * informative
    anchor = settings.updates * settings.anchor_rows * bool(settings.anchor)
    # Of all parts but the first log-probabilities are computed twice: a forward, a third of a pass, each.
    passes = 1 + 2 * (settings.updates - 1) / (3 * settings.updates)
    step = sampled * settings.size * sampling + (settings.groups * settings.size * passes + anchor) * training
    return step * settings.steps


def table(result: dict[str, Any]) -> list[str]:
    """The result as lines for the terminal."""
    head = f"{'before the first update':<24}{'pass@1':>8}{'pass@16':>9}{'cut off':>9}{'informative':>13}"
    lines = [head + f"{'tokens':>8}"]
    for family, each in result["families"].items():
        shares = (each["pass_1"], each["pass_16"], each["truncated"], each["informative"])
        cells = "".join(f"{100 * v:{w}.0f} %" for v, w in zip(shares, (6, 7, 7, 11), strict=True))
        lines.append(f"{family:<24}{cells}{each['tokens']:8.0f}")
    return [
        *lines,
        f"{result['tokens_per_second']:,.0f} sampled tokens a second, "
        f"{result['peak_memory_mb']:,.0f} MB; all of it will take about {clock(result['seconds'])}",
    ]


def nothing_to_learn(groups: list[Group]) -> TrainingStoppedError:
    """Why groups without any spread of rewards teach nothing, and what to do about it."""
    right = sum(min(group.rewards) > 0 for group in groups)
    wrong = [answer for group in groups if min(group.rewards) <= 0 for answer in group.answers]
    if not wrong:
        return TrainingStoppedError(
            "every group is all right: there is nothing left to learn at this level",
            fix="stop here, or add harder levels or families in the recipe",
        )
    cut = sum(answer.finish_reason == "length" for answer in wrong) / len(wrong)
    some = f"{right} of {len(groups)} groups are all right and the others" if right else "every group is"
    if cut > 0.5:
        return TrainingStoppedError(
            f"{some} all wrong, and {100 * cut:.0f} % of their answers ran out of tokens",
            fix="raise rl.max_tokens (and the model's context), or teach shorter solutions in SFT",
        )
    if right:
        return TrainingStoppedError(
            f"{some} all wrong: there is nothing in between that RL could make more frequent",
            fix="add problems between the two (levels, families), or give the model more SFT",
        )
    return TrainingStoppedError(
        "every group is all wrong: RL can only make more frequent what happens now and then",
        fix="give the model more SFT, or easier problems (a lower level, other families)",
    )
