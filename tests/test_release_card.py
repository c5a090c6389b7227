"""The card of a released folder says only what was measured; the report beside it is about its weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from released import RESULTS, make_run
from released import context as context
from released import folder as folder
from released import result as result

from ayllu.files import read_json
from ayllu.release import ReleaseSettings, release
from ayllu.report.card import model_card
from ayllu.report.charts import short


def test_card_and_results_agree(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(
        '---\nlanguage:\n- "en"\n- "te"\nlicense: apache-2.0\nlibrary_name: transformers\n'
    )
    assert "| countdown3 | after SFT | 1,000 | 412 | 41.2% | 38.2% – 44.3% |" in card
    assert "| countdown3 | after RL | 1,000 | 634 | 63.4% | 60.4% – 66.3% |" in card
    assert "| te | wiki\\|source | 199 | 1,345,304 | 30.0% | PDM-1.0, CC0-1.0 |" in card
    assert "1.893 bits per byte (`xz -9e` on the same documents: 2.214)" in card
    assert "123k parameters" in card and "seed 7" in card and "# demo" in card
    percents = {float(p) for p in re.findall(r"(\d+\.\d)%", card)}
    assert percents == {41.2, 38.2, 44.3, 63.4, 60.4, 66.3, 70.0, 30.0}  # no other share is claimed


def test_card_without_results_claims_nothing(tmp_path: Path) -> None:
    results = {name: {} for name in RESULTS}
    context = make_run(tmp_path / "bare", results=results)
    release(context, ReleaseSettings(title="A <b>title</b>\n# with tricks"))
    card = (context.folder / "README.md").read_text(encoding="utf-8")
    assert "Missing: this run has no finished evaluation." in card
    assert "Missing: the run has no mixture table." in card
    assert "%" not in card
    assert "# A \\<b\\>title\\</b\\> # with tricks\n" in card


def test_the_cards_python_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.partition("With transformers")[2].partition("\n\n")[2].partition("\n\n")[0]
    source = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    assert "max_new_tokens=200" in source
    exec(source.replace("max_new_tokens=200", "max_new_tokens=3"), {"folder": folder})
    assert capsys.readouterr().out.startswith("<|bos|><|user|>What is 417 + 385?<|end|><|assistant|>")


def test_report_in_the_folder_is_about_these_weights(folder: Path, result: dict[str, Any]) -> None:
    report = read_json(folder / "report.json")
    assert report["weights_sha256"] == result["weights_sha256"]
    assert report["finished"] is True and report["seed"] == 7
    assert report["evals"]["countdown3"]["rl"]["correct"] == 634


def test_card_of_an_empty_report_still_says_what_is_missing() -> None:
    report: dict[str, Any] = {"evals": {}, "stages": {}, "machine": {}, "seed": None, "recipe": {}}
    assert model_card("x", report, {}).count("Missing:") == 2


def card_of(mixture: list[dict[str, Any]], recipe: dict[str, Any], **evals: Any) -> str:
    report: dict[str, Any] = {"evals": evals, "stages": {}, "machine": {}, "seed": 1, "recipe": recipe}
    return model_card("x", report | {"text": {"mixture": mixture}}, {})


def row(language: str, documents: int, *licences: str) -> dict[str, Any]:
    return {"language": language, "source": "s", "documents": documents, "licences": list(licences)}


def test_what_is_private_is_not_called_public_or_free() -> None:
    public = card_of([row("en", 2, "CC0-1.0")], {})
    assert "trained from scratch on public text" in public and "free to use" in public
    private = card_of([row("en", 2, "CC0-1.0"), row("en", 1, "private")], {})
    assert "public text with" not in private and "free to use" not in private and "`private`" in private
    assert "license: other\nlicense_name: private" in private and "apache" not in private.lower()


def test_a_language_without_a_document_is_not_named() -> None:
    head = card_of([row("en", 2, "CC0-1.0"), row("de", 0)], {}).partition("license:")[0]
    assert '"en"' in head and '"de"' not in head


def test_where_practice_came_from_is_said() -> None:
    plain = card_of([], {"sft": {"gsm8k": []}})
    assert "GSM8K" not in plain and "expert iteration" not in plain
    told = card_of([], {"sft": {"gsm8k": ["rows"]}, "expert": {}})
    assert "GSM8K's training problems" in told and "expert iteration" in told


def test_families_without_words_of_their_own_were_measured_all_the_same() -> None:
    evals = {"stories_de": {"rl": {"n": 10, "correct": 9, "low": 0.6, "high": 0.99}}}
    card = card_of([], {}, **evals)
    assert "was not measured" not in card and "examined in `stories_de`" in card
    assert "was not measured" in card_of([], {})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1500, "1,500"),
        (999_400, "999k"),
        (999_600, "1M"),
        (2.5e6, "2.5M"),
        (0.30000001, "0.3"),
        (12_345, "12.3k"),
    ],
)
def test_numbers_in_short(value: float, text: str) -> None:
    assert short(value) == text
