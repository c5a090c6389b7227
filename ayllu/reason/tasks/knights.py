"""Knights and knaves: who tells the truth? (Smullyan 1978, "What Is the Name of This Book?")

Knights always tell the truth, knaves always lie; two to four people each say something about each
other, and exactly one assignment fits (checked by going through all of them). The expert does the
same: one assignment a line, and for each person in turn whether what they say fits what they are,
`K N: A+ B-`; the first misfit ends the line, the first line without one is the answer.
"""

from __future__ import annotations

import itertools
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.transcript import Kind

NAMES = ("Ada", "Ben", "Carl", "Dora", "Emil", "Fay", "Gita", "Hari", "Ida", "Jon", "Kavi", "Lena")
LANGUAGES = ("en", "de", "te")
KINDS = {"en": ("knave", "knight"), "de": ("Lügner", "Ritter"), "te": ("అబద్ధాలకోరు", "సత్యవాది")}
INTRODUCTION = {
    "en": (
        "Knights tell the truth, knaves lie. {said} Who is what?",
        "~A knave always lies and a knight never does. {said} Say who is a knight and who is a knave.",
    ),
    "de": (
        "Ritter sagen die Wahrheit, Lügner lügen. {said} Wer ist was?",
        "~Ein Lügner lügt immer, ein Ritter nie. {said} Sage, wer Ritter und wer Lügner ist.",
    ),
    "te": (
        "సత్యవాది నిజం చెబుతాడు, అబద్ధాలకోరు అబద్ధం చెబుతాడు. {said} ఎవరు ఏమిటి?",
        "~అబద్ధాలకోరు ఎప్పుడూ అబద్ధం చెబుతాడు, సత్యవాది ఎప్పుడూ చెప్పడు. {said} ఎవరు సత్యవాది, ఎవరు అబద్ధాలకోరు?",
    ),
}
SAYS = {"en": '{who}: "{what}"', "de": "{who}: „{what}“", "te": '{who}: "{what}"'}
# A statement is (kind, i, j): about person i, or about i and j.
STATEMENTS: dict[str, dict[str, str]] = {
    "en": {
        "knight": "{i} is a knight.",
        "knave": "{i} is a knave.",
        "same": "{i} and {j} are of the same kind.",
        "differ": "{i} and {j} are different.",
        "and": "{i} and {j} are both knights.",
        "or": "{i} or {j} is a knight.",
        "nor": "{i} and {j} are both knaves.",
    },
    "de": {
        "knight": "{i} ist ein Ritter.",
        "knave": "{i} ist ein Lügner.",
        "same": "{i} und {j} sind von derselben Art.",
        "differ": "{i} und {j} sind verschieden.",
        "and": "{i} und {j} sind beide Ritter.",
        "or": "{i} oder {j} ist ein Ritter.",
        "nor": "{i} und {j} sind beide Lügner.",
    },
    "te": {
        "knight": "{i} సత్యవాది.",
        "knave": "{i} అబద్ధాలకోరు.",
        "same": "{i}, {j} ఒకే రకం.",
        "differ": "{i}, {j} వేర్వేరు రకాలు.",
        "and": "{i}, {j} ఇద్దరూ సత్యవాదులు.",
        "or": "{i} లేదా {j} సత్యవాది.",
        "nor": "{i}, {j} ఇద్దరూ అబద్ధాలకోరులు.",
    },
}
Statement = tuple[str, int, int]


def holds(statement: Statement, honest: tuple[bool, ...]) -> bool:
    """Whether a statement is true under an assignment."""
    kind, i, j = statement
    a, b = honest[i], honest[j]
    return {
        "knight": a,
        "knave": not a,
        "same": a == b,
        "differ": a != b,
        "and": a and b,
        "or": a or b,
        "nor": not a and not b,
    }[kind]


def solutions(statements: list[Statement]) -> list[tuple[bool, ...]]:
    """All assignments under which knights, and only they, say what is true."""
    every = itertools.product((True, False), repeat=len(statements))
    return [
        honest
        for honest in every
        if all(holds(s, honest) == own for s, own in zip(statements, honest, strict=True))
    ]


class Knights(Task):
    """Levels 1 to 3: two, three and four people."""

    family = "knights"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """Random statements until exactly one assignment fits. The split goes by the statements."""
        people = level + 1
        while True:
            statements = [_statement(rng, people, who) for who in range(people)]
            found = solutions(statements)
            key = "knights " + " ".join(f"{kind} {i} {j}" for kind, i, j in statements)
            # Two people have few puzzles: there the names belong to the key, elsewhere they don't matter.
            names = [NAMES[i] for i in sorted(rng.choice(len(NAMES), people, replace=False).tolist())]
            if people == 2:
                key += " " + " ".join(names)
            if len(found) == 1 and owns(split, key):
                break
        language = LANGUAGES[rng.integers(3)]
        said = " ".join(
            SAYS[language].format(
                who=names[who], what=STATEMENTS[language][kind].format(i=names[i], j=names[j])
            )
            for who, (kind, i, j) in enumerate(statements)
        )
        data = {"names": names, "language": language, "statements": [list(s) for s in statements]}
        prompt = wording(rng, INTRODUCTION[language], split).format(said=said)
        return Problem(self.family, level, key, prompt, _answer(data, found[0]), data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The assignments in a fixed order up to the one that fits."""
        data, lines = problem.data, list[str]()
        statements: list[Statement] = [(kind, i, j) for kind, i, j in data["statements"]]
        for honest in itertools.product((True, False), repeat=len(statements)):
            checks = []
            for name, statement, own in zip(data["names"], statements, honest, strict=True):
                fits = holds(statement, honest) == own
                checks.append(name + ("+" if fits else "-"))
                if not fits:
                    break
            lines.append(" ".join("K" if own else "N" for own in honest) + ": " + " ".join(checks))
            if len(checks) == len(statements) and fits:
                break
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: `Ada knight, Ben knave`. Lenient: each name once, somewhere before its own kind."""
        if answer is None:
            return Verdict(False, False, "no answer")
        if answer.strip() == problem.answer:
            return Verdict(True, True)
        wanted = _pairs(problem.answer, problem.data)
        return Verdict(False, _pairs(answer, problem.data) == wanted, f"{answer!r} is not {problem.answer!r}")


def _statement(rng: Generator, people: int, who: int) -> Statement:
    """About somebody else, or about two people of whom one may be the speaker."""
    others = [i for i in range(people) if i != who]
    if rng.integers(2):
        i = others[rng.integers(len(others))]
        return ("knight", "knave")[rng.integers(2)], i, i
    i, j = sorted(rng.choice(people, 2, replace=False).tolist())
    return ("same", "differ", "and", "or", "nor")[rng.integers(5)], i, j


def _answer(data: dict[str, Any], honest: tuple[bool, ...]) -> str:
    kinds = KINDS[data["language"]]
    return ", ".join(f"{name} {kinds[own]}" for name, own in zip(data["names"], honest, strict=True))


def _pairs(text: str, data: dict[str, Any]) -> list[str]:
    """The names and kinds that a text mentions, in order: what is left of it without other words."""
    known = {*data["names"], *KINDS[data["language"]]}
    return [word for word in text.replace(",", " ").replace(".", " ").split() if word in known]
