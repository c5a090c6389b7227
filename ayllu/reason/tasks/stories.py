"""Word problems from a grammar of our own, in English, German and Telugu.

Behind each story is a small graph of quantities: how many of some thing each person has, given or
derived from the quantities of others (after iGSM: Ye et al. 2024, "Physics of Language Models 2.1"). First
come sentences about what is ("Ben has 3 more than Anna", in any order), then what happens, in order of
time, then a question. A third of the stories hold a sentence that doesn't matter.

The thinking first reads and then reckons. Its first line is the story without its words, a sign for each
sentence in the story's order: `Anna = Ben+5, -, Ben = 12, Anna-4, ? Anna*2` (`-` doesn't matter). That is a
translation, with one small place to look at for each word written, and the only part in which languages
differ. Then one quantity a line, `Anna = Ben+5=12+5=17, Anna 17`, in an order in which each is known when it
is needed, without what isn't needed: how it comes about, as the first line says it, then with values, and at
the end the value to look up later: what stands last behind the name. Each line begins with a space, so that
a name is the same token there as in the story. Models of 3 million parameters that looked for whose
quantities in the story itself took a number from a wrong sentence; with values at the end of lines like
`Anna: Ben+5=12+5=17` they took an older or somebody else's; with letters that stand for the names they read
a wrong letter (docs/lab-log.md, 2026-11-28 and 2026-11-29).

What a story says (`Fact`s) is drawn without regard to language; the words stand in `phrases/stories.toml`.
Three things decide the split:

- Its *predicates* (a verb with a thing: "pick apples") and its *template* (styles, wordings and roles of its
  sentences, in order). Some of each are held out for good: stories with one of them make up the split
  `templates` and occur nowhere else.
- Within the rest, its content with its numbers, hashed as everywhere. The language isn't part of it, so
  that a test problem isn't practised in translation.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import TEMPLATES, Piece, Problem, Verdict, held_out, split_of
from ayllu.reason.tasks.arithmetic import verify_number
from ayllu.reason.transcript import Kind

LANGUAGES = ("en", "de", "te")
LARGEST = (20, 60, 100, 120)  # value of any quantity, by level
_TEMPLATES_HELD, _PREDICATES_HELD = 0.12, 0.08
_DISTRACTED = 1 / 3


# What a sentence says, without its words; by wording where that turns it round ("Anna has 3 more than Ben"
# and "Ben has 3 fewer than Anna" are one fact).
READ: dict[str, tuple[str, ...]] = {
    "say.have": ("{a} = {n}",),
    "say.boxes": ("{a} = {k}*{n}",),
    "daily": ("{a} = {k}*{n}",),
    "say.more": ("{b} = {a}+{n}",),
    "say.fewer": ("{b} = {a}-{n}", "{a} = {b}+{n}"),
    "say.times": ("{b} = {a}*{n}",),
    "say.part": ("{a} = {b}*{n}", "{b} = {a}/{n}"),
    "say.both": ("{c} = {a} + {b}",),
    "say.other": ("-",),
    "say.age": ("-",),
    "gain": ("{a}+{n}",),
    "loss": ("{a}-{n}",),
    "say.hand": ("{a}-{n} {b}+{n}",),
    "ask.now": ("? {a}",),
    "ask.total": ("? {a} + {b}",),
    "ask.difference": ("? {a} - {b}",),
    "ask.share": ("? {a}/{n}",),
    "ask.goal": ("? {n} - {a}",),
    "ask.price": ("? {a}*{n}",),
}


@dataclass(frozen=True)
class Fact:
    """One sentence: its style (`say.more`, `gain.buy`), who it is about (numbers of people), its numbers."""

    style: str
    people: tuple[int, ...]
    numbers: dict[str, int]
    wording: int = 0


@dataclass(frozen=True)
class Step:
    """One quantity: whose it is (-1: nobody's, the answer), how it is made (`{0}+5`, where `{0}` is the
    quantity of the first of `needs`), what those quantities are, what it is."""

    person: int
    form: str
    needs: tuple[int, ...]
    known: tuple[int, ...]
    value: int

    @property
    def given(self) -> bool:
        """Whether there is nothing to work out."""
        return self.form in ("{0}", str(self.value))

    def line(self, names: Sequence[str]) -> str:
        """`Anna = Ben+5=12+5=17, Anna 17`; `Anna 17` when it is given."""
        form = re.sub(r"([-+*/]){", r" \1 {", self.form)
        sides = [form.format(*(names[n] for n in self.needs)), self.form.format(*self.known)]
        working = "=".join(dict.fromkeys([*sides, str(self.value)]))
        if self.person < 0:
            return working
        name = names[self.person]
        return f"{name} {self.value}" if self.given else f"{name} = {working}, {name} {self.value}"


@dataclass
class Story:
    """What is told, and the lines of working."""

    thing: tuple[str, int]  # its kind and its number in it
    other: tuple[str, int] = ("", 0)
    box: int = 0
    people: list[int] = field(default_factory=list)  # positions in the list of names
    static: list[Fact] = field(default_factory=list)
    events: list[Fact] = field(default_factory=list)
    question: Fact = field(default_factory=lambda: Fact("", (), {}))
    value: dict[int, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def facts(self) -> list[Fact]:
        """All sentences in order."""
        return [*self.static, *self.events, self.question]


@functools.cache
def words() -> dict[str, Any]:
    """The grammar's words."""
    path = Path(__file__).parent / "phrases" / "stories.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def predicates() -> tuple[str, ...]:
    """Every verb with every thing that it goes with: `gain.pick apples`."""
    return tuple(
        f"{group}.{name} {thing[0]}"
        for group in ("gain", "loss", "daily")
        for name, verb in words()[group].items()
        for kind in verb["with"]
        for thing in words()["things"][kind]
    )


@functools.cache
def _verbs(group: str, kind: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name, verb in words()[group].items() if kind in verb["with"])


# ---- the graph of quantities
def compose(rng: Generator, level: int) -> Story | None:
    """A story that needs exactly `level` operations, or None when the draw didn't work out."""
    kinds = list(words()["things"])
    story = Story(_draw_thing(rng, kinds))
    largest = LARGEST[level - 1]
    if not _begin(rng, story, largest):
        return None
    for _ in range(int(rng.integers(0, level + 1))):
        if not (_happen if rng.random() < 0.45 else _relate)(rng, story, largest):
            return None
    if not _ask(rng, story, largest):
        return None
    needed = needed_steps(story)
    if sum(not step.given for step in needed) != level:
        return None
    if len(needed) < len(story.steps) - 1:  # one quantity that isn't needed is enough
        return None
    # Most draws end above: what decides nothing is drawn for those that are left.
    story.other = story.thing
    while story.other == story.thing:
        story.other = _draw_thing(rng, kinds)
    story.box = int(rng.integers(len(words()["boxes"])))
    story.people = rng.choice(len(words()["people"]), 4, replace=False).tolist()
    order = rng.permutation(len(story.static))
    story.static = [story.static[i] for i in order]
    if rng.random() < _DISTRACTED:
        _distract(rng, story)
    return story


def needed_steps(story: Story) -> list[Step]:
    """The steps that the answer depends on, in order."""
    wanted, kept = {-1}, []
    for step in reversed(story.steps):
        if step.person in wanted:
            kept.append(step)
            wanted.discard(step.person)
            wanted.update(step.needs)
    return kept[::-1]


def _draw_thing(rng: Generator, kinds: list[str]) -> tuple[str, int]:
    kind = kinds[rng.integers(len(kinds))]
    return kind, int(rng.integers(len(words()["things"][kind])))


def _set(story: Story, person: int, form: str, value: int, needs: tuple[int, ...] = ()) -> None:
    story.steps.append(Step(person, form, needs, tuple(story.value[n] for n in needs), value))
    if person >= 0:
        story.value[person] = value


def _begin(rng: Generator, story: Story, largest: int) -> bool:
    style = ("say.have", "say.have", "say.boxes", "daily")[rng.integers(4)]
    if style == "say.have":
        n = int(rng.integers(3, largest // 2 + 1))
        story.static.append(Fact(style, (0,), {"n": n}, _wording(rng, style)))
        _set(story, 0, str(n), n)
        return True
    k, n = int(rng.integers(2, 10)), int(rng.integers(2, 13))
    if style == "daily":
        verbs = _verbs("daily", story.thing[0])
        style = verbs[rng.integers(len(verbs))]
        k = min(k, 7)
    story.static.append(Fact(style, (0,), {"k": k, "n": n}, _wording(rng, style)))
    _set(story, 0, f"{k}*{n}", k * n)
    return k * n <= largest


def _relate(rng: Generator, story: Story, largest: int) -> bool:
    """A new person whose quantity is said by way of others'. Only before anything happens."""
    new = len(story.value)
    if story.events or new > 3:
        return False
    style = ("more", "fewer", "times", "part", "both")[rng.integers(5)]
    a = int(rng.integers(new))
    x = story.value[a]
    if style == "both":
        if new < 2:
            return False
        b = int((a + 1 + rng.integers(new - 1)) % new)
        fact = Fact("say.both", (a, b, new), {}, _wording(rng, "say.both"))
        _set(story, new, "{0}+{1}", x + story.value[b], (a, b))
    else:
        if style in ("more", "fewer"):
            n = int(rng.integers(2, max(3, min(x - 1, largest // 2))))
            value = x + n if style == "more" else x - n
        else:
            choices = [n for n in range(2, 10) if style == "times" or (x % n == 0 and x // n > 1)]
            if not choices:
                return False
            n = choices[rng.integers(len(choices))]
            value = x * n if style == "times" else x // n
        fact = Fact(f"say.{style}", (a, new), {"n": n}, _wording(rng, f"say.{style}"))
        sign = {"more": "+", "fewer": "-", "times": "*", "part": "/"}[style]
        _set(story, new, f"{{0}}{sign}{n}", value, (a,))
    story.static.append(fact)
    return 2 <= story.value[new] <= largest


def _happen(rng: Generator, story: Story, largest: int) -> bool:
    """Somebody gets or loses something, or hands it to somebody else."""
    a = int(rng.integers(len(story.value)))
    x = story.value[a]
    if len(story.value) > 1 and rng.random() < 0.3:
        b = int((a + 1 + rng.integers(len(story.value) - 1)) % len(story.value))
        if x < 5:
            return False
        n = int(rng.integers(2, x - 2))
        story.events.append(Fact("say.hand", (a, b), {"n": n}, _wording(rng, "say.hand")))
        _set(story, a, f"{{0}}-{n}", x - n, (a,))
        _set(story, b, f"{{0}}+{n}", story.value[b] + n, (b,))
        return story.value[b] <= largest
    group = ("gain", "loss")[rng.integers(2)]
    verbs = _verbs(group, story.thing[0])
    style = verbs[rng.integers(len(verbs))]
    n = int(rng.integers(2, max(3, min(x - 1, largest // 2))))
    value = x + n if group == "gain" else x - n
    story.events.append(Fact(style, (a,), {"n": n}))
    _set(story, a, f"{{0}}{'+' if group == 'gain' else '-'}{n}", value, (a,))
    return 2 <= value <= largest


def _ask(rng: Generator, story: Story, largest: int) -> bool:
    style = ("now", "now", "total", "difference", "share", "goal", "price")[rng.integers(7)]
    a = int(rng.integers(len(story.value)))
    x, numbers = story.value[a], dict[str, int]()
    people: tuple[int, ...] = (a,)
    if style in ("total", "difference"):
        if len(story.value) < 2:
            return False
        b = int((a + 1 + rng.integers(len(story.value) - 1)) % len(story.value))
        if style == "difference" and x <= story.value[b]:
            return False
        people = (a, b)
        sign, value = ("+", x + story.value[b]) if style == "total" else ("-", x - story.value[b])
        form = f"{{0}}{sign}{{1}}"
    elif style == "now":
        form, value = "{0}", x
    elif style == "share":
        choices = [n for n in range(2, 10) if x % n == 0 and x // n > 1]
        if not choices:
            return False
        numbers["n"] = choices[rng.integers(len(choices))]
        form, value = f"{{0}}/{numbers['n']}", x // numbers["n"]
    elif style == "goal":
        numbers["n"] = x + int(rng.integers(2, max(3, largest // 2)))
        form, value = f"{numbers['n']}-{{0}}", numbers["n"] - x
    else:
        numbers["n"] = int(rng.integers(2, 10))
        form, value = f"{{0}}*{numbers['n']}", x * numbers["n"]
    story.question = Fact(f"ask.{style}", people, numbers, _wording(rng, f"ask.{style}"))
    _set(story, -1, form, value, people)
    return value <= 2 * largest


def _distract(rng: Generator, story: Story) -> None:
    """A sentence about another thing, or about somebody's age, anywhere after the first sentence."""
    a = int(rng.integers(len(story.value)))
    style = ("say.other", "say.age")[rng.integers(2)]
    fact = Fact(style, (a,), {"n": int(rng.integers(6, 30))}, _wording(rng, style))
    place = int(rng.integers(1, len(story.static) + 1)) if story.static else 0
    story.static.insert(place, fact)


def _wording(rng: Generator, style: str) -> int:
    group, _, name = style.partition(".")
    table = words()[group][name]["en"]
    return int(rng.integers(len(table))) if isinstance(table, list) else 0


# ---- words
def sentence(fact: Fact, story: Story, language: str) -> str:
    """A fact in words."""
    group, _, name = fact.style.partition(".")
    texts = words()[group][name][language]
    text = texts[fact.wording % len(texts)] if isinstance(texts, list) else texts
    column = LANGUAGES.index(language)
    people = [words()["people"][story.people[i]] for i in fact.people]
    thing, other = (words()["things"][kind][i][column] for kind, i in (story.thing, story.other))
    box = words()["boxes"][story.box][2 * column : 2 * column + 2]
    gender = people[0][4] if people else "m"
    text = re.sub(r"\[([^/\]]*)/([^\]]*)\]", r"\1" if gender == "m" else r"\2", text)
    slots: dict[str, Any] = {"t": thing, "u": other, "boxes": box[0], "box": box[1], **fact.numbers}
    for letter, person in zip("abc", people, strict=False):
        slots[letter] = person[column]
        text = text.replace(f"{{{letter}+}}", person[3])
    return str(text.format(**slots))


def told(story: Story, language: str) -> str:
    """The whole story."""
    return " ".join(sentence(fact, story, language) for fact in story.facts())


def reading(story: Story, names: Sequence[str]) -> str:
    """The story without its words, for `names` of its people."""
    signs = []
    for fact in story.facts():
        group = fact.style.partition(".")[0]
        forms = READ[fact.style if group in ("say", "ask") else group]
        said = {letter: names[person] for letter, person in zip("abc", fact.people, strict=False)}
        signs.append(forms[fact.wording % len(forms)].format(**said, **fact.numbers))
    return ", ".join(signs)


# ---- splits
def template(story: Story, language: str) -> str:
    """What a story is without its numbers, names and things."""
    parts = [f"{fact.style} {fact.wording} {fact.people}" for fact in story.facts()]
    return f"{language} " + "; ".join(parts)


def story_predicates(story: Story) -> list[str]:
    """Its verbs with its thing."""
    thing = words()["things"][story.thing[0]][story.thing[1]][0]
    groups = ("gain", "loss", "daily")
    return [f"{f.style} {thing}" for f in story.facts() if f.style.partition(".")[0] in groups]


def content(story: Story) -> str:
    """What a story says, numbers included; names, wordings and order of what is don't count."""
    kind, number = story.thing
    facts = [
        f"{f.style} {f.people} {sorted(f.numbers.items())}"
        for f in (*sorted(story.static, key=str), *story.events, story.question)
        if f.style not in ("say.other", "say.age")
    ]
    return f"story {kind} {number} " + "; ".join(facts)


def split_of_story(story: Story, language: str) -> str:
    """`templates` when its template or one of its predicates is held out, else by its content."""
    if held_out(template(story, language), _TEMPLATES_HELD) or any(
        held_out(p, _PREDICATES_HELD) for p in story_predicates(story)
    ):
        return TEMPLATES
    return split_of(content(story))


class Stories:
    """One language. Levels 1 to 4: operations that the answer needs; quantities to 20, 60, 100, 120."""

    levels = 4
    templates = True  # has a split of that name

    def __init__(self, language: str) -> None:
        self.language, self.family = language, f"stories_{language}"

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """A story of the split."""
        while True:
            story = compose(rng, level)
            if story is not None and split_of_story(story, self.language) == split:
                break
        column = LANGUAGES.index(self.language)
        names = [words()["people"][i][column] for i in story.people]
        steps = needed_steps(story)
        answer = str(steps[-1].value)
        if steps[-1].given:  # the last quantity is the answer: no line of its own
            steps.pop()
        data: dict[str, Any] = {"reading": reading(story, names), "operations": level}
        data |= {"lines": [step.line(names) for step in steps]}
        data |= {"template": template(story, self.language), "predicates": story_predicates(story)}
        return Problem(self.family, level, content(story), told(story, self.language), answer, data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The story without its words, then one quantity a line: whose it is and how it comes about."""
        lines = [problem.data["reading"], *problem.data["lines"]]
        thought = "".join(f" {line}\n" for line in lines)[:-1]  # a name is the same token wherever it stands
        return [Piece(Kind.THINK, thought), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """The number and nothing else; leniently the last number."""
        return verify_number(problem.answer, answer)
