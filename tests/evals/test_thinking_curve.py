"""Several bounds on thinking: points by bound, kept and gone on with, and shown as a curve."""

import json

import pytest

from ayllu import cli
from ayllu.errors import UsageError
from ayllu.evals import evaluation
from ayllu.evals.evaluation import budgets_of, evaluate_model
from ayllu.evals.examine import ExamSettings
from ayllu.evals.page import line, page
from ayllu.release import weights_sha256

FOUR = ExamSettings(n=4, max_tokens=24)


def run(model, budgets, tasks=("arithmetic",), settings=FOUR, **options):
    return evaluate_model(model, tasks, settings=settings, budgets=budgets, quiet=True, **options)


def test_the_option_is_a_number_or_several():
    assert budgets_of("16") == (16,) and budgets_of("16,32, 64,16") == (16, 32, 64)
    assert budgets_of("-1") == (-1,), "refused with the other numbers that are not possible"
    for text in ("", "sixteen", "16,", "1.5", "1e3", "²", "9" * 12):
        with pytest.raises(UsageError, match="no number of tokens") as error:
            budgets_of(text)
        assert "16,32,64" in error.value.fix


def test_each_bound_is_a_point(ours, data):
    made = run(ours, (9, 0), ("arithmetic", "boolq"), data=data)
    assert list(made["results"]) == ["boolq"], "what doesn't think is asked once"
    points = made["by_thinking_budget"]["arithmetic"]
    assert list(points) == ["0", "9"], "by rising bound"
    for budget, point in points.items():
        assert point["sampling"]["thinking_budget"] == int(budget) and point["n"] == 4
        assert point["mean_thinking_tokens"] <= (int(budget) + 2 if int(budget) else 0)
        assert point["low"] <= point["score"] <= point["high"]
        alone = run(ours, (int(budget),))["results"]["arithmetic"]
        assert alone["samples"] == point["samples"], "the same as when it is asked alone"
    assert json.loads(json.dumps(made)) == made
    assert made["weights_sha256"] == weights_sha256(ours), "by which a run knows its own"


def test_the_curve_is_printed_with_its_intervals(ours, data):
    made = run(ours, (0, 9), ("arithmetic", "boolq"), data=data)
    shown = page(made).splitlines()
    at = shown.index("arithmetic: accuracy against tokens thought (mean of an answer)")
    assert " ".join(shown[at + 1].split()) == "at most thought n score 95 % interval cut off"
    rows = shown[at + 2 : at + 4]
    for row, (budget, point) in zip(rows, made["by_thinking_budget"]["arithmetic"].items(), strict=True):
        spread = f"{100 * point['low']:.2f} to {100 * point['high']:.2f}"
        assert row.split()[:3] == [budget, f"{point['mean_thinking_tokens']:.1f}", "4"] and spread in row
    assert shown[0].startswith("task") and shown[1].startswith("boolq")
    alone = page(run(ours, (0, 9)))
    assert alone.startswith("arithmetic: accuracy against") and "asked as conversation" in alone
    point = made["by_thinking_budget"]["arithmetic"]["9"]
    assert line(point).endswith(f", {point['mean_thinking_tokens']:.1f} tokens thought of 9 at most")


def test_another_bound_adds_a_point_and_overwrites_none(ours, tmp_path, monkeypatch):
    out = tmp_path / "results.json"
    one, other = run(ours, (9,), out=out), run(ours, (3,), out=out)
    assert "accuracy against" not in page(one) and "accuracy against" in page(other)
    kept = json.loads(out.read_text())
    assert kept == other and kept["results"]["arithmetic"]["sampling"]["thinking_budget"] == 3
    assert kept["by_thinking_budget"]["arithmetic"] == {
        "3": other["results"]["arithmetic"],
        "9": one["results"]["arithmetic"],
    }
    monkeypatch.setattr(evaluation, "_examine", lambda *_: pytest.fail("was made again"))
    again = run(ours, (9,), out=out)
    assert again["results"] == one["results"]
    assert json.loads(out.read_text())["results"] == one["results"], "the last that was asked for"
    assert run(ours, (3, 9), out=out)["by_thinking_budget"] == kept["by_thinking_budget"]


def test_a_curve_goes_on_where_it_was_broken_off(ours, tmp_path, monkeypatch):
    out, real, done = tmp_path / "results.json", evaluation._examine, []

    def dies(task, subject, data, settings, progress):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(settings.thinking_budget)
        return real(task, subject, data, settings, progress)

    monkeypatch.setattr(evaluation, "_examine", dies)
    with pytest.raises(KeyboardInterrupt):
        run(ours, (0, 3, 9), out=out)
    done.clear()
    whole = run(ours, (0, 3, 9), out=out)
    assert done == [9] and list(whole["by_thinking_budget"]["arithmetic"]) == ["0", "3", "9"]


def test_points_of_other_settings_are_of_another_curve(ours, tmp_path):
    out = tmp_path / "results.json"
    run(ours, (0, 9), out=out)
    made = run(ours, (3,), settings=ExamSettings(n=3, max_tokens=24), out=out)
    assert list(made["by_thinking_budget"]["arithmetic"]) == ["3"]
    assert list(json.loads(out.read_text())["by_thinking_budget"]["arithmetic"]) == ["3"]


@pytest.mark.parametrize(
    ("tasks", "budgets", "said"),
    [
        (("arithmetic",), (4, -1), "--thinking-budget -1 is not possible"),
        (("arithmetic",), (4, 10**7), "--thinking-budget 10000000 is too many"),
        (("boolq",), (4, 8), "--thinking-budget: of no effect on boolq"),
    ],
)
def test_bounds_that_make_no_sense(ours, data, monkeypatch, tasks, budgets, said):
    monkeypatch.setattr(evaluation, "Engine", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(UsageError, match=said):
        evaluate_model(ours, tasks, data=data, settings=ExamSettings(n=2), budgets=budgets, quiet=True)


def call(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code


def test_the_verb(ours, capsys):
    words = ("eval", str(ours), "--tasks", "arithmetic", "--n", "2", "--max-tokens", "12")
    assert call(*words, "--thinking-budget", "0,5", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert list(made["by_thinking_budget"]["arithmetic"]) == ["0", "5"] and made["results"] == {}
    assert call(*words, "--thinking-budget", "5", "--json") == 0
    found = json.loads(capsys.readouterr().out)["results"]["arithmetic"]
    assert found["sampling"]["thinking_budget"] == 5
    assert call(*words, "--thinking-budget", "much") == 2
    assert "16,32,64" in capsys.readouterr().err
