"""Lists and letters: sort, count, find the largest, count the letters of a word, spell it backwards.

A model that reads byte pairs doesn't see letters; it has to know how its pieces are spelt. So whatever
concerns letters begins with the word written out, one letter at a time, and counts beside the letters
that matter: `b a1 n a2 n a3`. Sorting is selection sort with what is left repeated on every line, and
counting goes through the list once, in the same way.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks.arithmetic import verify_number
from ayllu.reason.transcript import Kind

PROMPTS: dict[str, tuple[str, ...]] = {
    "sort": (
        "Sort these numbers: {items}",
        "Put in order, smallest first: {items}",
        "Sortiere diese Zahlen: {items}",
        "ఈ సంఖ్యలను చిన్న నుండి పెద్దకు అమర్చండి: {items}",
        "~From small to large: {items}",
        "~Ordne diese Zahlen, die kleinste zuerst: {items}",
        "~ఈ సంఖ్యలను క్రమంలో రాయండి: {items}",
    ),
    "words": (
        "Sort these words: {items}",
        "Put in alphabetical order: {items}",
        "Sortiere diese Wörter: {items}",
        "ఈ పదాలను అక్షర క్రమంలో అమర్చండి: {items}",
        "~Arrange these words as in a dictionary: {items}",
        "~Bringe diese Wörter in die Reihenfolge des Alphabets: {items}",
        "~నిఘంటువులో ఉన్నట్టు ఈ పదాలను అమర్చండి: {items}",
    ),
    "count": (
        "How often does {wanted} occur in {items}?",
        "Count {wanted} in this list: {items}",
        "Wie oft kommt {wanted} in {items} vor?",
        "{items}: ఈ జాబితాలో {wanted} ఎన్ని సార్లు ఉంది?",
        "~{items}: how many times do you see {wanted}?",
        "~Zähle, wie oft {wanted} hier steht: {items}",
        "~{items} లో {wanted} ను లెక్కించండి.",
    ),
    "largest": (
        "Which of these numbers is the largest: {items}?",
        "What is the maximum of {items}?",
        "Welche dieser Zahlen ist die größte: {items}?",
        "{items}: వీటిలో అతి పెద్ద సంఖ్య ఏది?",
        "~Name the greatest of {items}.",
        "~Nenne die größte von {items}.",
        "~{items} లో గరిష్ఠ సంఖ్య చెప్పండి.",
    ),
    "letters": (
        "How many times does the letter {wanted} occur in {word}?",
        "How many {wanted}'s are in {word}?",
        "Wie oft kommt der Buchstabe {wanted} in {word} vor?",
        "{word} పదంలో {wanted} అక్షరం ఎన్ని సార్లు ఉంది?",
        "~Count the letter {wanted} in {word}.",
        "~Zähle den Buchstaben {wanted} in {word}.",
        "~{word} లో {wanted} అక్షరాన్ని లెక్కించండి.",
    ),
    "length": (
        "How many letters has {word}?",
        "How long is the word {word}?",
        "Wie viele Buchstaben hat {word}?",
        "{word} పదంలో ఎన్ని అక్షరాలు ఉన్నాయి?",
        "~Count the letters of {word}.",
        "~Zähle die Buchstaben von {word}.",
        "~{word} అక్షరాలను లెక్కించండి.",
    ),
    "backwards": (
        "Spell {word} backwards.",
        "Write {word} from back to front.",
        "Schreibe {word} rückwärts.",
        "{word} పదాన్ని వెనుక నుండి రాయండి.",
        "~What is {word} read from right to left?",
        "~Wie liest sich {word} von rechts nach links?",
        "~{word} ను కుడి నుండి ఎడమకు రాయండి.",
    ),
}
LENGTHS = ((3, 4), (4, 6), (5, 8))  # items of a list, by level
WORDS = ((2, 3), (3, 4), (3, 5))
LETTERS = (5, 7, 13)  # longest word by level
LARGEST = (99, 99, 999)
NUMBERS = ("count", "largest", "letters", "length")  # kinds whose answer is a number


@functools.cache
def words() -> tuple[str, ...]:
    """English and German words, in file order, each once."""
    text = (Path(__file__).parent / "phrases" / "words.toml").read_text(encoding="utf-8")
    return tuple(dict.fromkeys(word for part in tomllib.loads(text).values() for word in part.split()))


@functools.cache
def _short(longest: int) -> tuple[str, ...]:
    return tuple(word for word in words() if len(word) <= longest)


def sort_lines(items: list[Any]) -> list[str]:
    """Selection sort: what is left, then the smallest of it."""
    left, lines = list(items), []
    while len(left) > 1:
        least = min(left)
        lines.append(f"{' '.join(map(str, left))}: {least}")
        left.remove(least)
    return lines


def count_line(items: list[str], wanted: str) -> str:
    """b a n a n a, a -> `b a1 n a2 n a3`; in lists of numbers the count stands behind a colon."""
    seen, parts = 0, []
    for item in items:
        seen += item == wanted
        mark = f"{':' if item.isdigit() else ''}{seen}" if item == wanted else ""
        parts.append(f"{item}{mark}")
    return " ".join(parts)


def largest_line(items: list[int]) -> str:
    """The largest so far after each number: `17 17, 63 63, 8 63`."""
    return ", ".join(f"{n} {max(items[: i + 1])}" for i, n in enumerate(items))


class Lists(Task):
    """Levels 1 to 3: lists to 4, 6 and 8 numbers (3, 4, 5 words), words to 5, 7 and 13 letters."""

    family = "lists"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """One of the seven kinds; the split goes by the list without its order, or by the word."""
        while True:
            kind = list(PROMPTS)[rng.integers(len(PROMPTS))]
            data = {"kind": kind, **_material(rng, kind, level - 1)}
            if "word" in data:
                key = f"{kind} {data['word']} {data.get('wanted', '')}"
            else:
                key = f"{kind} {' '.join(map(str, sorted(data['items'])))} {data.get('wanted', '')}"
            if owns(split, key):
                break
        shown = data | {"items": ", ".join(map(str, data.get("items", ())))}
        prompt = wording(rng, PROMPTS[kind], split).format(**shown)
        return Problem(self.family, level, key, prompt, solve(data), data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The list gone through, or the word spelt out."""
        data, kind = problem.data, problem.data["kind"]
        if kind in ("sort", "words"):
            lines = sort_lines(data["items"])
        elif kind == "count":
            lines = [count_line(list(map(str, data["items"])), str(data["wanted"]))]
        elif kind == "largest":
            lines = [largest_line(data["items"])]
        elif kind == "letters":
            lines = [count_line(list(data["word"]), data["wanted"])]
        elif kind == "length":
            lines = [" ".join(f"{c}{i}" for i, c in enumerate(data["word"], 1))]
        else:
            lines = [" ".join(data["word"]), " ".join(reversed(data["word"]))]
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the number, the word, or the list with commas. Lenient: without regard to case, commas
        and the full stop."""
        if problem.data["kind"] in NUMBERS:
            return verify_number(problem.answer, answer)
        if answer is None:
            return Verdict(False, False, "no answer")
        if answer.strip() == problem.answer:
            return Verdict(True, True)
        lenient = _loose(answer) == _loose(problem.answer)
        return Verdict(False, lenient, f"{answer!r} is not {problem.answer!r}")


def solve(data: dict[str, Any]) -> str:
    """The answer as it is asked for."""
    kind = data["kind"]
    if kind in ("sort", "words"):
        return ", ".join(map(str, sorted(data["items"])))
    if kind == "count":
        return str(data["items"].count(data["wanted"]))
    if kind == "largest":
        return str(max(data["items"]))
    if kind == "letters":
        return str(data["word"].count(data["wanted"]))
    return str(len(data["word"])) if kind == "length" else data["word"][::-1]


def _material(rng: Generator, kind: str, level: int) -> dict[str, Any]:
    if kind in ("letters", "length", "backwards"):
        pool = _short(LETTERS[level])
        word = pool[rng.integers(len(pool))]
        # Mostly a letter of the word, sometimes any letter: the answer may be 0.
        letters = word if rng.random() < 0.85 else "abcdefghijklmnopqrstuvwxyz"
        return {"word": word} | ({"wanted": letters[rng.integers(len(letters))]} if kind == "letters" else {})
    if kind == "words":
        low, high = WORDS[level]
        pool = _short(LETTERS[level])
        chosen = rng.choice(len(pool), int(rng.integers(low, high + 1)), replace=False)
        return {"items": [pool[i] for i in chosen]}
    low, high = LENGTHS[level]
    length = int(rng.integers(low, high + 1))
    if kind == "count":
        few = rng.integers(1, LARGEST[level] + 1, 3).tolist()
        items = [few[i] for i in rng.integers(0, 3, length)]
        return {"items": items, "wanted": few[rng.integers(3)]}
    return {"items": rng.integers(1, LARGEST[level] + 1, length).tolist()}


def _loose(text: str) -> list[str]:
    return text.casefold().replace(",", " ").rstrip(" .\n").split()
