"""Questions about tables, answered by SQL over schemas that are made up as well.

A schema is a table's name with a column of names and a few others, drawn from the lists below; the
prompt shows it, the rows stay in the database. A question is one of 19 shapes of query in one of two
wordings. The answer is what the query gives, so a model's own query counts when it gives the same: verified
is the result, not the text. The split goes by the schema (table and set of columns), so the schemas of `test`
are unseen; in `templates` some of the tables and columns have words that practice never meets.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import TEMPLATES, Piece, Problem, Task, Verdict, held_out, split_of
from ayllu.reason.tasks.database import SqliteDatabase
from ayllu.reason.transcript import Kind, call_text
from ayllu.tools.sql import Database, Table, rows_text, sql_tool
from ayllu.tools.tool import Tool

HELD = 0.15  # share of tables and columns that only `templates` has
# table, one of its rows, and values of its column `name`
TABLES = (
    ("cities", "city", "Lima Oslo Cairo Delhi Paris Quito Tokyo Berlin Lagos Perth Sofia Hanoi"),
    ("players", "player", "Ada Ben Carl Dora Emil Fay Gita Hari Ida Jon Kavi Lena"),
    ("products", "product", "lamp chair table desk shelf clock mirror rug sofa vase bench stool"),
    ("books", "book", "Dawn Rivers Embers Harbour Shadows Orchard Lantern Voyage Winter Meadow Signal Atlas"),
    ("cars", "car", "Comet Falcon Breeze Titan Pioneer Swift Nomad Aurora Ranger Zephyr Orbit Puma"),
    ("students", "student", "Mina Omar Priya Quinn Rosa Sven Tara Uma Vera Will Xenia Yusuf"),
    ("hotels", "hotel", "Plaza Royal Garden Central Seaview Alpine Crown Bristol Astoria Harbor Palm Ritz"),
    (
        "films",
        "film",
        "Echo Mirage Canyon Twilight Monsoon Horizon Whisper Cascade Phantom Ember Nomads Tide",
    ),
    ("farms", "farm", "Hill Brook Maple Sunny Willow Stone Oak River Cedar North Valley Birch"),
    ("songs", "song", "Rain Stars Home Fire Dance Dreams Roads Light Summer Gold Waves Storm"),
    (
        "ships",
        "ship",
        "Victoria Neptune Albatross Mermaid Triton Pearl Dolphin Santa Marina Polaris Sirius Vega",
    ),
    ("workers", "worker", "Anil Berta Chen Diego Elsa Farid Greta Hugo Ines Jamal Kofi Lucia"),
    ("animals", "animal", "Rex Bella Max Luna Coco Milo Nala Simba Ruby Oscar Daisy Leo"),
    ("shops", "shop", "Corner Market Bazaar Depot Emporium Outlet Stall Kiosk Arcade Gallery Cellar Attic"),
    ("teams", "team", "Reds Blues Lions Eagles Sharks Wolves Bears Hawks Tigers Ravens Foxes Bulls"),
    ("rivers", "river", "Amur Volga Indus Congo Rhine Tagus Mekong Yukon Niger Ob Loire Elbe"),
)
# whole numbers: name, least, most, in words
NUMBERS = (
    ("price", 2, 90, "price"),
    ("age", 5, 80, "age"),
    ("score", 1, 99, "score"),
    ("weight", 2, 95, "weight"),
    ("height", 3, 99, "height"),
    ("points", 0, 60, "number of points"),
    ("year", 1950, 2020, "year"),
    ("sales", 10, 900, "number of sales"),
    ("rating", 1, 10, "rating"),
    ("size", 1, 50, "size"),
    ("stock", 0, 99, "stock"),
    ("rooms", 1, 40, "number of rooms"),
    ("distance", 5, 500, "distance"),
    ("visitors", 20, 900, "number of visitors"),
    ("cost", 3, 300, "cost"),
    ("length", 2, 200, "length"),
    ("speed", 10, 99, "speed"),
    ("income", 100, 900, "income"),
)
# text: name and its values
TEXTS = (
    ("colour", "red blue green white black"),
    ("country", "Peru Kenya Japan Norway India Egypt"),
    ("kind", "small medium large mixed"),
    ("region", "north south east west"),
    ("class", "first second third"),
    ("status", "open closed planned"),
    ("owner", "Smith Rao Weber Okoro Silva"),
    ("material", "wood steel glass stone"),
    ("language", "English German Telugu Hindi"),
    ("season", "spring summer autumn winter"),
)


@dataclass(frozen=True)
class Shape:
    """One kind of query: how it is asked and how it is written. Slots: {T} table, {r} one row, {x} {y}
    number columns with {wx} {wy} in words ({ax}: with an article), {c} text column, {v} its value, {n} {k}
    numbers, {name}."""

    name: str
    ask: tuple[str, ...]
    query: str
    level: int


SHAPES = (
    Shape("count", ("How many {T} are there?", "Count the {T}."), "SELECT COUNT(*) FROM {T}", 1),
    Shape(
        "lookup",
        ("What is the {wx} of {name}?", "Tell me the {wx} of the {r} {name}."),
        "SELECT {x} FROM {T} WHERE name = '{name}'",
        1,
    ),
    Shape(
        "largest",
        ("What is the highest {wx}?", "What is the maximum {wx} of all {T}?"),
        "SELECT MAX({x}) FROM {T}",
        1,
    ),
    Shape(
        "smallest",
        ("What is the lowest {wx}?", "What is the minimum {wx} of all {T}?"),
        "SELECT MIN({x}) FROM {T}",
        1,
    ),
    Shape(
        "sum",
        ("What is the total {wx} of all {T}?", "Add up the {wx} of all {T}."),
        "SELECT SUM({x}) FROM {T}",
        1,
    ),
    Shape(
        "which_text",
        ("What is the {c} of {name}?", "Which {c} does {name} have?"),
        "SELECT {c} FROM {T} WHERE name = '{name}'",
        1,
    ),
    Shape(
        "first",
        ("Which {r} has the highest {wx}?", "Name the {r} with the greatest {wx}."),
        "SELECT name FROM {T} ORDER BY {x} DESC LIMIT 1",
        2,
    ),
    Shape(
        "last",
        ("Which {r} has the lowest {wx}?", "Name the {r} with the smallest {wx}."),
        "SELECT name FROM {T} ORDER BY {x} LIMIT 1",
        2,
    ),
    Shape(
        "count_text",
        ("How many {T} have the {c} {v}?", "Count the {T} whose {c} is {v}."),
        "SELECT COUNT(*) FROM {T} WHERE {c} = '{v}'",
        2,
    ),
    Shape(
        "count_above",
        ("How many {T} have {ax} above {n}?", "Count the {T} with {ax} of more than {n}."),
        "SELECT COUNT(*) FROM {T} WHERE {x} > {n}",
        2,
    ),
    Shape(
        "count_below",
        ("How many {T} have {ax} below {n}?", "Count the {T} with {ax} of less than {n}."),
        "SELECT COUNT(*) FROM {T} WHERE {x} < {n}",
        2,
    ),
    Shape(
        "names",
        ("Which {T} have the {c} {v}? In order of name.", "List the {T} whose {c} is {v}, by name."),
        "SELECT name FROM {T} WHERE {c} = '{v}' ORDER BY name",
        2,
    ),
    Shape(
        "distinct",
        (
            "How many different values of {c} are there?",
            "How many different values does {c} have among the {T}?",
        ),
        "SELECT COUNT(DISTINCT {c}) FROM {T}",
        2,
    ),
    Shape(
        "sum_text",
        ("What is the total {wx} of the {T} whose {c} is {v}?", "Add up the {wx} of {T} with the {c} {v}."),
        "SELECT SUM({x}) FROM {T} WHERE {c} = '{v}'",
        3,
    ),
    Shape(
        "both",
        (
            "How many {T} with the {c} {v} have {ax} above {n}?",
            "Count the {T} whose {c} is {v} and whose {wx} is more than {n}.",
        ),
        "SELECT COUNT(*) FROM {T} WHERE {c} = '{v}' AND {x} > {n}",
        3,
    ),
    Shape(
        "top",
        (
            "Which {k} {T} have the highest {wx}? Highest first.",
            "Name the {k} {T} with the greatest {wx}, in descending order.",
        ),
        "SELECT name FROM {T} ORDER BY {x} DESC LIMIT {k}",
        3,
    ),
    Shape(
        "groups",
        ("How many {T} are there for each {c}? By {c}.", "Count the {T} of each {c}, in order of {c}."),
        "SELECT {c}, COUNT(*) FROM {T} GROUP BY {c} ORDER BY {c}",
        3,
    ),
    Shape(
        "second_column",
        (
            "What is the {wy} of the {r} with the highest {wx}?",
            "Take the {r} with the greatest {wx}: what is its {wy}?",
        ),
        "SELECT {y} FROM {T} ORDER BY {x} DESC LIMIT 1",
        3,
    ),
    Shape(
        "common",
        ("Which {c} is the most common?", "Which {c} do most {T} have?"),
        "SELECT {c} FROM {T} GROUP BY {c} ORDER BY COUNT(*) DESC LIMIT 1",
        3,
    ),
)  # fmt: skip


def database(problem: Problem) -> Database:
    """The problem's table, ready to be asked."""
    return _database(json.dumps([problem.data[name] for name in ("table", "columns", "rows")]))


@functools.lru_cache(maxsize=64)  # a group of rollouts has one problem: one database, too
def _database(table: str) -> Database:
    return Database([Table(*json.loads(table))])


class Tables(Task):
    """Level 1: one value or one aggregate; level 2: a condition or an order; level 3: two things at once."""

    family = "tables"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """A schema of the split, rows, and a question whose answer is unique."""
        shapes = [shape for shape in SHAPES if shape.level == level]
        while True:
            table, row, names = TABLES[rng.integers(len(TABLES))]
            numbers = [NUMBERS[i] for i in rng.choice(len(NUMBERS), int(rng.integers(2, 4)), replace=False)]
            texts = [TEXTS[i] for i in rng.choice(len(TEXTS), int(rng.integers(1, 3)), replace=False)]
            columns = [n[0] for n in numbers] + [t[0] for t in texts]
            schema = f"schema {table} {' '.join(sorted(columns))}"
            owner = (
                TEMPLATES if any(held_out(f"sql {w}", HELD) for w in (table, *columns)) else split_of(schema)
            )
            if owner == split:
                break
        rows = _rows(rng, names.split(), numbers, texts)
        ordered = [(n[0], "integer") for n in numbers] + [(t[0], "text") for t in texts]
        order = [0, *(1 + rng.permutation(len(ordered))).tolist()]
        every = [("name", "text"), *ordered]
        data: dict[str, Any] = {
            "table": table,
            "columns": [list(every[i]) for i in order],
            "rows": [[r[i] for i in order] for r in rows],
        }
        base = SqliteDatabase(table, data["columns"], data["rows"])
        while True:
            shape = shapes[rng.integers(len(shapes))]
            slots = _slots(rng, table, row, rows, numbers, texts)
            query = shape.query.format(**slots)
            result = base.ask(query)
            if result and result[0][0] is not None and not _tied(shape, result, base, slots):
                break
        question = shape.ask[rng.integers(len(shape.ask))].format(**slots)
        shown = ", ".join(f"{name} {kind}" for name, kind in data["columns"])
        prompt = f"Table {table} ({shown})\n{question}"
        data |= {"query": query, "shape": shape.name}
        key = f"{schema} | {query} | {sorted(map(str, rows))}"
        return Problem(self.family, level, key, prompt, rows_text(result), data, ("sql",))

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """Call, result (written by the tool), the result as the answer."""
        return [
            Piece(Kind.CALL, call_text("sql", {"query": problem.data["query"]})),
            Piece(Kind.RESULT, problem.answer),
            Piece(Kind.SAY, problem.answer),
        ]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the result letter for letter. Lenient: the same words in order, whatever stands between."""
        if answer is None:
            return Verdict(False, False, "no answer")
        if answer.strip() == problem.answer:
            return Verdict(True, True)
        return Verdict(
            False, _loose(answer) == _loose(problem.answer), f"{answer!r} is not {problem.answer!r}"
        )

    def tools_of(self, problem: Problem) -> list[Tool]:
        """The tools that this very problem brings: `sql` over its table."""
        return [sql_tool(database(problem))]


def _rows(
    rng: Generator, names: list[str], numbers: list[tuple[str, int, int, str]], texts: list[tuple[str, str]]
) -> list[list[Any]]:
    """Five to nine rows, each name once: name, then numbers, then texts."""
    chosen = rng.choice(len(names), int(rng.integers(5, 10)), replace=False)
    return [
        [
            names[i],
            *(int(rng.integers(low, high + 1)) for _, low, high, _ in numbers),
            *(words.split()[rng.integers(len(words.split()))] for _, words in texts),
        ]
        for i in chosen
    ]


def _slots(
    rng: Generator,
    table: str,
    row: str,
    rows: list[list[Any]],
    numbers: list[tuple[str, int, int, str]],
    texts: list[tuple[str, str]],
) -> dict[str, Any]:
    i, j = rng.choice(len(numbers), 2, replace=False)
    t, some = int(rng.integers(len(texts))), rows[rng.integers(len(rows))]
    x, y = numbers[i], numbers[j]
    article = "an" if x[3][0] in "aeiou" else "a"
    return {
        "T": table, "r": row, "x": x[0], "wx": x[3], "y": y[0], "wy": y[3], "c": texts[t][0],
        "v": some[1 + len(numbers) + t], "n": some[1 + i], "k": int(rng.integers(2, 4)), "name": some[0],
        "ax": f"{article} {x[3]}",
    }  # fmt: skip


def _tied(shape: Shape, result: list[Any], base: SqliteDatabase, slots: dict[str, Any]) -> bool:
    """Whether a question for "the" highest has more than one answer."""
    if shape.name in ("first", "last", "top", "second_column"):
        # Equal values anywhere in the column: rare enough to leave out altogether.
        query = "SELECT COUNT(*) - COUNT(DISTINCT {x}) FROM {T}".format(**slots)  # noqa: S608 - our names
        return bool(base.ask(query)[0][0])
    if shape.name == "common":
        query = "SELECT COUNT(*) FROM {T} GROUP BY {c} ORDER BY COUNT(*) DESC LIMIT 2".format(**slots)  # noqa: S608
        counts = [row[0] for row in base.ask(query)]
        return len(counts) > 1 and counts[0] == counts[1]
    return False


def _loose(text: str) -> list[str]:
    return text.casefold().replace("|", " ").replace(",", " ").rstrip(" .\n").split()
