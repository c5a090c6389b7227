"""`text:PATH`: bits per byte of any file, or of a folder of texts, here or below --data."""

from pathlib import Path

import pytest

from ayllu.errors import BadFileError, InputNotFoundError, NotUtf8Error
from ayllu.evals.evaluation import evaluate_model
from ayllu.evals.examine import ExamSettings
from ayllu.evals.official import files_of, load, text_task
from ayllu.evals.page import page
from ayllu.evals.tasks import find_tasks

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"


@pytest.fixture
def texts(tmp_path):
    """Two texts of one name, an empty one, and what is none."""
    folder = tmp_path / "data" / "texts"
    (folder / "german").mkdir(parents=True)
    (folder / "note.txt").write_text("One day, a fish swam in the pond.", encoding="utf-8")
    (folder / "german/note.txt").write_text("Eines Tages schwamm ein Fisch im Teich.", encoding="utf-8")
    (folder / "empty.md").write_text("")
    (folder / "README.md").write_text("Where these texts come from.")
    (folder / "picture.png").write_bytes(b"\xff\xd8")
    (folder / ".git").mkdir()
    (folder / ".git/note.txt").write_text("hidden")
    return folder


def test_a_file_of_any_kind(tmp_path):
    file = tmp_path / "a note.log"
    file.write_text("గీత and Käse\n", encoding="utf-8")
    task = text_task(str(file))
    assert load(task, tmp_path)[0].text == "గీత and Käse\n"
    assert files_of(task, tmp_path, shots=0) == [file]
    file.write_bytes(b"\xff")
    with pytest.raises(NotUtf8Error):
        load(task, tmp_path)
    file.write_bytes(b"")
    with pytest.raises(BadFileError, match="it is empty"):
        load(task, tmp_path)


def test_a_folder_of_texts(texts):
    found = load(text_task(str(texts)), Path())
    assert [row.place for row in found] == ["german/note.txt", "note.txt"]
    assert [row.text.split()[0] for row in found] == ["Eines", "One"]


def test_a_path_is_looked_for_here_and_then_in_the_data(texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = text_task("texts/note.txt")
    with pytest.raises(InputNotFoundError, match=r"no file or folder 'texts/note\.txt'") as error:
        load(task, Path())
    assert str(tmp_path) in error.value.why and "text:PATH" in error.value.fix
    assert load(task, tmp_path / "data")[0].text.startswith("One day")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/note.txt").write_text("Nearer.")
    assert load(task, tmp_path / "data")[0].text == "Nearer."
    with pytest.raises(InputNotFoundError) as error:
        load(text_task("nowhere"), tmp_path / "data")
    assert str(tmp_path / "data") in error.value.why


def test_what_is_no_text_is_said(texts):
    with pytest.raises(InputNotFoundError, match="no file or folder"):
        find_tasks(["text:"], None, ExamSettings())
    for name in ("note.txt", "empty.md", "german/note.txt"):
        (texts / name).unlink()
    with pytest.raises(InputNotFoundError, match="holds no texts") as error:
        load(text_task(str(texts)), Path())
    assert ".txt" in error.value.fix


def test_a_folder_is_one_task_with_an_interval(texts):
    made = evaluate_model(STORIES, ["text:texts"], data=texts.parent, settings=ExamSettings(), quiet=True)
    found = made["results"]["text:texts"]
    assert found["n"] == 2 and found["low"] < found["score"] < found["high"]
    assert found["bytes"] == sum((texts / name).stat().st_size for name in ("note.txt", "german/note.txt"))
    assert len(found["data"]) == 3, "each file has its hash, those of one name too"
    assert page(made).startswith("task")
