"""PaLM, which transformers lacks, against the paper as palm_reference.py reads it."""

import pytest
import torch
import torch.nn.functional as F
from case import Case

pytest.importorskip("transformers")

import judge
import palm_reference
from test_against_transformers import (  # noqa: F401  (collected here for the fixture below)
    Pair,
    test_a_batch_of_different_lengths_is_its_rows_alone,
    test_decoding_step_by_step_is_the_full_forward,
    test_the_same_files_come_back,
    test_the_same_logits,
)

from ayllu.errors import ModelFileDamagedError
from ayllu.model.families import palm
from ayllu.model.weights import load_model

_PALM = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "head_dim": 12,
    "max_position_embeddings": 64,
}

PALM = {
    "heads wider than the width": Case(_PALM),
    "one head, an odd width inside": Case(
        _PALM | {"num_attention_heads": 1, "intermediate_size": 51, "vocab_size": 77}
    ),
    "another rotary base": Case(_PALM | {"rope_theta": 50.0}, without={"rope_theta": 10_000.0}),
    "large epsilon, heads narrower than the width": Case(
        _PALM | {"layer_norm_epsilon": 1e-2, "head_dim": 6}, without={"layer_norm_epsilon": 1e-6}
    ),
}


@pytest.fixture(scope="module", params=PALM)
def pair(request, tmp_path_factory):
    case, folder = PALM[request.param], tmp_path_factory.mktemp("palm")
    model = judge.build("palm", case)
    model.save_pretrained(folder)
    return Pair("palm", case, folder, model, load_model(folder))


def test_the_judge_is_the_reference(pair):
    assert type(pair.judge) is palm_reference.PalmForCausalLM


def test_the_row_is_about_something(pair):
    if not pair.case.without:
        return
    tokens_BT = judge.text(pair.case)
    other = judge.switched_off("palm", pair.case, pair.judge)
    difference = (judge.logits(pair.judge, tokens_BT) - judge.logits(other, tokens_BT)).abs().max()
    assert difference > 0.01


def test_the_same_gradients(pair, tmp_path):
    tokens_BT = judge.text(pair.case, rows=2)
    ours = load_model(pair.folder).requires_grad_(True)
    F.cross_entropy(ours(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    model = judge.load(pair.folder)
    theirs = judge.gradients(model, tokens_BT, tmp_path)
    weights = dict(ours.named_parameters())
    for entry in palm.entries(ours.config):
        wanted, got = torch.cat([theirs[piece.name] for piece in entry.pieces]), weights.pop(entry.ours).grad
        assert wanted.abs().max() > 0, entry.ours
        assert (got - wanted).abs().max() <= 1e-4 * min(1.0, float(wanted.abs().max())), entry.ours
    assert not weights


@pytest.mark.parametrize(
    "changed", [{"num_key_value_heads": 2}, {"hidden_act": "gelu"}, {"tie_word_embeddings": False}]
)
def test_what_the_paper_does_not_say_is_refused(changed):
    assert palm.config_from_hf(_PALM).layers[0].parallel
    with pytest.raises(ModelFileDamagedError):
        palm.config_from_hf(_PALM | changed)
