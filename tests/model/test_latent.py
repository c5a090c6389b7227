"""Latent attention against the formulas of DeepSeek-V2 (2405.04434, section 2.1, equations 9 to 19).

The judge expands every head's keys and values and attends with loops over heads; the absorbed form that
a cache needs has to give the same numbers without ever expanding them.
"""

import math

import pytest
import torch

from ayllu.model.attention import Place
from ayllu.model.config import LatentSpec, LayerSpec, MLPSpec, ModelConfig, RopeSpec
from ayllu.model.latent import LatentAttention

WIDTH = 40
SPECS = {
    "queries through a latent": LatentSpec(3, 20, 16, 12, 8, 10, RopeSpec(8, 100.0, interleaved=True)),
    "plain queries": LatentSpec(4, None, 24, 8, 4, 14, RopeSpec(4, 100.0, interleaved=True), scale=0.7),
    "rotate half, biases": LatentSpec(2, 12, 8, 6, 10, 6, RopeSpec(10, 50.0), bias=True),
    "window": LatentSpec(2, None, 8, 6, 4, 6, RopeSpec(4, 50.0), window=3),
}


def make(spec: LatentSpec) -> LatentAttention:
    torch.manual_seed(1)
    layer = LatentAttention(ModelConfig(WIDTH, 50, (LayerSpec(spec, MLPSpec(8)),), 64, norm_eps=0.5), spec)
    with torch.no_grad():
        for weight in layer.parameters():
            centre, spread = (1.0, 0.3) if weight.dim() == 1 else (0.0, 2 * weight.shape[-1] ** -0.5)
            weight.copy_(centre + spread * torch.randn(weight.shape))
    return layer


def turn(x_TD: torch.Tensor, rope: RopeSpec, first: int = 0) -> torch.Tensor:
    """Rotate channel pairs one by one."""
    out = x_TD.clone()
    for t in range(len(x_TD)):
        for pair in range(rope.dim // 2):
            one, two = (2 * pair, 2 * pair + 1) if rope.interleaved else (pair, pair + rope.dim // 2)
            angle = (first + t) * rope.theta ** (-2 * pair / rope.dim)
            a, b = x_TD[t, one], x_TD[t, two]
            out[t, one] = a * math.cos(angle) - b * math.sin(angle)
            out[t, two] = b * math.cos(angle) + a * math.sin(angle)
    return out


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def judge(layer: LatentAttention, x_TC: torch.Tensor) -> torch.Tensor:
    spec, w = layer.spec, dict(layer.named_parameters())
    bias = lambda name: w.get(name + ".bias", 0.0)  # noqa: E731
    if spec.q_rank is None:
        q_TX = x_TC @ w["q.weight"].T
    else:
        q_TX = rms(x_TC @ w["q_down.weight"].T + bias("q_down"), w["q_norm.weight"]) @ w["q_up.weight"].T
    down_TX = x_TC @ w["kv_down.weight"].T + bias("kv_down")
    latent_TL = rms(down_TX[:, : spec.kv_rank], w["kv_norm.weight"])
    k_rope_TD = turn(down_TX[:, spec.kv_rank :], spec.rope)
    heads = []
    qk, kv = spec.nope_dim + spec.rope_dim, spec.nope_dim + spec.v_dim
    for h in range(spec.heads):
        q_nope, q_rope = q_TX[:, h * qk : (h + 1) * qk].split([spec.nope_dim, spec.rope_dim], -1)
        up = w["kv_up.weight"][h * kv : (h + 1) * kv]
        k_nope, v = (latent_TL @ up.T).split([spec.nope_dim, spec.v_dim], -1)
        scores = (q_nope @ k_nope.T + turn(q_rope, spec.rope) @ k_rope_TD.T) * spec.score_scale
        seen = torch.ones_like(scores, dtype=torch.bool).tril()
        if spec.window is not None:
            seen &= ~torch.ones_like(seen).tril(-spec.window)
        heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
    return torch.cat(heads, -1) @ w["out.weight"].T + bias("out")


class PlainCache:
    """All keys in one tensor; the values are their first channels."""

    def __init__(self, spec: LatentSpec) -> None:
        self.spec, self.keys = spec, None
        self.widths: set[int] = set()

    def attend(self, q_BTHD, k_BTGD, v_BTGE):
        assert v_BTGE is None and k_BTGD.shape[2] == 1
        self.widths.add(k_BTGD.shape[-1])
        self.keys = k_BTGD if self.keys is None else torch.cat([self.keys, k_BTGD], 1)
        k_BSD = self.keys[:, :, 0]
        total, new = k_BSD.shape[1], q_BTHD.shape[1]
        scores = torch.einsum("bthd,bsd->bhts", q_BTHD, k_BSD) * self.spec.score_scale
        at, key = torch.arange(total - new, total)[:, None], torch.arange(total)
        seen = (key <= at) & (at - key < (self.spec.window or total))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("bhts,bsl->bthl", weights, k_BSD[..., : self.spec.kv_rank])


def place(first: int, length: int) -> Place:
    return Place(torch.arange(first, first + length)[None], None, None)


@pytest.mark.parametrize("name", SPECS)
def test_the_formulas_of_the_paper(name):
    layer = make(SPECS[name])
    x_BTC = torch.randn(2, 9, WIDTH)
    with torch.no_grad():
        ours = layer(x_BTC, place(0, 9), None)
        theirs = torch.stack([judge(layer, x_TC) for x_TC in x_BTC])
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("parts", [(9,), (1,) * 9, (4, 1, 3, 1)])
def test_the_absorbed_form_gives_the_same(name, parts):
    layer = make(SPECS[name])
    x_BTC = torch.randn(2, 9, WIDTH)
    cache, out, first = PlainCache(layer.spec), [], 0
    with torch.no_grad():
        for length in parts:
            piece = x_BTC[:, first : first + length]
            out.append(layer(piece, place(first, length), cache))
            first += length
        whole = layer(x_BTC, place(0, 9), None)
    assert (torch.cat(out, 1) - whole).abs().max() < 2e-5 * max(1.0, float(whole.abs().max()))
    assert cache.widths == {layer.spec.cache.elements}, "the cache holds what the spec promises, no more"


@pytest.mark.parametrize("name", SPECS)
def test_the_same_gradients(name):
    layer = make(SPECS[name])
    x_TC, aim_TC = torch.randn(7, WIDTH, requires_grad=True), torch.randn(7, WIDTH)
    grads = []
    for side in (lambda: layer(x_TC[None], place(0, 7), None)[0], lambda: judge(layer, x_TC)):
        layer.zero_grad()
        x_TC.grad = None
        (side() * aim_TC).sum().backward()
        grads.append({"x": x_TC.grad, **{n: p.grad for n, p in layer.named_parameters()}})
    ours, theirs = grads
    for key, grad in theirs.items():
        assert grad.abs().max() > 1e-3, key
        assert (ours[key] - grad).abs().max() < 1e-4 * max(1.0, float(grad.abs().max())), key
