"""Levels by p(1-p), kept above a floor, through JSON and back."""

import json
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.reason.curriculum import Curriculum
from ayllu.reason.practice import TASKS, budgeted, draw, draw_level, evaluation_prompts
from ayllu.reason.task import distinct_problems, split_of
from ayllu.reason.tasks.arithmetic import canonical_key, quotient_key
from ayllu.reason.tasks.countdown import Countdown
from ayllu.reason.transcript import Chat, Kind
from ayllu.text.tokenizer import train_tokenizer

TASK = Countdown()
rewards = st.lists(st.sampled_from([0.0, 1.0, -0.1]), min_size=1, max_size=6)
groups = st.lists(st.tuples(st.just("countdown3"), st.integers(1, 3), rewards), min_size=1, max_size=6)


def drawn(curriculum, n=3000):
    rng = np.random.default_rng(0)
    return Counter(curriculum.draw_level(rng, TASK) for _ in range(n))


def test_uncertain_levels_come_most_often_and_none_is_forgotten():
    curriculum = Curriculum(passes={"countdown3/1": 1.0, "countdown3/2": 0.5, "countdown3/3": 0.02})
    counts = drawn(curriculum)
    weights = np.array([0.0, 0.25, 0.02 * 0.98]) + 0.02
    assert [counts[n] / 3000 for n in (1, 2, 3)] == pytest.approx(weights / weights.sum(), abs=0.03)
    assert min(counts[n] for n in (1, 2, 3)) > 0


def test_unknown_levels_are_even():
    counts = drawn(Curriculum())
    assert [counts[n] / 3000 for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.04)


@given(steps=st.lists(groups, max_size=6))
def test_what_was_seen_stays_a_rate_and_survives_json(steps):
    curriculum = Curriculum()
    for step in steps:
        curriculum.observe(step)
    every = [r for step in steps for _, _, rewards in step for r in rewards]
    assert all(min(every) - 1e-9 <= p <= max(every) + 1e-9 for p in curriculum.passes.values())
    assert 0 <= curriculum.informative <= 1
    again = Curriculum()
    again.restore(json.loads(json.dumps(asdict(curriculum))))
    assert again == curriculum
    rngs = [np.random.default_rng(1), np.random.default_rng(1)]
    assert [again.draw_level(rngs[0], TASK) for _ in range(9)] == [
        curriculum.draw_level(rngs[1], TASK) for _ in range(9)
    ]


def test_steps_without_a_useful_group_are_counted():
    curriculum = Curriculum()
    for _ in range(3):
        curriculum.observe([("countdown3", 1, [1.0, 1.0]), ("countdown3", 2, [0.0])])
    assert curriculum.empty == 3 and curriculum.informative == pytest.approx(0.5 * 0.8**3)
    curriculum.observe([("countdown3", 1, [1.0, 0.0])])
    assert curriculum.empty == 0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=4))
def test_a_level_can_be_drawn_whatever_the_rewards_were(rewards):
    curriculum = Curriculum()
    for level in range(1, TASK.levels + 1):
        curriculum.observe([(TASK.family, level, rewards)])
    assert 1 <= curriculum.draw_level(np.random.default_rng(0), TASK) <= TASK.levels


def test_wrong_answers_alone_teach_nothing_whatever_they_cost():
    curriculum = Curriculum()
    curriculum.observe([("countdown3", 1, [0.0, -0.05]), ("countdown3", 2, [1.0, 1.0])])
    assert curriculum.empty == 1
    curriculum.observe([("countdown3", 1, [1.0, 1.0, 0.9])])
    assert curriculum.empty == 0


# ---- practice
CHAT = Chat(train_tokenizer(iter(["What is 12 + 30? Use 1, 2, 3 to make 6. calculator"]), 300))


@pytest.mark.parametrize("family", TASKS)
def test_the_highest_level_is_drawn_half_of_the_time_and_the_others_evenly(family):
    task, rng = TASKS[family], np.random.default_rng(0)
    counts = Counter(draw_level(rng, task) for _ in range(3000))
    assert set(counts) == set(range(1, task.levels + 1))
    for level in range(1, task.levels + 1):
        share = 1.0 if task.levels == 1 else 0.5 if level == task.levels else 0.5 / (task.levels - 1)
        assert counts[level] / 3000 == pytest.approx(share, abs=0.04)


def _keys(prompt):
    """The canonical keys that a prompt's numbers could be (of any sum, or a Countdown)."""
    numbers = [int(n) for n in re.findall(r"\d+", prompt)]
    sign = re.search(r"\d ([-+*/]) \d", prompt)
    if sign and len(numbers) == 2:
        x, y = numbers
        return [quotient_key(x, y) if sign[1] == "/" else canonical_key(x, sign[1], y)]
    if len(numbers) == 4:
        first, last = sorted(numbers[:3]), sorted(numbers[1:])
        return ["countdown " + " ".join(map(str, (last if prompt.startswith(("Make", "Bilde")) else first)))]
    return []


def test_practice_never_shows_a_problem_of_the_test_split():
    rng, seen = np.random.default_rng(4), 0
    shares = {"arithmetic": 0.4, "calculator": 0.3, "countdown3": 0.2, "dialogue": 0.1}
    for _ in range(400):
        transcript = draw(rng, CHAT, shares)
        assert transcript.spans[-1].kind == Kind.SAY and all(map(CHAT.is_closed, transcript.spans))
        for span in transcript.spans:
            assert span.sampled == (span.kind in (Kind.THINK, Kind.CALL, Kind.SAY))
            if span.kind == Kind.USER:
                for key in _keys(CHAT.text(span)):
                    seen += 1
                    assert split_of(key) == "train", CHAT.text(span)
    assert seen > 300


def test_practice_follows_its_seed_and_its_shares():
    def conversations(seed, shares):
        rng = np.random.default_rng(seed)
        return [draw(rng, CHAT, shares) for _ in range(10)]

    mixed = {"arithmetic": 1.0, "calculator": 1.0, "countdown3": 1.0, "dialogue": 1.0}
    assert conversations(1, mixed) == conversations(1, mixed) != conversations(2, mixed)
    only = {"arithmetic": 1.0, "calculator": 0.0, "countdown3": 0.0, "dialogue": 0.0}
    for transcript in conversations(3, only):
        assert not any(span.kind == Kind.CALL for span in transcript.spans)
        prompts = [CHAT.text(span) for span in transcript.spans if span.kind == Kind.USER]
        assert all(len(_keys(prompt)) == 1 for prompt in prompts)


def test_examination_prompts_are_of_the_test_split():
    class Settings:
        families = ("arithmetic", "calculator", "countdown3", "unknown")
        n = 40

    prompts = evaluation_prompts(Settings(), 7)
    assert prompts == evaluation_prompts(Settings(), 7) and len(prompts) > 100
    assert all(split_of(key) == "test" for prompt in prompts for key in _keys(prompt))
    assert sum(bool(_keys(prompt)) for prompt in prompts) == len(prompts)
    asked = distinct_problems(TASKS["countdown3"], 40, (TASKS["countdown3"].levels,), "test", 7)
    assert {problem.prompt for problem in asked} <= set(prompts), "what the stage eval will ask"


# ---- levels that rest
def mastered(level, times, retire=3, reward=1.0):
    curriculum = Curriculum(retire=retire, replay=0.2)
    for _ in range(times):
        curriculum.observe([("countdown3", level, [reward] * 4)])
    return curriculum


def test_a_level_rests_after_enough_mastered_visits_and_keeps_its_replay():
    assert not mastered(1, 2).rests("countdown3", 1)
    curriculum = mastered(1, 3)
    assert curriculum.rests("countdown3", 1) and not curriculum.rests("countdown3", 2)
    counts = drawn(curriculum)
    assert counts[1] / 3000 == pytest.approx(0.2, abs=0.03)
    assert counts[2] > 0 and counts[3] > 0
    assert curriculum.share(TASK) == 1.0


def test_a_bad_visit_wakes_a_level():
    curriculum = mastered(1, 5)
    curriculum.observe([("countdown3", 1, [1.0, 0.0, 1.0, 1.0])])
    assert not curriculum.rests("countdown3", 1)
    assert not mastered(1, 9, reward=0.89).rests("countdown3", 1)
    assert mastered(1, 3, reward=0.9).rests("countdown3", 1)


def test_nothing_rests_unless_it_is_asked_for():
    curriculum = mastered(1, 50, retire=0)
    same = Curriculum(passes=dict(curriculum.passes))
    assert not curriculum.rests("countdown3", 1) and drawn(curriculum) == drawn(same)


def test_a_family_whose_levels_all_rest_keeps_a_part_of_its_share():
    curriculum = Curriculum(retire=1, replay=0.2)
    curriculum.observe([("countdown3", n, [1.0, 1.0]) for n in range(1, TASK.levels + 1)])
    assert curriculum.share(TASK) == 0.2
    assert set(drawn(curriculum)) == set(range(1, TASK.levels + 1))
    again = Curriculum(retire=1, replay=0.2)
    again.restore(json.loads(json.dumps(asdict(curriculum))))
    assert again == curriculum


# ---- how long to think
def test_a_budget_that_is_too_small_breaks_the_thinking_off_and_the_answer_follows():
    rng = np.random.default_rng(0)
    task = TASKS["arithmetic"]
    problem = task.problem(rng, task.levels, "train")
    trace = task.trace(problem, rng)
    whole = CHAT.span(Kind.THINK, trace[0].text, sampled=True)
    length = len(whole.ids) - 2
    for budget in (0, 1, length - 1, length, 512):
        transcript = budgeted(CHAT, problem, trace, budget)
        assert CHAT.text(transcript.spans[0]).endswith(f"think: {budget}")
        thoughts = [span for span in transcript.spans if span.kind == Kind.THINK]
        assert len(thoughts) == (budget > 0)
        if thoughts:
            assert thoughts[0].ids[1:-1] == whole.ids[1:-1][:budget] and CHAT.is_closed(thoughts[0])
            assert thoughts[0].sampled
        assert task.verify(problem, CHAT.answer(transcript)).strict


def test_solutions_with_calls_keep_their_thinking_and_are_told_a_budget_that_holds_it():
    rng = np.random.default_rng(0)
    task = TASKS["expressions"]
    for _ in range(20):
        problem = task.problem(rng, task.levels, "train")
        trace = task.trace(problem, rng)
        transcript = budgeted(CHAT, problem, trace, 0)
        told = int(CHAT.text(transcript.spans[0]).rpartition(" ")[2])
        thought = sum(len(span.ids) - 2 for span in transcript.spans if span.kind == Kind.THINK)
        assert thought <= told
        assert [CHAT.text(s) for s in transcript.spans if s.kind == Kind.CALL] == [
            piece.text for piece in trace if piece.kind == Kind.CALL
        ]


def test_budgets_come_with_their_share_and_cost_nothing_where_there_are_none():
    shares = {"arithmetic": 0.5, "countdown3": 0.5}

    def texts(seed, **more):
        rng = np.random.default_rng(seed)
        return [CHAT.text(draw(rng, CHAT, shares, **more).spans[0]) for _ in range(400)]

    assert texts(1, budgets=0.0) == texts(1) and not any("think:" in text for text in texts(1))
    counted = sum("think:" in text for text in texts(1, budgets=0.3))
    assert 80 < counted < 160
