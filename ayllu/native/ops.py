"""Differentiable CPU operations on bfloat16 and float32 tensors, in front of the kernels of training.cpp and
flash.cpp.

`usable(x)` decides: one of these types, on the CPU, with the extension loaded. Callers keep their plain
torch path for everything else, and the tests compare the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ayllu import native

LEVEL = ""  # of attention's kernels: "portable", "AVX2" or "AVX-512"; "": the best one here
_pool = -1  # threads that the kernels were told to use


def usable(x: Tensor) -> bool:
    """Whether the kernels apply to a tensor like `x`; also follows torch.set_num_threads."""
    if native.module() is None or x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32):
        return False
    follow_threads()
    return True


def follow_threads() -> None:
    """Let the kernels use torch's own thread pool, with its present number of threads."""
    global _pool
    if _pool != torch.get_num_threads():
        _pool = torch.get_num_threads()
        library = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
        native.module().use_openmp(str(library), _pool)  # type: ignore[union-attr]


def _address(x: Tensor | None, dtype: torch.dtype, *shape: int) -> int:
    """The data's address after checking what the kernel relies on (0 for None)."""
    if x is None:
        return 0
    assert x.is_contiguous() and x.dtype == dtype and x.device.type == "cpu", (x.dtype, x.stride())
    assert not shape or tuple(x.shape) == shape, (tuple(x.shape), shape)
    return x.data_ptr()


F32 = torch.float32


def _kernels(x: Tensor) -> Any:
    """The training kernels for activations like `x`."""
    module = native.module()
    assert module is not None and x.dtype in (torch.bfloat16, F32), x.dtype
    return module.bf16 if x.dtype == torch.bfloat16 else module.f32


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y, scales = torch.empty_like(x), torch.empty(rows)
        _kernels(x).rms_norm(
            _address(x, x.dtype),
            _address(weight, F32, width),
            _address(y, x.dtype),
            _address(scales, F32),
            eps,
            rows,
            width,
        )
        ctx.save_for_backward(x, weight, scales)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scales = ctx.saved_tensors
        dy, dx, dw = dy.contiguous(), torch.empty_like(x), torch.zeros_like(weight)
        width = x.shape[-1]
        _kernels(x).rms_norm_backward(
            _address(dy, x.dtype),
            _address(x, x.dtype),
            _address(weight, F32),
            _address(scales, F32),
            _address(dx, x.dtype),
            _address(dw, F32),
            x.numel() // width,
            width,
        )
        return dx, dw, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x (..., width) with a float32 weight."""
    return _RMSNorm.apply(x, weight, eps)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        hidden = gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], hidden)
        _kernels(gate_up).swiglu(
            _address(gate_up, gate_up.dtype), _address(y, gate_up.dtype), y.numel() // hidden, hidden
        )
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        dy, d = dy.contiguous(), torch.empty_like(gate_up)
        hidden = dy.shape[-1]
        _kernels(gate_up).swiglu_backward(
            _address(dy, gate_up.dtype),
            _address(gate_up, gate_up.dtype),
            _address(d, gate_up.dtype),
            dy.numel() // hidden,
            hidden,
        )
        return d


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half over the last dimension."""
    return _SwiGLU.apply(gate_up)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_BTX: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        cos_TD: Tensor,
        sin_TD: Tensor,
        heads: int,
        kv_heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv_BTX = qkv_BTX.contiguous()
        b, t, _ = qkv_BTX.shape
        dim = cos_TD.shape[-1]
        assert dim <= 256 and qkv_BTX.shape[-1] == (heads + 2 * kv_heads) * dim
        q, k, v = (qkv_BTX.new_empty(b, n, t, dim) for n in (heads, kv_heads, kv_heads))
        scales = torch.empty(b * t * (heads + kv_heads))
        ctx.sizes = (b, t, heads, kv_heads, dim, eps, dim**-0.5)
        _kernels(qkv_BTX).split_heads(
            _address(qkv_BTX, qkv_BTX.dtype),
            _address(q_weight, F32),
            _address(k_weight, F32),
            _address(cos_TD, F32, t, dim),
            _address(sin_TD, F32, t, dim),
            *(_address(x, qkv_BTX.dtype) for x in (q, k, v)),
            _address(scales, F32),
            *ctx.sizes,
        )
        ctx.save_for_backward(qkv_BTX, q_weight, k_weight, cos_TD, sin_TD, scales)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        qkv, q_weight, k_weight, cos_TD, sin_TD, scales = ctx.saved_tensors
        d, d_weights = torch.empty_like(qkv), torch.zeros(2 * ctx.sizes[4])
        dq, dk, dv = dq.contiguous(), dk.contiguous(), dv.contiguous()  # named, so that they stay alive
        _kernels(qkv).split_heads_backward(
            *(_address(x, qkv.dtype) for x in (dq, dk, dv)),
            _address(qkv, qkv.dtype),
            _address(q_weight, F32),
            _address(k_weight, F32),
            _address(cos_TD, F32),
            _address(sin_TD, F32),
            _address(scales, F32),
            _address(d, qkv.dtype),
            _address(d_weights, F32),
            *ctx.sizes,
        )
        dq_weight, dk_weight = d_weights.chunk(2) if q_weight is not None else (None, None)
        return d, dq_weight, dk_weight, None, None, None, None, None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, starts_BT: Tensor) -> Tensor:
        b, heads, t, dim = q_BHTD.shape
        kv_heads = k_BGTD.shape[1]
        y_BTX, log_sums = q_BHTD.new_empty(b, t, heads * dim), torch.empty(b * heads * t)
        ctx.sizes = (b, t, heads, kv_heads, dim)
        _kernels(q_BHTD).attention(
            _address(q_BHTD, q_BHTD.dtype),
            *(_address(x, q_BHTD.dtype, b, kv_heads, t, dim) for x in (k_BGTD, v_BGTD)),
            _address(starts_BT, torch.int32, b, t),
            _address(y_BTX, q_BHTD.dtype),
            _address(log_sums, F32),
            *ctx.sizes,
            LEVEL,
        )
        ctx.save_for_backward(q_BHTD, k_BGTD, v_BGTD, starts_BT, log_sums)
        return y_BTX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTX: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts_BT, log_sums = ctx.saved_tensors
        dy_BTX = dy_BTX.contiguous()
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        _kernels(q).attention_backward(
            *(_address(x, q.dtype) for x in (dy_BTX, q, k, v)),
            _address(starts_BT, torch.int32),
            _address(log_sums, F32),
            *(_address(x, q.dtype) for x in (dq, dk, dv)),
            *ctx.sizes,
            LEVEL,
        )
        return dq, dk, dv, None


def attention(
    qkv_BTX: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos_TD: Tensor,
    sin_TD: Tensor,
    starts_BT: Tensor,
    *,
    heads: int,
    kv_heads: int,
    eps: float,
) -> Tensor:
    """Grouped-query causal attention from the joint projection (B, T, (H+2G)*D) -> (B, T, H*D).

    Position t of a row attends to positions starts_BT[b, t] .. t (0 <= start <= t), its document so far.
    Scores are never kept (FlashAttention, Dao et al. 2022): memory grows with T, not with its square.
    """
    last_T = torch.arange(starts_BT.shape[1])
    assert bool(((starts_BT >= 0) & (starts_BT <= last_T)).all())
    q, k, v = _SplitHeads.apply(qkv_BTX, q_weight, k_weight, cos_TD, sin_TD, heads, kv_heads, eps)
    return _Attend.apply(q, k, v, starts_BT)


def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
    """Losses -log p[target] and entropies (float32, N); the logits become the gradient of
    sum(weights * losses), in place."""
    rows, vocab = logits_NV.shape
    assert not rows or (int(targets_N.min()) >= 0 and int(targets_N.max()) < vocab)
    losses, entropies = torch.empty(rows), torch.empty(rows)
    _kernels(logits_NV).cross_entropy(
        _address(logits_NV, logits_NV.dtype),
        _address(targets_N, torch.int64, rows),
        _address(weights_N, F32, rows),
        _address(losses, F32),
        _address(entropies, F32),
        rows,
        vocab,
    )
    return losses, entropies


# ---- sampling
def sample(logits_BV: Tensor, temperature_B: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (int64) and their log-probabilities at temperature 1 from float32 logits."""
    b, v = logits_BV.shape
    logits_BV = logits_BV.contiguous()
    tokens, logprobs = torch.empty(b, dtype=torch.int64), torch.empty(b)
    native.module().sample(  # type: ignore[union-attr]
        _address(logits_BV, F32),
        _address(temperature_B, F32, b),
        _address(uniform_B, torch.float64, b),
        _address(tokens, torch.int64),
        _address(logprobs, F32),
        b,
        v,
    )
    return tokens, logprobs
