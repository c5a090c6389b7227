"""Forms of attention that no family of the parity table shows alone: soft caps, and every form with a cache.

The judge of the soft cap is transformers' Gemma 2 (its plain attention function); that of the masks is a
loop over pairs of positions; and what a cache computes must be what the whole text computes at once.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch
from paged import Paged

from ayllu.engine.executors.torch import TorchExecutor
from ayllu.model.attention import Place, attend, scaled_attention
from ayllu.model.config import (
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    MLPSpec,
    ModelConfig,
    MoESpec,
    RopeSpec,
    Temperature,
)
from ayllu.model.decoder import Decoder


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("softcap", [None, 0.5, 5.0, 50.0])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 3])
def test_soft_caps_are_those_of_gemma_2(softcap, kv_heads, window):
    gemma2 = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    q_BTHD = 2 * random(2, 9, 6, 8, seed=1)
    k_BTGD, v_BTGD = (random(2, 9, kv_heads, 8, seed=seed) for seed in (2, 3))
    spec = AttentionSpec(6, kv_heads, 8, None, scale=0.4, softcap=softcap, window=window)
    place = Place(torch.arange(9)[None], None, None)
    ours_BTHD = attend(q_BTHD, k_BTGD, v_BTGD, spec, place)

    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    if window is not None:
        seen &= ~torch.ones_like(seen).tril(-window)
    mask = torch.zeros(9, 9).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    layer = SimpleNamespace(num_key_value_groups=6 // kv_heads, training=False, head_dim=8)
    heads_first = [x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD)]
    theirs_BTHD, _ = gemma2.eager_attention_forward(layer, *heads_first, mask, scaling=0.4, softcap=softcap)
    assert (ours_BTHD - theirs_BTHD).abs().max() < 1e-6
    if softcap is not None and softcap < 1:
        plain_BTHD = scaled_attention(q_BTHD, k_BTGD, v_BTGD, place.mask(window, None), 0.4, None)
        assert (ours_BTHD - plain_BTHD).abs().max() > 0.1, "the cap does something"


@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("chunk", [None, 1, 5, 50])
@pytest.mark.parametrize("documents", [False, True])
def test_who_may_attend_to_whom(window, chunk, documents):
    lengths = [6, 1, 8] if documents else [15]
    document_BT = torch.tensor([[i for i, n in enumerate(lengths) for _ in range(n)]])
    positions_BT = torch.cat([torch.arange(n) for n in lengths])[None]
    place = Place(positions_BT, document_BT if documents else None, None)
    expected = torch.zeros(15, 15, dtype=torch.bool)
    for query, key in itertools.product(range(15), repeat=2):
        at, other = int(positions_BT[0, query]), int(positions_BT[0, key])
        expected[query, key] = (
            document_BT[0, query] == document_BT[0, key]
            and other <= at
            and (window is None or at - other < window)
            and (chunk is None or at // chunk == other // chunk)
        )
    mask_B1TT = place.mask(window, chunk)
    seen = torch.ones(15, 15, dtype=torch.bool).tril() if mask_B1TT is None else mask_B1TT[0, 0]
    assert torch.equal(seen, expected)


ROPE = RopeSpec(8, 100.0)
FORMS = {
    "soft cap": AttentionSpec(4, 2, 8, ROPE, softcap=0.3),
    "soft cap and window": AttentionSpec(4, 1, 8, ROPE, softcap=0.3, window=4),
    "window and chunk": AttentionSpec(4, 2, 8, ROPE, window=3, chunk=5),
    "chunk, no positions, growing queries": AttentionSpec(
        4, 2, 8, None, chunk=6, temperature=Temperature(3.0, 0.7)
    ),
    "norm after the rotation, neighbours": AttentionSpec(
        4, 4, 8, RopeSpec(8, 100.0, interleaved=True), qk_norm="l2", bias=True, out_bias=True
    ),
    "part of a head turned": AttentionSpec(4, 2, 12, ROPE, qk_norm="rms", scale=0.9),
    "latent": LatentSpec(3, None, 10, 6, 8, 9, ROPE),
    "latent, window": LatentSpec(3, 12, 10, 6, 8, 9, ROPE, window=4),
    "latent, chunk": LatentSpec(3, 12, 10, 6, 8, 9, ROPE, chunk=5, bias=True),
    "latent, soft cap": LatentSpec(3, None, 10, 6, 8, 9, ROPE, softcap=0.3, scale=0.8),
}
MLPS = [MLPSpec(20, "relu2", gated=False, bias=True), MoESpec(5, 2, 12, 16), MLPSpec(20, "gelu")]


def model_of(form: str) -> Decoder:
    """Three layers of the form, with three kinds of MLP and a capped head."""
    parallel = form == "soft cap"
    layers = tuple(LayerSpec(FORMS[form], mlp, parallel=parallel) for mlp in MLPS)
    config = ModelConfig(24, 61, layers, 40, norm="layer", norm_bias=True, positions=40, logit_softcap=3.0)
    model = Decoder(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            centre, spread = (1.0, 0.2) if weight.dim() == 1 else (0.0, 1.5 * weight.shape[-1] ** -0.5)
            weight.copy_(centre + spread * torch.randn(weight.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
def test_step_by_step_is_the_whole_text(form):
    model = model_of(form)
    tokens = torch.randint(0, 61, (23,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        whole_TV = model(torch.tensor([tokens]))[0]
    assert whole_TV.abs().max() < 3.0 < 10 * whole_TV.std(), "capped, and not flat"
    for sizes in ([7, 1], [1], [5, 3], [4, 9, 2], [23]):
        stepped_TV = Paged(TorchExecutor(model), 1, 23).read(0, tokens, sizes)
        assert (stepped_TV - whole_TV).abs().max() < 2e-5, sizes


@pytest.mark.parametrize("form", FORMS)
def test_texts_of_all_sizes_in_one_step_are_the_same_as_alone(form):
    """Decoding, prompts from their beginning and stretches after stored tokens side by side."""
    model = model_of(form)
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 61, (n,), generator=generator).tolist() for n in (1, 3, 9, 17, 20, 36, 40, 40)]
    stored = [0, 2, 8, 0, 5, 35, 39, 17]
    paged = Paged(TorchExecutor(model), len(texts), 40)
    paged.step({row: text[:n] for row, (text, n) in enumerate(zip(texts, stored, strict=True)) if n})
    found = paged.step({row: text[n:] for row, (text, n) in enumerate(zip(texts, stored, strict=True))})
    for row, text in enumerate(texts):
        with torch.no_grad():
            alone_TV = model(torch.tensor([text]))[0, stored[row] :]
        assert (found[row] - alone_TV).abs().max() < 2e-5, row


@pytest.mark.parametrize("form", FORMS)
def test_packed_documents_are_the_same_as_alone(form):
    model = model_of(form)
    parts = [torch.randint(0, 61, (1, n), generator=torch.Generator().manual_seed(n)) for n in (9, 1, 12)]
    document_BT = torch.tensor([[i for i, part in enumerate(parts) for _ in range(part.shape[1])]])
    with torch.no_grad():
        packed_TV = model(torch.cat(parts, 1), document_BT=document_BT)[0]
        alone_TV = torch.cat([model(part)[0] for part in parts])
    assert (packed_TV - alone_TV).abs().max() < 2e-5


@pytest.mark.parametrize("form", FORMS)
def test_the_future_is_not_seen(form):
    model = model_of(form)
    one_BT = torch.randint(0, 61, (1, 20), generator=torch.Generator().manual_seed(3))
    two_BT = one_BT.clone()
    two_BT[0, 12:] = (two_BT[0, 12:] + 1) % 61
    with torch.no_grad():
        one_TV, two_TV = model(one_BT)[0], model(two_BT)[0]
    assert (one_TV[:12] - two_TV[:12]).abs().max() < 1e-5 and (one_TV[12:] - two_TV[12:]).abs().max() > 0.01
