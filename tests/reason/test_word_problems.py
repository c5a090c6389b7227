"""Word problems: the grammar's size, its splits, and lines of working that can be followed."""

import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from drawn import problems, thinking, value

from ayllu.reason.practice import TASKS
from ayllu.reason.task import TEMPLATES, held_out, split_of
from ayllu.reason.tasks import stories, story_words
from ayllu.reason.tasks.story_graph import compose, in_parts, needed_steps, retold
from ayllu.reason.tasks.story_words import LANGUAGES


def test_the_grammar_is_as_large_as_it_says():
    assert len(set(story_words.predicates())) >= 200
    styles = {f"{group}.{name}" for group in ("say", "ask") for name in story_words.words()[group]}
    assert len(styles) >= 12
    for group in ("say", "ask"):
        for style in story_words.words()[group].values():
            assert all(len(style[language]) >= 2 for language in LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_stories_say_all_their_numbers_and_hold_templates_out(language):
    task = TASKS[f"stories_{language}"]
    train = problems(task, "train", 120)
    new = problems(task, TEMPLATES, 60)
    assert {p.data["template"] for p in train}.isdisjoint(
        p.data["template"] for p in new if held_out(p.data["template"], 0.12)
    )
    known = {q for p in train for q in p.data["predicates"]}
    for p in new:
        held = held_out(p.data["template"], 0.12)
        assert held or any(q not in known for q in p.data["predicates"])
    for p in train:
        assert not re.search(r"[{}\[\]]|\b[01]\b", p.prompt), "slots filled; never one of a thing"
        given = set(re.findall(r"\d+", p.prompt))
        known_values = dict[str, int]()
        named = dict(reversed(each.rsplit(" ", 1)) for each in p.data["legend"].split(", "))
        assert "".join(named) == "ABCD"[: len(named)] and all(name in p.prompt for name in named.values())
        for line in p.data["lines"]:
            # A = B+5=12+5=17, A17 or A17, where it is given; at the end the question: ? A*2=17*2=34
            working, _, stated = line.rpartition(", ")
            assert (line is p.data["lines"][-1]) == line.startswith("? ")
            if line.startswith("? "):
                working, stated = line.removeprefix("? "), ""
            letter, number = stated[:1], stated[1:]
            if stated and working:
                whose, _, working = working.partition(" = ")
                assert whose == letter
            first, *more = (working or number).replace(" ", "").split("=")
            if re.search(r"[A-D]", first):  # their latest values in their places are the second side
                for a in "ABCD":
                    first = first.replace(a, str(known_values.get(a, "?")))
                assert more.pop(0) == first
            else:  # nobody's quantity is needed: all numbers stand in the story
                assert set(re.findall(r"\d+", first)) <= given
            assert set(re.findall(r"\d+", first)) <= given | set(map(str, known_values.values()))
            result = int(more[-1] if more else first)
            assert {value(side) for side in (first, *more)} == {result}
            assert len(more) in (0, 1, 3) and (len(more) == 3) == bool(in_parts(first))
            if stated:  # what a later line looks up stands behind the letter
                assert int(number) == result and letter in named
                known_values[letter] = result
        operations = [line for line in p.data["lines"] if re.search(r"\d[-+*/]\d", line)]
        assert len(operations) == p.level and str(result) == p.answer


@pytest.mark.parametrize("large", range(1, 241))
def test_products_and_quotients_in_parts_are_within_the_tables(large):
    for small in range(2, 10):
        sums = [f"{large}*{small}", f"{small}*{large}"] + [f"{large}/{small}"] * (large % small == 0)
        for asked in sums:
            parts = in_parts(asked)
            beyond = large > 10 if "*" in asked else large // small > 10
            round_one = (large if "*" in asked else large // small) % 10 == 0
            assert bool(parts) == (beyond and not round_one)
            assert {value(side) for side in parts} <= {value(asked)}
    assert not in_parts(f"{large}+3") and not in_parts(f"{large}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_was_read_is_enough_to_reckon(language):
    """A solver that sees nothing but the second line gets every answer, by names and by letters."""
    task = TASKS[f"stories_{language}"]
    for p, lines, said in thinking(task, 200):
        value_of = dict[str, int]()
        assert all(line.startswith(" ") and not line.startswith("  ") for line in lines)
        read = lines[1][1:].replace(" = ", "=")
        for each in lines[0][1:].split(", "):  # name and letter stand together wherever one is named
            assert each in read or each.split(" ")[0] not in read
            read = read.replace(each, each[-1])
        assert not re.search(r"[^-+*/=?, \dA-D]", read)
        read = re.sub(r" ([-+*/]) |(?<=\?) ", r"\1", read)
        facts = [sign for sign in read.split(", ") if sign != "-"]
        assert read.count(",") + 1 >= len(facts) >= 2 and facts[-1].startswith("?")

        def reckon(text, value_of=value_of):
            for name in sorted(value_of, key=len, reverse=True):
                text = text.replace(name, str(value_of[name]))
            return value(text) if re.fullmatch(r"[\d+\-*/]+", text) else None

        equations = [f.split("=") for f in facts if "=" in f]
        while equations:
            before = len(equations)
            for left, right in list(equations):
                made = reckon(right)
                if made is not None:
                    value_of[left] = made
                elif left in value_of:  # the unknown is the first name of the right side
                    name, sign, n = re.fullmatch(r"(.+?)([-+*/])(\d+)", right).groups()
                    turned = {"+": "-", "-": "+", "*": "/", "/": "*"}[sign]
                    value_of[name] = value(f"{value_of[left]}{turned}{n}")
                else:
                    continue
                equations.remove([left, right])
            assert len(equations) < before, p.prompt
        for event in (part for f in facts if "=" not in f and f[0] != "?" for part in f.split()):
            name = re.split(r"[-+]", event)[0]
            value_of[name] = reckon(event)
        assert str(reckon(facts[-1][1:])) == said == p.answer, (p.prompt, read)


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_told_in_the_same_words_is_the_same_template(language):
    """Also where a language has fewer wordings than another: else one of held-out templates is practised."""
    seen = dict[str, set[str]]()
    rng = Random(5)
    while len(seen) < 400:
        if story := compose(rng, 1):
            shape = re.sub(r"\d+", "0", stories.told(replace(story, people=[0, 1, 2, 3]), language))
            seen.setdefault(f"{shape} {story.thing}", set()).add(stories.template(story, language))
            for fact in story.static:  # its other wordings, said aloud
                for wording in range(4):
                    other = replace(fact, wording=wording)
                    said = stories.sentence(other, replace(story, people=[0, 1, 2, 3]), language)
                    key = re.sub(r"\d+", "0", f"{said} {story.thing} {story.other} {story.box} {fact.people}")
                    alone = replace(story, static=[other], events=[])
                    seen.setdefault(key, set()).add(stories.template(alone, language).split(";")[0])
    assert all(len(templates) == 1 for templates in seen.values())


def test_a_test_story_is_not_practised_in_another_language():
    tested = {p.key for p in problems(TASKS["stories_en"], "test", 60)}
    for language in ("de", "te"):
        assert tested.isdisjoint(p.key for p in problems(TASKS[f"stories_{language}"], "train", 100))


@pytest.mark.parametrize("language", LANGUAGES)
def test_stories_that_read_alike_are_one(language):
    """People may come about in another order, and the two of a sum be named in another: the reader can't tell
    the first, so that neither template nor key may; the key doesn't tell the second either."""
    rng, moved = Random(8), 0
    while moved < 60:
        story = compose(rng, 3)
        if story is None or len(story.value) < 3:
            continue
        others = list(range(1, len(story.value)))
        numbered = [0, *rng.sample(others, len(others))]

        def renumbered(fact, numbered=numbered):
            return replace(fact, people=tuple(numbered[n] for n in fact.people))

        people = list(story.people)
        for old, new in enumerate(numbered):
            people[new] = story.people[old]
        same = replace(
            story,
            static=[renumbered(f) for f in story.static],
            events=[renumbered(f) for f in story.events],
            question=renumbered(story.question),
            people=people,
        )
        assert stories.told(same, language) == stories.told(story, language)
        assert stories.template(same, language) == stories.template(story, language)
        assert stories.content(same) == stories.content(story)
        moved += numbered != sorted(numbered)
        if story.question.style == "ask.total":
            turned = replace(story.question, people=story.question.people[::-1])
            assert stories.content(replace(story, question=turned)) == stories.content(story)


def test_new_words_keep_what_is_told():
    rng, changed = Random(9), 0
    for _ in range(3000):
        if (story := compose(rng, 2)) is not None:
            again = retold(rng, story)
            assert stories.content(again) == stories.content(story) and again.people == story.people
            assert needed_steps(again) == needed_steps(story)
            changed += stories.told(again, "en") != stories.told(story, "en")
    assert changed > 100


def test_what_somebody_does_stands_before_what_is_compared_with_it():
    """ "Ben has 3 more than Anna. Anna buys 5 every day." would leave Ben's number open."""
    rng, seen = Random(10), 0
    while seen < 100:
        story = compose(rng, 2)
        if story is not None and any(f.style.startswith("daily") for f in story.static):
            assert story.static[0].style.startswith("daily")
            seen += len(story.static) > 1


def test_the_same_is_not_practised_in_other_words():
    """Held-out words ask what is kept for tests, never what practice may ask in words of its own."""
    for language in LANGUAGES:
        drawn = [
            TASKS[f"stories_{language}"].problem(np.random.default_rng(n), 1, TEMPLATES) for n in range(40)
        ]
        assert {split_of(p.key) for p in drawn} == {"test"}
