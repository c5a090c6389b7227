"""What a test set is made of: choices, questions, programs and passages, and examples to show before them.

`question` is what a model that converses is asked, in a turn of the user's. `text` is what a model without
a chat format goes on with. Both are made when a row is read, so that nothing later knows the sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Item:
    """One row. `place`: file and line; `group`: the rows that have their examples in common."""

    place: str
    question: str
    group: str = ""


@dataclass(frozen=True)
class Choice(Item):
    """Several ways to go on, some of which are right (`gold`: their places).

    `pairs`: (context, continuation) of each way, for a model that continues texts. Of one that converses the
    letter before an option is wanted (`options`).
    """

    pairs: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """What a worked example shows: the right way."""
        return "".join(self.pairs[self.gold[0]])


@dataclass(frozen=True)
class Question(Item):
    """Something to be answered in words or with a number. `worked`: how an example goes on after `text`."""

    text: str = ""
    answers: tuple[str, ...] = ()
    worked: str = ""


@dataclass(frozen=True)
class Program(Item):
    """A function to be written: the beginning of it as `text`, and the tests that it must pass."""

    text: str = ""
    entry: str = ""
    tests: str = ""
    solution: str = ""


@dataclass(frozen=True)
class Passage(Item):
    """A text to be foretold."""

    text: str = ""


@dataclass(frozen=True)
class Example:
    """A worked one: as a text, and as a turn of the user's with the answer to it."""

    text: str
    question: str
    answer: str


@dataclass(frozen=True)
class Shots:
    """What stands before every row of a group."""

    header: str = ""
    examples: tuple[Example, ...] = field(default=())

    def before(self, text: str) -> str:
        """`text` with the header and the examples before it, an empty line between."""
        return "\n\n".join([*filter(None, [self.header.strip()]), *(e.text for e in self.examples), text])
