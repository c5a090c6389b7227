"""Test sets as files: their rows, each with the line where it stands, and typed errors for what is damaged.

Evaluation and the guard against contamination read the same files through here. JSON lines, one JSON value,
TSV, CSV and plain text, each also packed by xz.
"""

from __future__ import annotations

import csv
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ayllu.errors import BadFileError, InputNotFoundError

KINDS = (".jsonl", ".json", ".tsv", ".csv", ".txt")


def kind_of(path: Path) -> str:
    """The suffix that says the form, `.xz` left out."""
    return path.with_suffix("").suffix if path.suffix == ".xz" else path.suffix


def read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(line, value): an object of a .jsonl, the one value of a .json, the cells of a .tsv or .csv, a line of
    a .txt with its end. BadFileError names the file and the line."""
    line = 1
    try:
        with (
            lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else open(file, encoding="utf-8")
        ) as text:
            form = kind_of(file)
            if form == ".json":
                yield line, json.load(text)
            elif form == ".jsonl":
                for line, each in enumerate(text, 1):
                    if each.strip():
                        yield line, json.loads(each)
            elif form == ".txt":
                yield from enumerate(text, 1)
            else:
                # A tab never stands inside a cell, so that a quotation mark there is one and nothing more.
                tabs = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
                cells = tabs if form == ".tsv" else csv.reader(text)
                for row in cells:
                    if row:  # no empty line
                        yield line, row
                    line = cells.line_num + 1
    # ValueError: no JSON, no UTF-8. RecursionError: endless nesting.
    except (ValueError, csv.Error, lzma.LZMAError, EOFError, RecursionError) as error:
        raise BadFileError(f"{file} can't be read", why=f"line {line}: {error}"[:200]) from error


def find_file(data: Path, name: str, *, instead: str = "") -> Path:
    """`data`/`name`, as it is or packed (`.xz`). InputNotFoundError says what to do; `instead`: or else."""
    if not data.is_dir():
        raise InputNotFoundError(
            f"there is no folder {data}", fix="name the folder with the test sets as --data FOLDER"
        )
    for path in (data / name, data / f"{name}.xz"):
        if path.is_file():
            return path
    raise InputNotFoundError(
        f"{data} holds no {name}",
        why="the project ships no test sets",
        fix=f"put the file there as {name} or {name}.xz (docs/evaluation.md says where each set comes from)"
        + instead,
    )
