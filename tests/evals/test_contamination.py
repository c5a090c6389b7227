"""The guard finds a test problem in practice, also with other numbers, and names it; what is clean passes."""

import json

import pytest

from ayllu.errors import BadFileError, ContaminationError, InputNotFoundError
from ayllu.evals.contamination import practised_texts, refuse_overlap, skeleton

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


def test_skeletons_forget_numbers_only():
    assert skeleton("a b c d e f 12 g") == skeleton("A, b c d e f: 1,300.5 g.") != ""
    assert skeleton("a b c d e f 12 g") != skeleton("a b c d e f 12 h")
    assert skeleton("What is 3 + 4?") == ""
