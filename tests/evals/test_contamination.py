"""The guard finds a test problem in practice, also with other numbers, and names it; what is clean passes."""

import contextlib
import json

import pytest

from ayllu.errors import BadFileError, ContaminationError, InputNotFoundError, RecipeValueError
from ayllu.evals.contamination import practised_texts, refuse_overlap, skeleton
from ayllu.evals.guard import guard
from ayllu.progress import Progress
from ayllu.recipe import TABLES, compose
from ayllu.run import make
from ayllu.stage import StageContext
from ayllu.stages import basis, input_files, make_plan, stages_of

TEST = "Natalia sold 48 clips to her friends in April, and then she sold half as many clips in May."


@pytest.fixture
def official(tmp_path):
    rows = [
        {"question": TEST, "answer": "#### 72"},
        {"deep": [{"text": "Another question of some length here"}]},
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"question": "Only practised: 5 cats and 7 dogs live there."})
    )
    return tmp_path


@pytest.mark.parametrize(
    "prompt",
    [
        TEST,
        TEST.upper(),
        TEST.replace("48", "1,250"),
        "Once more: " + TEST + " How many?",
        TEST.replace(" ", "  ").replace("48", "7.5"),
    ],
)
def test_overlap_is_refused_with_both_texts(official, prompt):
    with pytest.raises(ContaminationError) as error:
        refuse_overlap([("clean", "What is 3 + 4?"), ("stories", prompt)], [official])
    assert error.value.exit_code == 8 and "stories" in str(error.value) and "Natalia" in error.value.why


def test_what_is_clean_passes(official):
    clean = [
        ("arithmetic", "What is 48 + 72?"),
        ("stories", "Anna has 48 clips. Anna sells 24 clips. How many clips does Anna have now?"),
        ("gsm8k", "Only practised: 5 cats and 7 dogs live there."),
    ]
    assert refuse_overlap(clean, [official]) >= 3


def test_own_families_pass_and_are_looked_at(official):
    practised = list(practised_texts({"stories_en": 0.5, "lists": 0.5, "zebra": 0.0}, 0))
    assert {family for family, _ in practised} == {"stories_en", "lists"} and len(practised) == 600
    refuse_overlap(practised, [official])


def test_folders_without_tests_and_damaged_files_are_named(tmp_path):
    with pytest.raises(InputNotFoundError, match="no test set"):
        refuse_overlap([], [tmp_path])
    (tmp_path / "test.jsonl").write_text("{broken")
    with pytest.raises(BadFileError, match=r"test\.jsonl"):
        refuse_overlap([], [tmp_path])


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("train.jsonl", True), ("gsm8k_train.jsonl", True), ("trainset-2.jsonl", True),
        ("training.jsonl", True),
        ("restraint.jsonl", False), ("constrained_test.jsonl", False), ("trains.jsonl", False),
    ],
)  # fmt: skip
def test_only_the_word_train_leaves_a_file_out(official, name, left_out):
    (official / name).write_text(
        json.dumps({"question": "Seven brown otters swim past Lia's boat on Sunday."})
    )
    practised = [("stories", "Seven brown otters swim past Lia's boat on Sunday.")]
    with contextlib.nullcontext() if left_out else pytest.raises(ContaminationError):
        refuse_overlap(practised, [official])


@pytest.mark.parametrize("name", ["test.parquet", "test.jsonl.gz", "sets.zip", "deep/test.arrow"])
def test_data_that_is_not_read_is_not_taken_for_compared(official, name):
    (official / name).parent.mkdir(exist_ok=True)
    (official / name).write_bytes(b"\x00")
    with pytest.raises(BadFileError, match="can't be compared"):
        refuse_overlap([], [official])
    (official / name).rename(official / "train.parquet")
    assert refuse_overlap([], [official])


def test_skeletons_forget_numbers_only():
    assert skeleton("a b c d e f 12 g") == skeleton("A, b c d e f: 1,300.5 g.") != ""
    assert skeleton("a b c d e f 12 g") != skeleton("a b c d e f 12 h")
    assert skeleton("What is 3 + 4?") == ""


# ---- the stage
def judged(folder, official, **tables):
    recipe = {"guard": {"examined": [str(official)]}} | tables
    settings = compose({"name": "a"} | recipe, only(recipe)).tables
    context = StageContext(folder, {}, 3, 1, "cpu", Progress("guard", quiet=True), folder / "m.jsonl", folder)
    return guard(context, settings.pop("guard"), **{k: v for k, v in settings.items() if k != "text"})


def only(recipe):
    return {name: path for name, path in TABLES.items() if name in {"text", "sft", "rl", *recipe}}


@pytest.mark.parametrize("table", ["sft", "rl", "expert", "verifier", "distill"])
def test_whichever_stage_practises_it(tmp_path, official, table):
    assert judged(tmp_path, official, **{table: {"families": {"zebra": 0.1}}})["families"].count("zebra") == 1
    prompt = next(text for _, text in practised_texts({"zebra": 1.0}, 3))
    (official / "logic_test.jsonl").write_text(json.dumps({"q": prompt}))
    with pytest.raises(ContaminationError, match="zebra"):
        judged(tmp_path, official, **{table: {"families": {"zebra": 0.1}}})
    judged(tmp_path, official, **{table: {"families": {"zebra": 0.0, "paths": 0.1}}})


def test_the_guard_stands_before_everything_and_nothing_is_made(tmp_path, official, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (official / "test.jsonl").write_text(json.dumps({"q": next(practised_texts({"arithmetic": 1.0}, 0))[1]}))
    (tmp_path / "recipe.toml").write_text(
        'name = "a"\n[text]\ncorpus = ["none"]\nevaluation = ["test.jsonl"]\n'
        f'[guard]\nexamined = ["{official}"]\n'
    )
    with pytest.raises(ContaminationError, match="arithmetic"):
        make(tmp_path / "recipe.toml", quiet=True)
    assert not (tmp_path / "runs/a/text").exists()
    names = [stage.name for stage in stages_of({"guard": {}, "expert": {}})]
    assert names[:2] == ["guard", "text"]


def test_what_comes_from_others_needs_a_guard():
    """Refused when the recipe is read, and not when hours have gone by."""
    rows = {"name": "a", "sft": {"gsm8k": ["rows"]}}
    with pytest.raises(RecipeValueError, match=r"sft\.gsm8k.*no test set") as refused:
        compose(rows)
    with pytest.raises(RecipeValueError, match=r"sft\.gsm8k.*no test set"):
        make_plan(rows)  # as `ayllu make` reads it, without the tables of stages that it doesn't have
    assert "[guard] with examined" in str(refused.value)
    guarded = rows | {"guard": {"examined": ["tests"]}}
    compose(guarded)
    with pytest.raises(RecipeValueError, match="text of your own isn't"):
        compose(guarded | {"text": {"corpus": ["mine.jsonl"]}})
    compose(guarded | {"text": {"corpus": ["mine.jsonl"], "evaluation": ["test.jsonl"]}})
    compose({"name": "a", "text": {"corpus": ["mine.jsonl"]}})


def test_a_guard_has_something_to_look_at(tmp_path):
    with pytest.raises(RecipeValueError, match=r"guard\.examined"):
        judged(tmp_path, "", guard={})


def test_the_rows_that_practice_is_made_from_count_as_its_input(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text("{}")
    raw = {"name": "a", "sft": {"gsm8k": ["rows"]}, "guard": {"examined": ["e"]}}
    stage = stages_of(raw)[0]
    plan = make_plan(raw, stages=(stage,), tables=only(raw))
    assert input_files(stage, plan, tmp_path) == {"rows/train.jsonl": rows / "train.jsonl"}
    assert set(basis(stage, plan, {}, {})["settings"]) == {"guard", "sft", "rl"}
