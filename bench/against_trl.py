"""Rollouts beside trl: tokens a second of train/rl.py and of trl's GRPOTrainer, same model, same problems.

    python bench/against_trl.py --trl FOLDER         # FOLDER: where `pip install --target FOLDER` put trl
    python bench/against_trl.py --trl FOLDER --model MODEL     # with a model that Ayllu trained

Both sides load one small Llama, answer the same Countdown problems in groups of eight at temperature 1 with
the same limit, earn the same reward, and make one update from it. Sides take turns, each in a process of
its own with the same number of threads; medians are compared. Without --model the weights are random and
hardly ever end an answer, so that all are equally long; those of a trained model end where they end, as in
real training. Tokens are counted, not assumed. Two rates: of sampling alone, and of a whole step with its
update. trl computes in bfloat16 only where the machine has such products (its default would take them
everywhere), and keeps activations instead of computing them twice, as we do: what is faster for it here.

trl generates with transformers (its way on a machine without vLLM). It isn't among our dependencies, and
needs no other torch: install it with --no-deps beside what it lacks (accelerate, datasets and theirs).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

GROUP = 8


def problems(count: int) -> list[Any]:
    """The same Countdown problems for both."""
    import numpy as np

    from ayllu.reason.practice import TASKS

    rng = np.random.default_rng(0)
    drawn = (TASKS["countdown3"].problem(rng, 1 + n % 3, "train") for n in range(count))
    return [replace(problem, tools=()) for problem in drawn]  # trl's side has no calculator


def write_model(folder: Path, width: int, layers: int) -> None:
    """A random model of the demo's kind with a tokenizer, as a Hugging Face folder."""
    from ayllu.model.config import ModelSettings
    from ayllu.model.decoder import Decoder
    from ayllu.progress import Progress
    from ayllu.reason.practice import practice_texts
    from ayllu.release import CHAT_TEMPLATE
    from ayllu.stage import StageContext
    from ayllu.text.tokenizer import train_tokenizer
    from ayllu.train.sft import save_into

    tokenizer = train_tokenizer(practice_texts(0), 2000)
    shape = ModelSettings(width=width, layers=layers, context=512)
    progress = Progress("model", quiet=True)
    context = StageContext(folder, {}, 0, 1, "cpu", progress, folder / "m.jsonl", folder)
    save_into(context, Decoder(shape.config(tokenizer.vocab_size)).initialise(0), tokenizer)
    shutil.copy(CHAT_TEMPLATE, folder / "model")


def ours(folder: Path, prompts: int, max_tokens: int, steps: int) -> list[dict[str, float]]:
    """Rollouts and updates of train/rl.py."""
    from ayllu.engine.engine import Engine
    from ayllu.model.weights import load_model
    from ayllu.reason.transcript import Chat
    from ayllu.text.tokenizer import Tokenizer
    from ayllu.tools.calculator import CALCULATOR
    from ayllu.tools.tool import Toolbox
    from ayllu.train.optim import Optimizer
    from ayllu.train.precision import compute_type
    from ayllu.train.rl import RlSettings, Rollouts
    from ayllu.train.sft import trainable
    from ayllu.train.step import train_step
    from ayllu.train.updates import policy_batches

    tokenizer = Tokenizer.load(folder / "model")
    model = trainable(load_model(folder / "model"))
    engine = Engine(model, weights="bfloat16", max_sequences=512, tokenizer=tokenizer)
    settings = RlSettings(groups=prompts, size=GROUP, max_tokens=max_tokens, anchor=0.0)
    rollouts = Rollouts(engine, Chat(tokenizer), settings, 0, Toolbox([CALCULATOR]))
    optimizer = Optimizer(model, muon_lr=0.0, adam_lr=1e-6)
    found = []
    for step in range(steps + 1):
        began = time.perf_counter()
        engine.refresh()
        groups = rollouts.answer(problems(prompts), GROUP, seed=step)
        sampled = time.perf_counter()
        for group in groups:
            group.rewards[:] = [float(n % 2) for n in range(GROUP)]  # a spread, so that there is an update
        batches = policy_batches(groups, settings, "cpu")
        train_step(model, optimizer, batches, 1.0, compute_type("cpu"), exact_logits=True)
        tokens = sum(answer.tokens for group in groups for answer in group.answers)
        found.append({"tokens": tokens, "sampling": sampled - began, "step": time.perf_counter() - began})
    return found[1:]  # the first warms up


def theirs(folder: Path, prompts: int, max_tokens: int, steps: int) -> list[dict[str, float]]:
    """Rollouts and updates of trl's GRPOTrainer, with its own defaults where the problem doesn't say."""
    import pyarrow
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from ayllu import machine

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    generate, found = model.generate, list[dict[str, float]]()
    clock = {"begun": time.perf_counter(), "sampling": 0.0, "tokens": 0.0}

    def timed(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        made = generate(*args, **options)
        clock["sampling"] += time.perf_counter() - began
        return made

    def reward(completions: list[Any], completion_ids: list[list[int]], **rest: Any) -> list[float]:
        clock["tokens"] += sum(len(ids) for ids in completion_ids)
        return [float(n % 2) for n in range(len(completions))]

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.update(begun=time.perf_counter(), sampling=0.0, tokens=0.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            whole = time.perf_counter() - clock["begun"]
            found.append({"tokens": clock["tokens"], "sampling": clock["sampling"], "step": whole})

    model.generate = timed
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        per_device_train_batch_size=prompts * GROUP,
        num_generations=GROUP,
        max_completion_length=max_tokens,
        max_steps=steps + 1,
        learning_rate=1e-6,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        bf16=machine.product_type() == "bfloat16",
        gradient_checkpointing=False,
        shuffle_dataset=False,  # each step has these very problems, each once
    )
    texts = [[{"role": "user", "content": p.prompt}] for p in problems(prompts)] * (steps + 1)
    rows = Dataset(pyarrow.table({"prompt": texts}), fingerprint="countdown")  # not hashed by pickling it
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Steps()],
    )
    trainer.train()
    return found[1:]


def rates(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median tokens a second of sampling and of whole steps, and the median number of tokens."""
    return {
        "sampling": statistics.median(row["tokens"] / row["sampling"] for row in rows),
        "step": statistics.median(row["tokens"] / row["step"] for row in rows),
        "tokens": statistics.median(row["tokens"] for row in rows),
    }


def versions() -> dict[str, str]:
    """Of what a side runs on."""
    found = {}
    for name in ("torch", "transformers", "trl", "accelerate"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _named(made_by: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in made_by.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trl", type=Path, help="folder with trl and what it lacks here")
    parser.add_argument("--model", type=Path, help="a released model's folder, instead of random weights")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8, help="groups of a step (default 8)")
    parser.add_argument("--max-tokens", type=int, default=400, help="default 400, as the recipe")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a turn (default 2)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--side", choices=("ours", "trl"), help="one side in this process (used inside)")
    parser.add_argument("--folder", type=Path, help="the model's folder (used inside)")
    wish = parser.parse_args()
    from ayllu import machine

    if wish.side:
        import torch

        torch.set_num_threads(wish.threads)
        side = ours if wish.side == "ours" else theirs
        found = side(wish.folder, wish.prompts, wish.max_tokens, wish.steps)
        print(json.dumps({"rows": found, "versions": versions()}))
        return
    with tempfile.TemporaryDirectory() as home:
        if wish.model:
            shutil.copytree(wish.model, Path(home) / "model")
        else:
            write_model(Path(home), wish.width, wish.layers)
        rows: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
        made_by: dict[str, dict[str, str]] = {}
        for _ in range(wish.turns):
            for side, found in rows.items():
                paths = [str(wish.trl)] if wish.trl and side == "trl" else []
                paths += filter(None, [os.environ.get("PYTHONPATH")])
                environment = os.environ | {
                    "OMP_NUM_THREADS": str(wish.threads),
                    "PYTHONPATH": os.pathsep.join(paths),
                    "HF_HUB_OFFLINE": "1",
                }
                words = [sys.executable, __file__, "--side", side, "--folder", home]
                for name in ("prompts", "max_tokens", "steps", "threads"):
                    words += [f"--{name.replace('_', '-')}", str(getattr(wish, name))]
                done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                said = json.loads(done.stdout.splitlines()[-1])
                found += said["rows"]
                made_by[side] = said["versions"]
    result = {side: rates(found) for side, found in rows.items()}
    times = {name: result["ours"][name] / result["trl"][name] for name in ("sampling", "step")}
    if wish.json:
        about = {"machine": machine.describe(wish.threads), "versions": made_by}
        print(json.dumps({**result, "times": times, "rows": rows, **about}))
        return
    features = ", ".join(machine.cpu_features())
    print(f"{machine.chip_name()} ({features}), {wish.threads} threads; trl's side: {_named(made_by['trl'])}")
    print(f"{'':<6}{'sampled tokens/s':>18}{'of whole steps':>16}{'tokens a step':>15}")
    for side, row in result.items():
        print(f"{side:<6}{row['sampling']:>18,.0f}{row['step']:>16,.0f}{row['tokens']:>15,.0f}")
    print(f"{'times':<6}{times['sampling']:>18.1f}{times['step']:>16.1f}")


if __name__ == "__main__":
    main()
