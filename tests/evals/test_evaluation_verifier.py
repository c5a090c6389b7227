"""`ayllu eval` with a verifier: what it chooses among several samples, and when it is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from ayllu.errors import InputNotFoundError, ModelFileMissingError, UsageError
from ayllu.evals.answers import NOTHING, Judged
from ayllu.evals.evaluation import evaluate_model
from ayllu.evals.examine import ExamSettings, choices_by_score
from ayllu.evals.page import page
from ayllu.evals.subject import Said
from ayllu.model.weights import load_model
from ayllu.reason.verify import Verifier, save_head

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"
FEW = ExamSettings(n=2, max_tokens=6, shots=0)


@pytest.fixture(scope="module")
def judge(ours, tmp_path_factory):
    """A verifier of the model's vocabulary that has learnt nothing."""
    folder = tmp_path_factory.mktemp("judge")
    shutil.copytree(ours, folder / "verifier")
    torch.manual_seed(1)
    made = Verifier(load_model(ours))
    torch.nn.init.normal_(made.head.weight)
    save_head(made, folder / "verifier")
    return folder


def test_a_verifier_chooses_among_the_samples(ours, judge, tmp_path):
    settings, out = ExamSettings(n=4, samples=4, max_tokens=4), tmp_path / "results.json"

    def run(verifier):
        return evaluate_model(ours, ["arithmetic"], settings=settings, verifier=verifier, out=out, quiet=True)

    plain = run(None)["results"]["arithmetic"]
    assert "best_of" not in plain and "verifier" not in page(run(None))
    made = run(judge)
    found = made["results"]["arithmetic"]
    assert found["best_of"]["k"] == 4 and found["best_of"]["n"] == 4
    assert found["score"] == plain["score"] and len(found["verifier_sha256"]) == 64
    assert "by the verifier: best of 4 " in page(made)
    assert run(judge)["results"]["arithmetic"] == found  # kept, not made again


def test_verifiers_that_cannot_choose_are_refused(ours, judge, tmp_path):
    four = ExamSettings(n=1, samples=4, max_tokens=4)
    with pytest.raises(UsageError, match="each question gets one"):
        evaluate_model(ours, ["arithmetic"], settings=FEW, verifier=judge, quiet=True)
    with pytest.raises(InputNotFoundError, match="no folder"):
        evaluate_model(ours, ["arithmetic"], settings=four, verifier=tmp_path / "none", quiet=True)
    with pytest.raises(ModelFileMissingError, match="holds no verifier"):
        evaluate_model(ours, ["arithmetic"], settings=four, verifier=ours, quiet=True)
    with pytest.raises(UsageError, match="no chat format"):
        evaluate_model(STORIES, ["arithmetic"], settings=four, verifier=judge, quiet=True)


def test_the_choice_by_score():
    def row(*scores, cut=()):
        return [Said("x", "length" if n in cut else "stop", score=s) for n, s in enumerate(scores)]

    right, wrong = Judged(True, True, "7"), Judged(False, False, "8")
    said = [row(0.3, 0.4, 0.5), row(0.9, 0.2, 0.2, cut=(0,))]
    judged = [[right, right, wrong], [wrong, NOTHING, right]]
    found = choices_by_score(said, judged)
    assert found["best_of"]["correct"] == 0  # 0.5 is wrong; 0.9 was cut off, and of 0.2 and 0.2 the first
    assert found["weighted"]["correct"] == 1  # 0.3 + 0.4 beat 0.5
    assert choices_by_score([row(0.1)], [[right]]) == {}
    assert choices_by_score([row(None, None)], [[right, wrong]]) == {}
    assert "weighted" not in choices_by_score([row(0.1, 0.2)], [[NOTHING, NOTHING]])
