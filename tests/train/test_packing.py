"""Conversations into rows: nothing twice, nothing lost that fits, nobody sees a neighbour."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.errors import RecipeValueError
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.reason.practice import practice_texts
from ayllu.reason.transcript import Chat, Kind, Span, Transcript
from ayllu.text.tokenizer import train_tokenizer
from ayllu.train.packing import Packer, Practice, pack_rows, pack_whole
from ayllu.train.sft import SftSettings

CHAT = Chat(train_tokenizer(practice_texts(0), 400))
LENGTH = 48


def conversation(number: int, asked: int, answered: int) -> Transcript:
    """`asked` ids that were given and `answered` that the model wrote; all ids carry the number."""
    given_ids = (0, *[100 + number] * asked)
    return Transcript((Span(Kind.USER, given_ids), Span(Kind.SAY, (100 + number,) * answered, True)))


sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, open_rows=st.integers(1, 8))
def test_whatever_fits_is_in_exactly_one_row(sizes: list[tuple[int, int]], open_rows: int) -> None:
    packer = Packer(LENGTH, open_rows)
    everyone = [conversation(n, *size) for n, size in enumerate(sizes)]
    for transcript in everyone:
        packer.add(transcript)
    rows = packer.finish()
    packed = sorted(id(t) for row in rows for t in row)
    assert packed == sorted(id(t) for t in everyone if len(t.ids()) - 1 <= LENGTH)
    assert all(sum(len(t.ids()) - 1 for t in row) <= LENGTH for row in rows) and all(rows)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes)
def test_every_sampled_token_counts_once_and_nothing_else_does(sizes: list[tuple[int, int]]) -> None:
    packer = Packer(LENGTH)
    for n, size in enumerate(sizes):
        packer.add(conversation(n, *size))
    rows = packer.finish()
    if not rows:
        return
    batch = pack_rows(rows, LENGTH, "cpu")
    sampled = sum(sum(t.sampled()) for row in rows for t in row)
    weighted = batch.weights_BT > 0
    assert int(weighted.sum()) == sampled and float(batch.weights_BT.sum()) == pytest.approx(1.0, abs=1e-5)
    values = batch.weights_BT[weighted]
    assert torch.equal(values, values[:1].expand_as(values))  # all alike
    for row, content in enumerate(rows):
        at = 0
        for number, transcript in enumerate(content):
            ids, mask = transcript.ids(), transcript.sampled()
            here = slice(at, at := at + len(ids) - 1)
            assert batch.tokens_BT[row, here].tolist() == ids[:-1]
            assert batch.targets_BT[row, here].tolist() == ids[1:]
            assert weighted[row, here].tolist() == mask[1:]
            assert set(batch.document_BT[row, here].tolist()) == {number + 1}  # type: ignore[index]
        assert not weighted[row, at:].any() and not batch.document_BT[row, at:].any()  # type: ignore[index]


def test_rows_are_filled_well() -> None:
    rng, packer = np.random.default_rng(0), Packer(256)
    for n in range(2000):
        packer.add(conversation(n % 50, int(rng.integers(5, 60)), int(rng.integers(5, 60))))
    filled = [sum(len(t.ids()) - 1 for t in row) / 256 for row in packer.full]
    assert sum(filled) / len(filled) > 0.95


def test_advantages_are_each_conversations_own() -> None:
    first, second = conversation(1, 3, 4), conversation(2, 5, 6)
    batch = pack_rows([[first, second]], LENGTH, "cpu", {id(first): 0.5, id(second): -0.25})
    assert sorted(batch.weights_BT[batch.weights_BT != 0].tolist()) == [-0.25] * 6 + [0.5] * 4
    assert batch.weights_BT[0, :7].tolist() == [0, 0, 0, 0.5, 0.5, 0.5, 0.5]


def test_a_row_gives_the_losses_that_its_conversations_give_alone() -> None:
    """Attention and the loss stay inside a conversation, on the torch path and (below) the native one."""
    model = Decoder(ModelSettings(width=32, layers=2, head_dim=16, context=LENGTH).config(200)).initialise(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    rows = [[conversation(3, 6, 4), conversation(4, 2, 9), conversation(5, 10, 3)]]
    batch = pack_rows(rows, LENGTH, "cpu")
    for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.15)):
        with torch.no_grad():
            together = model.states(batch.tokens_BT, document_BT=batch.document_BT, dtype=kind)[0].float()
            at = 0
            for transcript in rows[0]:
                ids = transcript.ids()
                alone = model.states(torch.tensor([ids[:-1]]), dtype=torch.float32)[0]
                # Rotary positions count on in a row; only their differences matter.
                torch.testing.assert_close(
                    together[at : at + len(ids) - 1], alone, atol=tolerance, rtol=tolerance
                )
                at += len(ids) - 1


def test_practice_is_a_function_of_the_seed_and_the_step() -> None:
    def source(seed: int) -> Practice:
        return Practice(CHAT, SftSettings().shares(), 2, 256, seed)

    one, two = source(3), source(3)
    forward = [one.batch(n, "cpu") for n in (0, 1, 15, 16, 33)]
    backward = [two.batch(n, "cpu") for n in (33, 16, 15, 1, 0)][::-1]
    assert all(torch.equal(a.tokens_BT, b.tokens_BT) for a, b in zip(forward, backward, strict=True))
    assert not torch.equal(forward[0].tokens_BT, forward[1].tokens_BT)
    assert not torch.equal(forward[0].tokens_BT, source(4).batch(0, "cpu").tokens_BT)


def test_without_any_share_there_is_nothing_to_practise() -> None:
    with pytest.raises(RecipeValueError, match="every share is 0"):
        SftSettings(arithmetic=0, calculator=0, countdown3=0, dialogue=0).shares()


class Lines:
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said = list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)


def test_conversations_that_are_left_out_are_counted_beforehand() -> None:
    def look(length: int) -> list[str]:
        lines: Any = Lines()
        Practice(CHAT, {"arithmetic": 0.5, "countdown3": 0.5}, 2, length, 0).look(lines, "sft")
        return list(lines.said)

    assert look(4000) == []
    (line,) = look(200)
    assert " of 400 conversations don't fit a row of 200 tokens" in line
    with pytest.raises(RecipeValueError, match=r"sft\.length: \d+ of 400"):
        look(20)


@given(sizes=sizes)
def test_sampled_answers_are_all_packed(sizes: list[tuple[int, int]]) -> None:
    everyone = [conversation(n, *size) for n, size in enumerate(sizes)]
    rows, length = pack_whole(everyone, LENGTH)
    assert sorted(id(t) for row in rows for t in row) == sorted(map(id, everyone))
    assert length == max(LENGTH, *(len(t.ids()) - 1 for t in everyone))
    assert pack_rows(rows, length, "cpu").tokens_BT.shape[1] == length
