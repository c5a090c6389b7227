"""A gold test of the whole text stage: faults are planted, and what was found is scored.

60 sound documents in three languages (the stage must keep them all), and planted among them: exact and
near duplicates, evaluation problems, wrong labels, junk of every kind, private data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ayllu.stage import StageContext
from ayllu.text.stage import TextSettings, make_text, read_kept

PROBLEMS = [f"What is {a} + {b}?" for a in range(400, 430) for b in range(380, 390)]
STORY = (
    "A herdsman has 27 llamas and buys 15 more at the market in Cusco, then he gives every third one to "
    "his sister. How many llamas does he have in the end?"
)


def edited(text: str, share: float, rng: random.Random) -> str:
    words = text.split(" ")
    for place in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = rng.choice(words)
    return " ".join(words)


def planted_rows(sound: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], str]]:
    """(the rule that must catch it, the row, the id of its twin)."""
    rng = random.Random(7)
    rows: list[tuple[str, dict[str, Any], str]] = []

    def plant(rule: str, base: dict[str, Any], text: str, twin: str = "", **more: Any) -> None:
        number = len(rows)
        row = base | {"id": f"planted/{number:03d}", "text": text, "title": f"Planted {number}"} | more
        rows.append((rule, row, twin))

    for base in sound[::10]:
        plant("exact_duplicate", base, base["text"].upper().replace("\n", "\r\n"), base["id"])
        plant("exact_duplicate", base, f"  {base['text'].replace(',', ' ,')}  ", base["id"])
    for base in sound[3::6]:
        for share in (0.05, 0.1):
            plant("near_duplicate", base, edited(base["text"], share, rng), base["id"])
    fresh = [" ".join(edited(base["text"], 0.9, rng).split()) for base in sound[:20] if base["lang"] == "en"]
    english = next(row for row in sound if row["lang"] == "en")
    for text, problem in zip(fresh[:6], [*PROBLEMS[:5], STORY], strict=False):
        plant("evaluation_overlap", english, f"{text} Question: {problem} Think! {text[::-1][:50]}")
    for base in [row for row in sound if row["lang"] == "de"][:3]:
        plant("language_contradicts_label", base, edited(base["text"], 0.9, rng), lang="en")
    letters = "abcdefghijklmnopqrstuvwxyz"
    junk = {
        "too_short": "Sign in to continue.",
        "broken_characters": english["text"][:400] + " DÃ¼sseldorf â€œKÃ¶lnâ€ " * 3,
        "few_letters": "Table of values " + " ".join(str(rng.randint(100, 99999)) for _ in range(120)),
        "long_words": " ".join("".join(rng.choices(letters, k=50)) for _ in range(20)),
        "repeated_lines": "\n".join(["Home | Products | About us | Contact"] * 30),
        "repeated_phrases": "and click here to win a free prize today " * 40,
        "gibberish": " ".join("".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(150)),
    }
    for rule, text in junk.items():
        plant(rule, english, text)
    return rows


@pytest.fixture
def outcome(
    sound_rows: list[dict[str, Any]], corpus: Callable[..., Path], context: Callable[..., StageContext]
) -> tuple[list[tuple[str, dict[str, Any], str]], dict[str, dict[str, Any]], set[str], dict[str, Any], Path]:
    planted = planted_rows(sound_rows)
    corpus([*sound_rows, *(row for _, row, _ in planted)])
    here = context("text")
    settings = TextSettings(corpus=("corpus.jsonl",), heldout=0.1)
    result = make_text(here, settings, [*PROBLEMS, STORY])
    dropped = [json.loads(line) for line in (here.folder / "dropped.jsonl").read_text().splitlines()]
    kept = {document.id for document in read_kept(here.folder)}
    return planted, {row["id"]: row for row in dropped}, kept, result, here.folder


def test_the_gold_set(outcome: Any, sound_rows: list[dict[str, Any]]) -> None:
    planted, dropped, kept, result, _ = outcome
    caught: dict[str, list[bool]] = {}
    for rule, row, twin in planted:
        drop = dropped.get(row["id"])
        right = drop is not None and drop["rule"] == rule and (not twin or drop["twin"] == twin)
        caught.setdefault(rule, []).append(right)
    recall = {rule: sum(hits) / len(hits) for rule, hits in caught.items()}
    # All of every kind, but near duplicates: with a tenth of the words edited some lie below the threshold.
    near = recall.pop("near_duplicate")
    assert recall == dict.fromkeys(recall, 1.0)
    assert near >= 0.9
    # Precision: nothing sound is dropped.
    assert {row["id"] for row in sound_rows} <= kept
    assert len(kept) + len(dropped) == result["read"] == len(sound_rows) + len(planted)
    assert sum(result["dropped"].values()) == len(dropped)


def test_every_drop_has_its_reason(outcome: Any) -> None:
    _, dropped, kept, _, _ = outcome
    for row in dropped.values():
        assert {"id", "source", "language", "rule", "value", "threshold"} <= row.keys()
        assert row["value"] != row["threshold"] or row["rule"].endswith(("duplicate", "overlap"))
        if "twin" in row:
            assert row["twin"] in kept, "the twin of a dropped document was kept"
        if row["rule"] == "evaluation_overlap":
            assert row["passage"] in row["evaluation"].lower().replace("?", " ?").replace(",", " ,").replace(
                ".", " ."
            )


def test_no_problem_and_no_duplicate_is_left(outcome: Any) -> None:
    _, _, _, _, folder = outcome
    texts = [" ".join(d.text.split()).lower() for d in read_kept(folder)]
    assert not [p for p in PROBLEMS if any(p.lower() in text for text in texts)]
    assert len(set(texts)) == len(texts)


def test_private_data_is_marked_and_counted(
    sound_rows: list[dict[str, Any]], corpus: Callable[..., Path], context: Callable[..., StageContext]
) -> None:
    rng = random.Random(3)
    secrets = [
        ("email", "anna.huber@example.org"),
        ("phone", "+49 30 901820"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("card", "4111 1111 1111 1111"),
        ("ip", "134.76.10.46"),
    ]
    rows, planted = [], 0
    for number, row in enumerate(sound_rows):
        secret = secrets[number % len(secrets)][1]
        times = rng.randint(0, 2)
        planted += times
        rows.append(row | {"text": row["text"] + f"\n\n({secret})" * times})
    corpus(rows)
    here = context("text")
    result = make_text(here, TextSettings(corpus=("corpus.jsonl",)))
    written = (here.folder / "documents.jsonl").read_text()
    assert not [secret for _, secret in secrets if secret in written]
    assert sum(result["private"].values()) == planted
    assert set(result["private"]) == {kind for kind, _ in secrets}
    per_document = [json.loads(line).get("private", {}) for line in written.splitlines()]
    assert sum(sum(found.values()) for found in per_document) == planted
    assert sum(written.count(f"[{kind}]") for kind, _ in secrets) == planted
