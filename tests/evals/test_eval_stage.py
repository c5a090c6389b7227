"""The eval stage: both models on the same problems, kept as it goes, gone on with after a kill."""

import contextlib
import json

import pytest
from oracle import ignorant, oracle
from scripted_engine import ScriptedEngine

from ayllu.errors import ModelFileMissingError, RecipeValueError
from ayllu.evals import stage
from ayllu.evals.metrics import mcnemar
from ayllu.evals.stage import EvalSettings, evaluate
from ayllu.progress import Progress
from ayllu.reason.task import distinct_problems
from ayllu.reason.tasks.arithmetic import Arithmetic
from ayllu.reason.tasks.calculator import Calculator
from ayllu.reason.transcript import Chat
from ayllu.stage import StageContext
from ayllu.text.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(iter(['What is 12 + 3? calculator {"expression":"12+3"}']), 300)
CHAT = Chat(TOKENIZER)
N, SEED = 30, 11
SETTINGS = EvalSettings(n=N, families=("arithmetic", "calculator"), max_tokens=1000)
TASKS = {task.family: task for task in (Arithmetic(), Calculator())}


@pytest.fixture
def context(tmp_path):
    for name in ("eval", "sft/model", "rl/model"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("sft", "rl"):
        (tmp_path / name / "model" / "model.safetensors").write_bytes(name.encode())
        TOKENIZER.save(tmp_path / name / "model")
    return StageContext(
        folder=tmp_path / "eval",
        inputs={"sft": tmp_path / "sft", "rl": tmp_path / "rl"},
        seed=SEED,
        threads=1,
        device="cpu",
        progress=Progress("eval", quiet=True),
        metrics=tmp_path / "metrics.jsonl",
        root=tmp_path,
    )


@pytest.fixture
def engines(monkeypatch):
    """The sft model knows half of the problems, the rl model all; `opened` and `asked` record the work."""
    record = {"opened": [], "fail_at": None}

    def knowing(share):
        replies = []
        for task in TASKS.values():
            problems = distinct_problems(task, N, (task.levels,), "test", SEED)
            replies.append(oracle(CHAT, task, problems[: int(share * N)]))
        return lambda prompt: next((r for reply in replies if (r := reply(prompt)) != [CHAT.end]), [CHAT.end])

    class Counting(ScriptedEngine):
        def submit(self, prompt_ids, params):
            if record["fail_at"] is not None:
                record["fail_at"] -= 1
                if record["fail_at"] < 0:
                    raise KeyboardInterrupt
            return super().submit(prompt_ids, params)

    @contextlib.contextmanager
    def open_engine(folder, _context, _settings):
        name = folder.parent.name
        record["opened"].append(name)
        yield Counting(knowing(0.5 if name == "sft" else 1.0), context_length=2048)

    monkeypatch.setattr(stage, "open_engine", open_engine)
    return record


def test_both_models_with_intervals_and_paired_gain(context, engines):
    results = evaluate(context, SETTINGS)
    samples = results.pop("samples")
    assert set(results) == {"arithmetic", "calculator"}
    assert {(sample["family"], sample["when"]) for sample in samples} == {
        (family, when) for family in results for when in ("after SFT", "after RL")
    }
    assert all(sample["correct"] for sample in samples if sample["when"] == "after RL")
    for family in results.values():
        assert family["sft"]["n"] == family["rl"]["n"] == N
        assert (family["sft"]["correct"], family["rl"]["correct"]) == (N // 2, N)
        assert family["sft"]["high"] < family["rl"]["low"] < 1.0 == family["rl"]["high"]
        assert family["gain"] == {"gained": N // 2, "lost": 0, "p": mcnemar(N // 2, 0)}
    assert results["calculator"]["rl"]["valid_calls"] == results["calculator"]["rl"]["calls"] == N
    json.dumps(results)  # goes into report.json
    rows = [json.loads(line) for line in context.metrics.read_text().splitlines()]
    assert [(row["model"], row["family"], row["correct"]) for row in rows] == [
        ("sft", "arithmetic", N // 2),
        ("sft", "calculator", N // 2),
        ("rl", "arithmetic", N),
        ("rl", "calculator", N),
    ]


def test_done_work_is_not_done_again(context, engines):
    first = evaluate(context, SETTINGS)
    engines["opened"].clear()
    assert evaluate(context, SETTINGS) == first
    assert engines["opened"] == []


@pytest.mark.parametrize("fail_at", [0, 10, N + 5, 2 * N + 20, 4 * N])
def test_a_killed_stage_goes_on_to_the_same_result(context, engines, fail_at):
    engines["fail_at"] = fail_at
    with pytest.raises(KeyboardInterrupt):
        evaluate(context, SETTINGS)
    done = {path.name for path in (context.folder / "evaluations").glob("*.json")}
    engines["fail_at"] = None
    result = evaluate(context, SETTINGS)
    assert len(done) < 4 and len(list((context.folder / "evaluations").glob("*.json"))) == 4
    assert [result[f][m]["correct"] for f in TASKS for m in ("sft", "rl")] == [N // 2, N] * 2
    assert len(context.metrics.read_text().splitlines()) == 4, "each evaluation is logged once"


@pytest.mark.parametrize("change", ["weights", "seed", "settings", "damage"])
def test_what_no_longer_fits_is_made_again(context, engines, change):
    import dataclasses

    evaluate(context, SETTINGS)
    engines["opened"].clear()
    settings, opened = SETTINGS, ["sft", "rl"]
    if change == "weights":
        (context.inputs["rl"] / "model" / "model.safetensors").write_bytes(b"other")
        opened = ["rl"]
    elif change == "seed":
        context = dataclasses.replace(context, seed=SEED + 1)
    elif change == "settings":
        settings = dataclasses.replace(SETTINGS, max_tokens=900)
    else:
        (context.folder / "evaluations" / "sft-calculator.json").write_text('{"fingerprint": ')
        opened = ["sft"]
    evaluate(context, settings)
    assert engines["opened"] == opened


def test_a_run_without_rl_has_no_gain(context, engines):
    del context.inputs["rl"]
    results = evaluate(context, SETTINGS)
    assert set(results["arithmetic"]) == {"sft"} and engines["opened"] == ["sft"]


def test_clear_errors(context, engines):
    with pytest.raises(RecipeValueError, match="algebra"):
        evaluate(context, EvalSettings(families=("algebra",)))
    (context.inputs["rl"] / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelFileMissingError):
        evaluate(context, SETTINGS)


def test_an_ignorant_model_scores_nothing(context, monkeypatch):
    @contextlib.contextmanager
    def open_engine(*_):
        yield ScriptedEngine(ignorant(CHAT, 0), context_length=2048)

    monkeypatch.setattr(stage, "open_engine", open_engine)
    results = evaluate(context, SETTINGS)
    assert all(results[family][model]["correct"] <= 1 for family in TASKS for model in ("sft", "rl"))


def test_with_real_engines_and_model_folders(context):
    """Untrained models of the real kind: the whole way from folders to intervals."""
    import torch

    from ayllu.model.config import ModelSettings
    from ayllu.model.decoder import Decoder
    from ayllu.model.weights import save_model

    torch.manual_seed(0)
    for name in ("sft", "rl"):
        decoder = Decoder(ModelSettings(width=32, layers=1, head_dim=16, context=256).config(300))
        control = TOKENIZER.control
        ids = {"bos": control["<|bos|>"], "eos": control["<|end|>"], "pad": control["<|pad|>"]}
        save_model(decoder, context.inputs[name] / "model", **ids)
    results = evaluate(context, EvalSettings(n=10, max_tokens=24, batch=8))
    for family in ("arithmetic", "calculator", "countdown3", "dialogue"):
        for model in ("sft", "rl"):
            row = results[family][model]
            assert (row["n"], row["correct"]) == (10, 0) and row["low"] == 0.0 and 0 < row["high"] < 0.3
            assert 1 <= row["mean_tokens"] <= 24
        assert results[family]["gain"]["p"] == 1.0
