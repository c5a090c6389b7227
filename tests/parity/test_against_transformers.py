"""Every family against transformers, from the table: logits, decoding, batches, gradients, files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from case import Case
from paged import Paged
from table import TABLE

pytest.importorskip("transformers")

import judge as transformers_judge

from ayllu.engine.executors.torch import TorchExecutor
from ayllu.model.decoder import Decoder
from ayllu.model.families import FAMILIES, family
from ayllu.model.weights import load_model, save_model

ABSOLUTE, RELATIVE = 1e-4, 1e-5
ROWS = [(name, row) for name, rows in TABLE.items() for row in rows]
SWITCHED = [(name, row) for name, row in ROWS if TABLE[name][row].without]
NOT_IN_TRANSFORMERS = {"palm"}  # has its own test against its definition


@dataclass
class Pair:
    """A model as transformers wrote it, and the same folder loaded by us."""

    family: str
    case: Case
    folder: Path
    judge: Any
    ours: Decoder


def make_pair(name: str, row: str, folder: Path) -> Pair:
    case = TABLE[name][row]
    judge = transformers_judge.build(name, case)
    judge.save_pretrained(folder)
    return Pair(name, case, folder, judge, load_model(folder))


def name_of(row: tuple[str, str]) -> str:
    return ": ".join(row)


@pytest.fixture(scope="module", params=ROWS, ids=name_of)
def pair(request, tmp_path_factory):
    return make_pair(*request.param, tmp_path_factory.mktemp("judge"))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    difference, largest = (ours - theirs).abs().max(), theirs.abs().max()
    assert difference <= ABSOLUTE and difference <= RELATIVE * largest, f"{difference:.2e} of {largest:.1f}"


def test_the_table_covers_every_family():
    assert set(TABLE) == set(FAMILIES) - NOT_IN_TRANSFORMERS
    assert all(len(rows) >= 4 for rows in TABLE.values())


def test_the_same_logits(pair):
    tokens_BT = transformers_judge.text(pair.case, rows=2)
    theirs_BTV = transformers_judge.logits(pair.judge, tokens_BT)
    assert theirs_BTV.std() > 0.3, "flat logits would compare equal whatever the decoder does"
    with torch.no_grad():
        assert_close(pair.ours(tokens_BT), theirs_BTV)


@pytest.mark.parametrize("pair", SWITCHED, indirect=True, ids=name_of)
def test_the_row_is_about_something(pair):
    tokens_BT = transformers_judge.text(pair.case)
    other = transformers_judge.switched_off(pair.family, pair.case, pair.judge)
    with_BTV, without_BTV = (transformers_judge.logits(model, tokens_BT) for model in (pair.judge, other))
    assert (with_BTV - without_BTV).abs().max() > 100 * ABSOLUTE


def test_decoding_step_by_step_is_the_full_forward(pair):
    case = pair.case
    tokens = transformers_judge.text(case)[0, : case.longest].tolist()
    start = max(case.shortest, len(tokens) // 3)
    paged = Paged(TorchExecutor(pair.ours, torch.float32), 1, len(tokens))
    stepped_TV = paged.read(0, tokens, [start, 1])
    theirs_TV = transformers_judge.logits(pair.judge, torch.tensor([tokens]))[0]
    assert_close(stepped_TV[start - 1 :], theirs_TV[start - 1 :])


def test_a_batch_of_different_lengths_is_its_rows_alone(pair):
    case = pair.case
    tokens_BT = transformers_judge.text(case, rows=3, seed=2)[:, : case.longest]
    longest = tokens_BT.shape[1] - 1
    lengths = (longest, case.shortest, (case.shortest + longest) // 2)
    prompts = [row[:n].tolist() for row, n in zip(tokens_BT, lengths, strict=True)]
    paged = Paged(TorchExecutor(pair.ours, torch.float32), 3, longest + 1)
    first = paged.step(dict(enumerate(prompts)))
    then = paged.step({i: [int(row[n])] for i, (row, n) in enumerate(zip(tokens_BT, lengths, strict=True))})
    for index, length in enumerate(lengths):
        alone_TV = transformers_judge.logits(pair.judge, tokens_BT[index : index + 1, : length + 1])[0]
        assert_close(first[index][-1], alone_TV[-2])
        assert_close(then[index][-1], alone_TV[-1])


def test_the_same_files_come_back(pair, tmp_path):
    save_model(pair.ours, tmp_path, bos=0, eos=1, pad=1)
    theirs, back = (transformers_judge.tensors(folder) for folder in (pair.folder, tmp_path))
    assert theirs.keys() == back.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == back[name].dtype and torch.equal(tensor, back[name]), name
    tokens_BT = transformers_judge.text(pair.case)
    again_BTV = transformers_judge.logits(transformers_judge.load(tmp_path), tokens_BT)
    # Not to the bit: a scaling may be read back with the same number computed another way.
    assert_close(again_BTV, transformers_judge.logits(pair.judge, tokens_BT))


@pytest.mark.parametrize("name", TABLE)
def test_the_same_gradients(name, tmp_path):
    pair = make_pair(name, next(iter(TABLE[name])), tmp_path / "model")
    tokens_BT = transformers_judge.text(pair.case, rows=2)
    ours = pair.ours.requires_grad_(True)
    logits_BTV = ours(tokens_BT)
    F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    theirs = transformers_judge.gradients(pair.judge, tokens_BT, tmp_path / "gradients")
    weights = dict(ours.named_parameters())
    compared = 0
    for entry in family(name).entries(ours.config):
        if entry.ours not in weights:
            continue  # a buffer has no gradient
        pieces = [theirs[piece.name].mT if piece.transposed else theirs[piece.name] for piece in entry.pieces]
        wanted, got = torch.cat(pieces), weights[entry.ours].grad
        difference = (got.reshape(wanted.shape) - wanted).abs().max()
        # A mean over tokens makes small gradients: their own size is the measure, too.
        assert difference <= 1e-4 and difference <= 1e-4 * wanted.abs().max() + 1e-9, entry.ours
        assert wanted.abs().max() > 0, entry.ours
        compared += 1
    assert compared == len(weights)
