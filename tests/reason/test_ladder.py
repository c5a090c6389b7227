"""The ladder of problem families: what holds for all of them, and how they are drawn for practice."""

import itertools
import json
import os
import re
from collections import Counter

import numpy as np
import pytest
from drawn import SLOW, problems, traced

from ayllu.errors import RecipeValueError
from ayllu.reason.practice import (
    EXAMS,
    LADDER,
    RESAMPLED,
    TASKS,
    check_families,
    draw,
    practice_texts,
    tokenizer_texts,
)
from ayllu.reason.task import SPLITS, TEMPLATES, conversation
from ayllu.reason.tasks import (
    expressions,
)
from ayllu.reason.transcript import Chat, Kind
from ayllu.text.tokenizer import train_tokenizer

GENERATED = [task for task in LADDER if task is not RESAMPLED]
# Characters of prompt and solution together; stated, so that a recipe can choose the length of its rows.
LONGEST = {
    "long_arithmetic": 420, "expressions": 260, "countdown4": 400, "countdown3_patient": 420,
    "number_theory": 420, "bases": 330, "lists": 420, "dates": 520, "knights": 750, "zebra": 1000,
    "paths": 420, "stories_en": 750, "stories_de": 800, "stories_te": 800,
    "tables": 560, "tool_choice": 220, "programs": 420,
}  # fmt: skip


families = pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.family)


# ---- all families
@families
def test_splits_never_meet(task):
    # With AYLLU_DRAWS=10000 these are ten thousand draws of each family and split (some minutes).
    n = int(os.environ.get("AYLLU_DRAWS", SLOW.get(task.family, 120)))
    splits = (*SPLITS, TEMPLATES) if task.templates else SPLITS
    drawn = {split: problems(task, split, n) for split in splits}
    for one, other in itertools.combinations(splits, 2):
        if (one, other) != ("test", TEMPLATES):  # these two may share numbers, in other words
            assert {p.key for p in drawn[one]}.isdisjoint(p.key for p in drawn[other])

    def asked(p):  # for the choice of a tool, what is on offer is part of the question
        return p.prompt, tuple(sorted(p.tools)) if task.family == "tool_choice" else ()

    for one, other in itertools.combinations(splits, 2):
        if "dev" not in (one, other):
            assert set(map(asked, drawn[one])).isdisjoint(map(asked, drawn[other]))


def test_new_wordings_are_asked_in_every_language_and_nowhere_else():
    for name in ("long_arithmetic", "expressions", "countdown4", "number_theory", "lists", "bases", "paths"):

        def words(split, name=name):
            drawn = problems(TASKS[name], split, SLOW.get(name, 200))
            return {re.sub(r"[\d\W]+", " ", p.prompt) for p in drawn}

        new = words(TEMPLATES)
        assert any(re.search("[\u0c00-\u0c7f]", text) for text in new), name
        assert new.isdisjoint(words("train")), name
        assert "~" not in "".join(p.prompt for p in problems(TASKS[name], TEMPLATES, 30))
    assert {f"{task.family}_templates" for task in GENERATED} <= set(EXAMS)


def test_a_remainder_belongs_to_one_split_whichever_family_asks():
    for p in problems(TASKS["number_theory"], "train", 300):
        if p.data["kind"] == "remainder":
            x, y = p.data["x"], p.data["y"]
            asked = expressions.Node(x % y, "%", expressions.Node(x), expressions.Node(y))
            assert asked.key() == p.key


@families
def test_the_same_seed_gives_the_same_problems(task):
    assert traced(task, 9, 3) == traced(task, 9, 3) != traced(task, 9, 4)


@families
def test_the_expert_is_right_and_chance_is_not(task):
    """Oracle and random baseline: the own solution scores, the answer to another problem hardly does."""
    solved = traced(task, SLOW.get(task.family, 90))
    right = [task.verify(p, trace[-1].text).strict for p, trace in solved]
    if task.family.startswith("countdown"):
        assert 0.8 < np.mean(right) <= 1, "now and then the expert gives up, and says so"
        assert all(r or t[-1].text == "no" for r, (_, t) in zip(right, solved, strict=True))
    else:
        assert all(right)
    others = [task.verify(p, solved[i - 1][1][-1].text).lenient for i, (p, _) in enumerate(solved)]
    chance = {"tool_choice": 0.35, "lists": 0.25, "number_theory": 0.3}.get(task.family, 0.15)
    assert np.mean(others) <= chance
    for p, trace in solved[:20]:
        assert not task.verify(p, None).strict and not task.verify(p, "").lenient
        assert not task.verify(p, trace[-1].text + " or not").strict


@families
def test_solutions_stay_below_the_stated_length(task):
    for p, trace in traced(task, SLOW.get(task.family, 60)):
        assert len(p.prompt) + sum(len(piece.text) for piece in trace) <= LONGEST[task.family]
        assert all(piece.text.strip() for piece in trace) and trace[-1].kind == Kind.SAY


@families
def test_problems_are_plain_data_and_offer_what_their_solution_calls(task):
    for p, trace in traced(task, 20):
        assert json.loads(json.dumps(p.data)) == p.data
        called = {piece.text.partition(" ")[0] for piece in trace if piece.kind == Kind.CALL}
        assert called <= set(p.tools)


CHAT = Chat(train_tokenizer(practice_texts(0), 400))


def test_everything_can_be_rendered_and_read_back():
    for task in GENERATED:
        for p, trace in traced(task, 6):
            whole = conversation(CHAT, p, trace)
            assert all(map(CHAT.is_closed, whole.spans))
            assert CHAT.answer(whole) == trace[-1].text
            assert [CHAT.text(s) for s in whole.spans[-len(trace) :]] == [piece.text for piece in trace]


# ---- practice
def test_families_are_drawn_by_name():
    rng = np.random.default_rng(0)
    shares = {"stories_te": 0.3, "tables": 0.3, "expressions": 0.4}
    offered = Counter()
    for _ in range(40):
        transcript = draw(rng, CHAT, shares)
        assert all(map(CHAT.is_closed, transcript.spans)) and transcript.spans[-1].kind == Kind.SAY
        for span in transcript.spans:
            if span.kind == Kind.CALL:
                name = CHAT.text(span).partition(" ")[0]
                assert name in CHAT.text(transcript.spans[0])
                offered[name] += 1
    assert offered["sql"] > 3 and offered["calculator"] > 5


def test_unknown_families_are_refused_and_new_templates_are_exams_only():
    with pytest.raises(RecipeValueError, match="storys"):
        check_families(["storys"], "sft.families")
    assert {"stories_de_templates", "tables_templates", "tool_choice_templates"} <= set(EXAMS) - set(TASKS)
    exam = EXAMS["stories_de_templates"]
    p = exam.problem(np.random.default_rng(0), 2, "test")
    assert p.family == "stories_de_templates" and exam.verify(p, p.answer).strict
    with pytest.raises(AssertionError):
        exam.problem(np.random.default_rng(0), 2, "train")


class Shares:
    def __init__(self, *names):
        self.names = names

    def shares(self):
        return dict.fromkeys(self.names, 1.0)


def test_the_tokenizer_sees_the_words_of_further_families_only():
    plain = list(practice_texts(1))
    assert list(tokenizer_texts(Shares("arithmetic", "dialogue"), 1)) == plain, "the demo's are unchanged"
    more = list(tokenizer_texts(Shares("arithmetic", "stories_te"), 1))
    assert more[: len(plain)] == plain and any("పండ్లు" in text for text in more[len(plain) :])


def test_where_the_tokenizer_takes_only_a_part_no_family_is_left_out():
    families = ("bases", "expressions", "stories_te", "tables", "tool_choice")
    further = list(tokenizer_texts(Shares(*families), 1))[len(list(practice_texts(1))) :]
    part = further[: len(further) // 10]
    for family in families:
        words = {
            word
            for p in problems(TASKS[family], "train", 40)
            for word in p.prompt.split()
            if not re.search(r"[\d(){}]", word)
        }
        seen = {word for text in part for word in text.split()}
        assert len(words & seen) > 0.25 * len(words) > 1, family
