"""Small folders of Meta's consolidated files: random weights, whole or cut into parts, and the logits that
Meta's own definition gives for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

LLAMA_1 = {"dim": 32, "n_layers": 2, "n_heads": 4, "multiple_of": 8, "norm_eps": 1e-6, "vocab_size": -1}
LLAMA_2 = {
    "dim": 64, "n_layers": 3, "n_heads": 8, "n_kv_heads": 4, "multiple_of": 16, "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5, "vocab_size": -1,
}  # fmt: skip
LLAMA_3 = {
    "dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "multiple_of": 4, "ffn_dim_multiplier": 1.5,
    "norm_eps": 1e-5, "vocab_size": 92, "rope_theta": 500000.0,
}  # fmt: skip
LLAMA_31 = LLAMA_3 | {"use_scaled_rope": True}
KINDS = {"Llama 1": LLAMA_1, "Llama 2": LLAMA_2, "Llama 3": LLAMA_3, "Llama 3.1": LLAMA_31}


def hidden_of(params: dict[str, Any]) -> int:
    """Meta's formula, with numbers worked out beside it: 2/3 of 4 dim, times, up to a multiple."""
    hidden = int(params.get("ffn_dim_multiplier", 1.0) * int(8 * params["dim"] / 3))
    return (hidden + params["multiple_of"] - 1) // params["multiple_of"] * params["multiple_of"]


def whole(params: dict[str, Any], vocabulary: int = 92, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under Meta's names, in one piece."""
    g = torch.Generator().manual_seed(seed)
    c, hidden = params["dim"], hidden_of(params)
    kv = c // params["n_heads"] * params.get("n_kv_heads", params["n_heads"])
    shapes = {"tok_embeddings": (vocabulary, c), "output": (vocabulary, c), "norm": (c,)}
    for n in range(params["n_layers"]):
        shapes |= {f"layers.{n}.attention.{w}": (rows, c) for w, rows in (("wq", c), ("wk", kv), ("wv", kv))}
        shapes |= {f"layers.{n}.attention.wo": (c, c), f"layers.{n}.feed_forward.w2": (c, hidden)}
        shapes |= {f"layers.{n}.feed_forward.{w}": (hidden, c) for w in ("w1", "w3")}
        shapes |= {f"layers.{n}.{norm}": (c,) for norm in ("attention_norm", "ffn_norm")}
    return {
        f"{name}.weight": (len(shape) == 1) + torch.randn(shape, generator=g) * 0.2
        for name, shape in shapes.items()
    }


def cut(
    weights: dict[str, torch.Tensor], parts: int, *, by_vocabulary: bool
) -> list[dict[str, torch.Tensor]]:
    """What each of `parts` processes would hold."""
    pieces: list[dict[str, torch.Tensor]] = [{} for _ in range(parts)]
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            shares: tuple[torch.Tensor, ...] = (tensor,) * parts
        elif name.endswith((".wo.weight", ".w2.weight")) or (
            name == "tok_embeddings.weight" and not by_vocabulary
        ):
            shares = tensor.chunk(parts, 1)
        else:
            shares = tensor.chunk(parts, 0)
        for piece, share in zip(pieces, shares, strict=True):
            piece[name] = share.clone()
    return pieces


def write(folder: Path, params: dict[str, Any], pieces: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for number, piece in enumerate(pieces):
        torch.save(piece, folder / f"consolidated.{number:02}.pth")
    return folder


def metas_own_logits(
    params: dict[str, Any], weights: dict[str, torch.Tensor], tokens_BT: torch.Tensor
) -> torch.Tensor:
    """The model as its paper describes it, with channels 2i and 2i + 1 as one complex number (no scaling)."""
    b, t = tokens_BT.shape
    h, d = params["n_heads"], params["dim"] // params["n_heads"]
    g = params.get("n_kv_heads", h)
    frequency = params.get("rope_theta", 10000.0) ** (-torch.arange(0, d, 2) / d)
    turn_T1D = torch.polar(torch.ones(t, d // 2), torch.outer(torch.arange(t).float(), frequency))[:, None]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weights[name], params["norm_eps"])

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn_T1D).flatten(-2)

    x = weights["tok_embeddings.weight"][tokens_BT]
    for n in range(params["n_layers"]):
        w = {name.split(".", 2)[2]: v for name, v in weights.items() if name.startswith(f"layers.{n}.")}
        y = norm(x, f"layers.{n}.attention_norm.weight")
        q, k, v = (
            (y @ w[f"attention.w{z}.weight"].T).view(b, t, heads, d)
            for z, heads in zip("qkv", (h, g, g), strict=True)
        )
        k, v = (z.repeat_interleave(h // g, 2).transpose(1, 2) for z in (turned(k), v))
        y = F.scaled_dot_product_attention(turned(q).transpose(1, 2), k, v, is_causal=True)
        x = x + y.transpose(1, 2).flatten(2) @ w["attention.wo.weight"].T
        y = norm(x, f"layers.{n}.ffn_norm.weight")
        gate, up = (y @ w[f"feed_forward.{z}.weight"].T for z in ("w1", "w3"))
        x = x + (F.silu(gate) * up) @ w["feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ weights["output.weight"].T
