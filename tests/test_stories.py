"""A real model that others trained: stories260K (260,032 parameters, TinyStories) tells a story here.

The judge is transformers on the same folder, and sentencepiece for the tokens.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch

import ayllu
from ayllu.errors import RequestError
from ayllu.reason.foreign import Continuation, chat_of
from ayllu.talk import load_talk
from ayllu.terminal import one_answer

STORIES = Path(__file__).parent / "fixtures" / "stories260K"
BEGINNING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."

# Written for this test in the manner of what the model was trained on.
STORY = """\
Once upon a time, there was a little boy named Tim. Tim had a red ball and a small dog. One day, they went \
to the park to play. Tim threw the ball very far, and the dog ran to get it. But the dog did not come back. \
Tim was sad and looked behind the big tree. There was the dog, with the ball in its mouth. Tim was happy \
and gave the dog a big hug. They went home together and had a nice dinner."""
BITS_PER_BYTE = 0.70  # 0.6831 measured in float32; a model that knows nothing has 8


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return ayllu.load(STORIES)


def test_a_hundred_greedy_tokens_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    judge = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    with ayllu.Engine(STORIES) as engine:
        for prompt in ([1], [1, *engine.tokenizer.encode("One day, a fish")]):
            wanted = judge.generate(
                torch.tensor([prompt]), max_new_tokens=100, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0].tolist()
            (found,) = engine.generate([prompt], max_tokens=100, temperature=0)
            assert [*prompt, *found.token_ids] == wanted


def test_the_story_begins_as_it_should() -> None:
    with ayllu.Engine(STORIES) as engine:
        story = "".join(engine.stream("", max_tokens=60, temperature=0))
        assert story.startswith(BEGINNING)
        rest = "".join(engine.stream("Once upon a time, there was", max_tokens=8, temperature=0))
        assert rest.startswith(" a little girl"), "the space belongs to what is gone on with"
        ids = engine.tokenizer.encode(story)
    assert ids == sentencepiece.SentencePieceProcessor(model_file=str(STORIES / "tokenizer.model")).encode(
        story
    )


def test_bits_per_byte_on_a_story(model: torch.nn.Module) -> None:
    tokenizer = ayllu.load_tokenizer(STORIES)
    tokens_BT = torch.tensor([[*tokenizer.prefix, *tokenizer.encode(STORY)]])
    with torch.no_grad():
        logits_BTV = model(tokens_BT[:, :-1]).float()
    nats = torch.nn.functional.cross_entropy(logits_BTV[0], tokens_BT[0, 1:], reduction="sum").item()
    bits = nats / math.log(2) / len(STORY.encode())
    assert 0.6 < bits < BITS_PER_BYTE, f"{bits:.4f} bits per byte"


def test_a_seed_makes_a_story_repeatable(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for _ in range(2):
        with load_talk(STORIES, tools=True, max_tokens=40, temperature=None, seed=3) as talk:
            told.append(one_answer(talk, "")["answer"])
    assert told[0] == told[1]
    assert len(told[0]) > 60 and not told[0].startswith(" ")
    assert capsys.readouterr().out == 2 * (told[0].rstrip("\n") + "\n")


def test_the_command_line(tmp_path: Path) -> None:
    def ayllu_says(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ayllu", *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    done = ayllu_says("run", str(STORIES), "", "--temperature", "0", "--max-tokens", "60")
    assert done.returncode == 0 and done.stdout.startswith(BEGINNING)
    for verb in ("chat", "serve"):
        done = ayllu_says(verb, str(STORIES))
        assert done.returncode == 2 and "no chat format" in done.stderr and "ayllu run" in done.stderr


def test_it_has_no_second_turn() -> None:
    chat = chat_of(STORIES, ayllu.load_tokenizer(STORIES))
    assert isinstance(chat, Continuation)
    with pytest.raises(RequestError, match="no chat format"):
        chat.from_messages([{"role": "user", "content": "Hello"}])
