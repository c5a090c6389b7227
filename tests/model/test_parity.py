"""Our own shape against transformers' Qwen3ForCausalLM, folders both ways; the families: tests/parity."""

import json

import pytest
import torch
import torch.nn.functional as F
from shapes import CONFIGS, random_decoder, random_tokens

from ayllu.model import counts
from ayllu.model.families import qwen3
from ayllu.model.weights import load_config, load_model, save_model

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

CONTROL = {"bos": 0, "eos": 1, "pad": 12}


def judge_of(folder):
    """The folder as transformers understands it, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_logits_as_transformers(name, tmp_path):
    config = CONFIGS[name]
    model = random_decoder(config)
    save_model(model, tmp_path, **CONTROL)
    judge = judge_of(tmp_path)
    assert type(judge).__name__ == qwen3.ARCHITECTURES[0]
    shapes = {piece.name: piece.shape for entry in qwen3.entries(config) for piece in entry.pieces}
    assert {n: tuple(t.shape) for n, t in judge.named_parameters()} == shapes
    tokens_BT = random_tokens(config, 3, config.context)
    with torch.no_grad():
        ours_BTV, theirs_BTV = model(tokens_BT), judge(tokens_BT).logits
    assert theirs_BTV.std() > 0.3, "flat logits would compare equal whatever the decoder does"
    assert (ours_BTV - theirs_BTV).abs().max() < 1e-4
    assert sum(p.numel() for p in judge.parameters()) == counts.parameters(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_that_transformers_wrote(name, tmp_path):
    config = CONFIGS[name]
    values = qwen3.config_to_hf(config)
    torch.manual_seed(3)
    judge = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values)).eval()
    judge.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (
        "rope_theta" not in written
        and written["rope_parameters"]["rope_theta"] == config.attentions[0].rope.theta
    )
    assert load_config(tmp_path) == config
    tokens_BT = random_tokens(config, 2, 30)
    with torch.no_grad():
        assert (load_model(tmp_path)(tokens_BT) - judge(tokens_BT).logits).abs().max() < 1e-4


def test_readers_of_either_generation_find_the_rotary_base():
    config = CONFIGS["two kv heads, own head"]
    values = qwen3.config_to_hf(config)
    assert values["rope_theta"] == config.attentions[0].rope.theta  # vLLM, llama.cpp, transformers 4
    assert transformers.Qwen3Config(**values).rope_parameters["rope_theta"] == config.attentions[0].rope.theta
    assert qwen3.config_from_hf(values) == config


def test_packed_documents_are_the_same_as_alone():
    config = CONFIGS["as many kv heads, wide"]
    model = random_decoder(config)
    parts = [random_tokens(config, 1, n, seed=n) for n in (7, 1, 12)]
    row_BT = torch.cat(parts, 1)
    document_BT = torch.tensor([[i for i, part in enumerate(parts) for _ in range(part.shape[1])]])
    with torch.no_grad():
        packed_TV = model(row_BT, document_BT=document_BT)[0]
        # Rotary positions count only as differences, so that where a document begins doesn't matter.
        alone_TV = torch.cat([model(part)[0] for part in parts])
    assert (packed_TV - alone_TV).abs().max() < 1e-4


def test_the_future_is_not_seen():
    config = CONFIGS["one kv head, tied"]
    model = random_decoder(config)
    tokens_BT = random_tokens(config, 1, 30)
    other_BT = tokens_BT.clone()
    other_BT[0, 20:] = (other_BT[0, 20:] + 1) % config.vocab_size
    with torch.no_grad():
        one, two = model(tokens_BT)[0], model(other_BT)[0]
    assert (one[:20] - two[:20]).abs().max() < 1e-5 and (one[20:] - two[20:]).abs().max() > 0.1


def test_the_first_decoder_is_the_identity_of_its_seed():
    config = CONFIGS["one kv head, tied"]
    from ayllu.model.decoder import Decoder

    one, same, other = (Decoder(config).initialise(seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embedding.weight, other.embedding.weight)
    tokens_BT = random_tokens(config, 1, 9)
    with torch.no_grad():
        plain_BTV = F.linear(one.norm(one.embedding(tokens_BT)), one.head_weight)
        assert torch.allclose(one(tokens_BT), plain_BTV, atol=1e-6), "blocks begin as the identity"


def test_the_count_of_operations_follows_the_matrices():
    config = CONFIGS["two kv heads, own head"]
    model = random_decoder(config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and n != "embedding.weight")
    assert counts.train_flops_per_token(config, 0) == 6 * matrices
    spec = config.attentions[0]
    scores = counts.train_flops_per_token(config, 100) - counts.train_flops_per_token(config, 0)
    # Scores and values: 2 products of 2 operations, forward once and backward twice, half masked.
    assert scores == len(config.layers) * 3 * 2 * 2 * (100 / 2) * spec.heads * spec.head_dim
