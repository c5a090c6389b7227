"""The report: what it says is what was measured, what is missing is named, and nothing in it can run."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import MACHINE, RECIPE, Reader, evals, finished_stages, metrics_lines, points_of, samples
from report_cases import run as run

from ayllu.errors import FolderReadOnlyError
from ayllu.report import write_report
from ayllu.report.escape import safe
from ayllu.report.page import CSP
from ayllu.report.summary import STAGES, evals_of, read_metrics, read_stages, samples_of, summarise


def test_json_has_the_numbers_that_programs_rely_on(run: Path) -> None:
    write_report(run, RECIPE, finished_stages())
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["finished"] is True and report["missing"] == []
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text(encoding="utf-8")
    assert report["wall_seconds"] == pytest.approx(630.8)
    assert report["stages"]["sft"]["seconds"] == 214.0
    assert report["pretrain"]["bits_per_byte"] == 1.893 and report["pretrain"]["xz_bits_per_byte"] == 2.214
    assert report["pretrain"]["fraction"] == 0.459
    assert report["evals"]["countdown3"]["sft"]["correct"] == 412
    for family in ("arithmetic", "calculator", "countdown3"):
        for when in ("sft", "rl"):
            assert set(report["evals"][family][when]) >= {"n", "correct", "low", "high"}
    assert report["seed"] == 7
    assert report["weights_sha256"] == "cd" * 32
    assert report["machine"]["physical_cores"] >= 1


@pytest.mark.parametrize("done", range(len(STAGES)))
def test_a_run_that_stopped_early_names_what_is_missing(run: Path, done: int) -> None:
    stages = dict(list(finished_stages().items())[:done])
    (run / "metrics.jsonl").unlink()
    write_report(run, RECIPE, stages)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["finished"] is False
    assert report["missing"] == list(STAGES[done:])
    html = (run / "report.html").read_text(encoding="utf-8")
    shown = Reader(html).text
    assert "This run is not finished" in shown and 'http-equiv="refresh"' in html
    if "eval" in report["missing"]:
        assert report["evals"] == {}
        assert "Accuracy on held-out problems: not there" in shown and "after RL" not in shown
    if "rl" in report["missing"]:
        assert report["weights_sha256"] is None
        assert "reward curves: not there" in shown


def test_page_is_one_file_without_script_or_network(run: Path) -> None:
    write_report(run, RECIPE, finished_stages())
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Reader(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "base", "form", "img", "a"}
    policy = [
        attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == [CSP] and "default-src 'none'" in CSP and "script" not in CSP
    for _, attrs in page.tags:
        assert not any(name.startswith("on") or name in ("src", "href", "style") for name in attrs)
    assert "url(" not in text and "@import" not in text


def test_page_shows_what_the_stages_said(run: Path) -> None:
    write_report(run, RECIPE, finished_stages())
    page = Reader((run / "report.html").read_text(encoding="utf-8"))
    for expected in (
        "63.4%", "41.2%", "1.893", "2.214", "xz -9e", "13,412", "46%", "classic-books-en", "PDM-1.0",
        "near_duplicate", "Telugu", "6.88", "10:31", "7 * 3 + 7", "wrong: 7 is used twice", "cd" * 32,
        'corpus = "data/default"',
    ):  # fmt: skip
        assert expected in page.text, expected
    assert sum(tag == "svg" for tag, _ in page.tags) == 12  # accuracy, loss, bits, SFT, seven of RL, time


def test_bits_per_byte_measured_once_are_compared_as_bars(run: Path) -> None:
    rows = [json.loads(line) for line in metrics_lines()]
    rows = [{key: value for key, value in row.items() if key != "bits_per_byte"} for row in rows]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    write_report(run, RECIPE, finished_stages())
    svgs = re.findall(r"<svg.*?</svg>", (run / "report.html").read_text(encoding="utf-8"))
    (svg,) = [svg for svg in svgs if "Bits per byte on held-out documents" in svg]
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths[0] / widths[1] == pytest.approx(1.893 / 2.214, rel=0.01)
    assert "1.893" in svg and "2.214" in svg


FURTHER = {
    "expert": [{"loss": 0.4 / i} for i in range(1, 20)],
    "verifier": [{"loss": 0.7 / i, "accuracy": 1 - 0.5 / i} for i in range(1, 20)],
    "distill": [{"kl": 0.3 / i, "tokens": 900} for i in range(1, 20)],
}


def test_curves_of_the_stages_that_a_recipe_adds(run: Path) -> None:
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        for stage, rows in FURTHER.items():
            file.writelines(
                json.dumps({"stage": stage, "step": i, **row}) + "\n" for i, row in enumerate(rows)
            )
    recipe, stages = RECIPE | {name: {} for name in FURTHER}, finished_stages()
    stages |= {name: {"seconds": 5.0, "result": {"steps": 19}} for name in FURTHER}
    write_report(run, recipe, stages)
    text = (run / "report.html").read_text(encoding="utf-8")
    order = [
        "Supervised fine-tuning",
        "Expert iteration",
        "Reinforcement learning",
        "Verifier",
        "Distillation",
    ]
    places = [text.index(f"<h2>{heading}</h2>") for heading in order]
    assert places == sorted(places)
    for heading, titles in (
        ("Expert iteration", ["loss, nats per token"]),
        ("Verifier", ["loss, nats per token", "tokens told apart"]),
        ("Distillation", ["reverse KL, nats per token"]),
    ):
        section = text.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]
        svgs = re.findall(r"<svg.*?</svg>", section)
        assert [re.findall(r"<title>(.*?)</title>", svg) for svg in svgs] == [[title] for title in titles]
        assert all(points_of(svg) for svg in svgs)
    write_report(run, RECIPE, finished_stages())  # rows of a stage that the recipe doesn't have any more
    assert "Expert iteration" not in (run / "report.html").read_text(encoding="utf-8")


def test_a_stage_of_the_recipe_without_rows_is_named_as_missing(run: Path) -> None:
    write_report(run, RECIPE | {"distill": {}}, finished_stages())
    shown = Reader((run / "report.html").read_text(encoding="utf-8")).text
    assert "The curves: not there, the stage “distill” has not finished" in shown


def test_what_rl_found_before_its_first_update_is_a_table(run: Path) -> None:
    flight = {"problems": 8, "pass_1": 0.137, "pass_16": 0.5}
    flight |= {"truncated": 0.046, "informative": 0.375, "tokens": 187.4}
    stages = finished_stages()
    stages["rl"]["result"]["preflight"] = {
        "families": {"countdown4": flight, HOSTILE[0]: flight},
        "tokens_per_second": 4899.6,
        "seconds": 466.0,
        "peak_memory_mb": 900.0,
    }
    write_report(run, RECIPE, stages)
    text = (run / "report.html").read_text(encoding="utf-8")
    section = text.partition("<h3>Before the first update</h3>")[2].partition("<h2>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", section)]
    assert rows[1] == ["countdown4", "8", "14%", "50%", "5%", "38%", "187"]
    assert "4,900 tokens a second" in section and "expected to take 7:46" in section
    assert "<script" not in text
    write_report(run, RECIPE, finished_stages())
    assert "Before the first update" not in (run / "report.html").read_text(encoding="utf-8")


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "&lt;script&gt;",
    "' onmouseover='alert(1)",
    "\x1b]0;title\x07\x00",
    "\u202egnp.exe",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_anywhere_stays_text(run: Path, text: str) -> None:
    write_report(run, RECIPE, finished_stages())
    before = [tag for tag, _ in Reader((run / "report.html").read_text(encoding="utf-8")).tags]
    stages = finished_stages()
    for sample in stages["eval"]["result"]["samples"]:
        sample.update(why=text, spans=[[kind, text] for kind, _ in sample["spans"]])
    stages["text"]["result"]["mixture"][0].update(source=text, licences=[text], language=text)
    stages["text"]["result"]["dropped"] = {text: 3, "exact_duplicate": 31, "digits": 4, "leak": 3}
    fairness = stages["tokenizer"]["result"]["fairness"]
    fairness[text] = fairness.pop("en")
    stages["eval"]["result"][text] = stages["eval"]["result"].pop("arithmetic")
    recipe = {**RECIPE, "text": {"corpus": text, "near": 0.8}}
    write_report(run, recipe, stages)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert sorted(tag for tag, _ in Reader(page).tags) == sorted(before)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)


@given(st.text())
def test_safe_text_has_no_markup_and_nothing_that_disguises(text: str) -> None:
    shown = Reader(f'<p title="{safe(text)}">{safe(text)}</p>')
    assert [tag for tag, _ in shown.tags] == ["p"]
    assert all(
        unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs") or c in "\n\t\u200c\u200d" for c in shown.text
    )
    if all(unicodedata.category(c)[0] != "C" for c in text):
        assert shown.text == text == shown.tags[0][1]["title"]


def test_telugu_joiners_are_kept() -> None:
    assert safe("క్\u200cష") == "క్\u200cష"


def test_metrics_survive_a_kill_and_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"stage":"sft","step":1,"loss":3.0}\n{"stage":"sft","step":2,"loss":2.0}\n{"stage":"sft","step":3,"lo\n'
        '{"stage":"sft","step":2,"loss":1.5}\nnull\n[]\n{"stage":"sft","step":1,"bits_per_byte":2.5}\n',
        encoding="utf-8",
    )
    rows = read_metrics(path)["sft"]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 3.0), (2, 1.5)]
    assert rows[0]["bits_per_byte"] == 2.5
    assert read_metrics(tmp_path / "absent.jsonl") == {}


def test_numbers_that_are_not_finite_are_null_not_invalid_json() -> None:
    stages = finished_stages()
    stages["pretrain"]["result"]["bits_per_byte"] = math.nan
    report = summarise(RECIPE, stages, MACHINE)
    assert report["pretrain"]["bits_per_byte"] is None
    json.dumps(report, allow_nan=False)


def test_evals_are_found_and_samples_are_one_right_and_one_wrong() -> None:
    result = {"arithmetic": evals(1, 2), "other": 3, "samples": samples("arithmetic")}
    table = evals_of(result)
    assert set(table) == {"arithmetic"} and set(table["arithmetic"]) == {"sft", "rl", "gain"}
    assert [(s["family"], s["when"], s["correct"]) for s in samples_of(result)] == [
        ("arithmetic", "after RL", True),
        ("arithmetic", "after RL", False),
    ]
    assert evals_of({}) == {} and samples_of({}) == []


def test_stages_are_read_from_the_run_folder(tmp_path: Path) -> None:
    for name, text in (
        ("text", '{"seconds": 1.0, "result": {"kept": 3}}'),
        ("sft", "{half"),
        ("rl", '{"a": 1}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stage.json").write_text(text, encoding="utf-8")
    assert read_stages(tmp_path) == {"text": {"seconds": 1.0, "result": {"kept": 3}}}


def test_a_report_that_cannot_be_written_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(FolderReadOnlyError, match=r"report\.json"):
        write_report(run, RECIPE, finished_stages())
