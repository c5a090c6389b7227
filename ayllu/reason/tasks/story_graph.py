"""The graph of quantities behind a story: how many of some thing each person has, given or derived from the
quantities of others (after iGSM: Ye et al. 2024, "Physics of Language Models 2.1").

What a story says (`Fact`s) is drawn without regard to language; each fact adds the `Step`s by which its
quantities come about, and those that the question depends on are the solution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from ayllu.reason.tasks.story_words import draw_wording, verbs, words

LARGEST = (20, 60, 100, 120)  # value of any quantity, by level
_DISTRACTED = 1 / 3
UNNEEDED = ("say.other", "say.age")  # styles of sentences that decide nothing


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

    def line(self, letters: Mapping[int, str]) -> str:
        """`A = B+5=12+5=17, A17`; `A17` when it is given; `? A*2=15*2=10*2+5*2=20+10=30` for the question."""
        form = re.sub(r"([-+*/]){", r" \1 {", self.form)
        sides = [form.format(*(letters[n] for n in self.needs)), self.form.format(*self.known)]
        working = "=".join(dict.fromkeys([*sides, *in_parts(sides[-1]), str(self.value)]))
        if self.person < 0:
            return f"? {working}"
        letter = letters[self.person]
        return f"{letter}{self.value}" if self.given else f"{letter} = {working}, {letter}{self.value}"


def in_parts(sides: str) -> list[str]:
    """A product or quotient beyond the tables, as one does it in the head: `37*5` -> `30*5+7*5`, `150+35`;
    `96/8` -> `80/8+16/8`, `10+2`. Nothing for what the tables hold, and for sums."""
    found = re.fullmatch(r"(\d+)([*/])(\d+)", sides)
    if found is None:
        return []
    a, b = int(found[1]), int(found[3])
    if found[2] == "*":
        large, small = max(a, b), min(a, b)
        tens, ones = large - large % 10, large % 10
        if not tens or not ones or large == 10:
            return []
        parts = [f"{n}*{small}" if a == large else f"{small}*{n}" for n in (tens, ones)]
        return ["+".join(parts), f"{tens * small}+{ones * small}"]
    tens, ones = a // b - a // b % 10, a // b % 10
    return [f"{tens * b}/{b}+{ones * b}/{b}", f"{tens}+{ones}"] if tens and ones else []


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


def compose(rng: Random, level: int) -> Story | None:
    """A story that needs exactly `level` operations, or None when the draw didn't work out (19 times in 20 at
    the highest level, so that it is Python's own generator that draws, not NumPy's slower scalars)."""
    kinds = list(words()["things"])
    story = Story(_draw_thing(rng, kinds))
    largest = LARGEST[level - 1]
    if not _begin(rng, story, largest):
        return None
    for _ in range(rng.randrange(0, level + 1)):
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
    story.box = rng.randrange(len(words()["boxes"]))
    story.people = rng.sample(range(len(words()["people"])), 4)
    _order(rng, story)
    return story


def retold(rng: Random, story: Story) -> Story:
    """The same told in other words, what is in another order, with another sentence that doesn't matter or
    without one."""

    def reworded(fact: Fact) -> Fact:
        group = fact.style.partition(".")[0]
        return fact if group in ("gain", "loss") else replace(fact, wording=draw_wording(rng, fact.style))

    static = [reworded(fact) for fact in story.static if fact.style not in UNNEEDED]
    events = [reworded(fact) for fact in story.events]
    told = replace(story, static=static, events=events, question=reworded(story.question))
    _order(rng, told)
    return told


def needed_steps(story: Story) -> list[Step]:
    """The steps that the answer depends on, in order."""
    wanted, kept = {-1}, []
    for step in reversed(story.steps):
        if step.person in wanted:
            kept.append(step)
            wanted.discard(step.person)
            wanted.update(step.needs)
    return kept[::-1]


def _draw_thing(rng: Random, kinds: list[str]) -> tuple[str, int]:
    kind = rng.choice(kinds)
    return kind, rng.randrange(len(words()["things"][kind]))


def _set(story: Story, person: int, form: str, value: int, needs: tuple[int, ...] = ()) -> None:
    story.steps.append(Step(person, form, needs, tuple(story.value[n] for n in needs), value))
    if person >= 0:
        story.value[person] = value


def _begin(rng: Random, story: Story, largest: int) -> bool:
    style = rng.choice(("say.have", "say.have", "say.boxes", "daily"))
    if style == "say.have":
        n = rng.randrange(3, largest // 2 + 1)
        story.static.append(Fact(style, (0,), {"n": n}, draw_wording(rng, style)))
        _set(story, 0, str(n), n)
        return True
    k, n = rng.randrange(2, 10), rng.randrange(2, 13)
    if style == "daily":
        known = verbs("daily", story.thing[0])
        style = rng.choice(known)
        k = min(k, 7)
    story.static.append(Fact(style, (0,), {"k": k, "n": n}, draw_wording(rng, style)))
    _set(story, 0, f"{k}*{n}", k * n)
    return k * n <= largest


def _relate(rng: Random, story: Story, largest: int) -> bool:
    """A new person whose quantity is said by way of others'. Only before anything happens."""
    new = len(story.value)
    if story.events or new > 3:
        return False
    style = rng.choice(("more", "fewer", "times", "part", "both"))
    a = rng.randrange(new)
    x = story.value[a]
    if style == "both":
        if new < 2:
            return False
        b = (a + 1 + rng.randrange(new - 1)) % new
        fact = Fact("say.both", (a, b, new), {}, draw_wording(rng, "say.both"))
        _set(story, new, "{0}+{1}", x + story.value[b], (a, b))
    else:
        if style in ("more", "fewer"):
            n = rng.randrange(2, max(3, min(x - 1, largest // 2)))
            value = x + n if style == "more" else x - n
        else:
            choices = [n for n in range(2, 10) if style == "times" or (x % n == 0 and x // n > 1)]
            if not choices:
                return False
            n = rng.choice(choices)
            value = x * n if style == "times" else x // n
        fact = Fact(f"say.{style}", (a, new), {"n": n}, draw_wording(rng, f"say.{style}"))
        sign = {"more": "+", "fewer": "-", "times": "*", "part": "/"}[style]
        _set(story, new, f"{{0}}{sign}{n}", value, (a,))
    story.static.append(fact)
    return 2 <= story.value[new] <= largest


def _happen(rng: Random, story: Story, largest: int) -> bool:
    """Somebody gets or loses something, or hands it to somebody else."""
    a = rng.randrange(len(story.value))
    x = story.value[a]
    if len(story.value) > 1 and rng.random() < 0.3:
        b = (a + 1 + rng.randrange(len(story.value) - 1)) % len(story.value)
        if x < 5:
            return False
        n = rng.randrange(2, x - 2)
        story.events.append(Fact("say.hand", (a, b), {"n": n}, draw_wording(rng, "say.hand")))
        _set(story, a, f"{{0}}-{n}", x - n, (a,))
        _set(story, b, f"{{0}}+{n}", story.value[b] + n, (b,))
        return story.value[b] <= largest
    group = rng.choice(("gain", "loss"))
    known = verbs(group, story.thing[0])
    style = rng.choice(known)
    n = rng.randrange(2, max(3, min(x - 1, largest // 2)))
    value = x + n if group == "gain" else x - n
    story.events.append(Fact(style, (a,), {"n": n}))
    _set(story, a, f"{{0}}{'+' if group == 'gain' else '-'}{n}", value, (a,))
    return 2 <= value <= largest


def _ask(rng: Random, story: Story, largest: int) -> bool:
    style = rng.choice(("now", "now", "total", "difference", "share", "goal", "price"))
    a = rng.randrange(len(story.value))
    x, numbers = story.value[a], dict[str, int]()
    people: tuple[int, ...] = (a,)
    if style in ("total", "difference"):
        if len(story.value) < 2:
            return False
        b = (a + 1 + rng.randrange(len(story.value) - 1)) % len(story.value)
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
        numbers["n"] = rng.choice(choices)
        form, value = f"{{0}}/{numbers['n']}", x // numbers["n"]
    elif style == "goal":
        numbers["n"] = x + rng.randrange(2, max(3, largest // 2))
        form, value = f"{numbers['n']}-{{0}}", numbers["n"] - x
    else:
        numbers["n"] = rng.randrange(2, 10)
        form, value = f"{{0}}*{numbers['n']}", x * numbers["n"]
    story.question = Fact(f"ask.{style}", people, numbers, draw_wording(rng, f"ask.{style}"))
    _set(story, -1, form, value, people)
    return value <= 2 * largest


def _order(rng: Random, story: Story) -> None:
    """What is, in any order, at times with a sentence that doesn't matter. What makes a quantity by doing
    something stands first: "Ben has 3 more than Anna. Anna buys 5 every day." would leave Ben's number
    open."""
    first = [fact for fact in story.static if fact.style.startswith("daily")]
    rest = [fact for fact in story.static if fact not in first]
    rng.shuffle(rest)
    story.static = [*first, *rest]
    if rng.random() < _DISTRACTED:
        _distract(rng, story)


def _distract(rng: Random, story: Story) -> None:
    """A sentence about another thing, or about somebody's age, anywhere after the first sentence."""
    a = rng.randrange(len(story.value))
    style = rng.choice(UNNEEDED)
    fact = Fact(style, (a,), {"n": rng.randrange(6, 30)}, draw_wording(rng, style))
    place = rng.randrange(1, len(story.static) + 1) if story.static else 0
    story.static.insert(place, fact)
