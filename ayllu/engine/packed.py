"""Packed weights: a decoder's matrices in the layouts that the native kernels stream through.

The layouts are described in native/packed.h: sixteen rows woven together, groups of 32 columns with one
half-precision scale for int8 (8.5 bits a weight) and int4 (4.5 bits), or bfloat16 and float32 as they are.
Norms, biases and the router of experts stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ayllu import native
from ayllu.errors import RequestError
from ayllu.model.config import AttentionSpec, MLPSpec, ModelConfig
from ayllu.model.decoder import Decoder
from ayllu.model.rope import DEPENDS_ON_LENGTH

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
LANES = 16  # rows woven together
ALIGNMENT = 64  # bytes
NARROW = 1024  # channels


@dataclass(frozen=True)
class Packed:
    """One matrix, or several of the same shape one after the other (`count`: experts).

    `data` (uint8) lies on a 64-byte border; `bias` (float32) is padded to whole blocks of 16 rows.
    """

    data: Tensor
    rows: int
    columns: int
    format: int
    bias: Tensor | None = None
    count: int = 1

    def describe(self, index: int = 0) -> tuple[int, int, int, int, int]:
        """What the binding takes: addresses of data and bias, rows, columns, format."""
        offset = index * (self.data.numel() // self.count)
        bias = 0 if self.bias is None else self.bias.data_ptr()
        return self.data.data_ptr() + offset, bias, self.rows, self.columns, self.format

    def dequantised(self) -> Tensor:
        """All of it as float32: (rows, columns), or (count, rows, columns) of experts."""
        out = torch.empty(self.count, self.rows, self.columns)
        for index in range(self.count):
            core().unpack_rows(self.describe(index), 0, self.rows, out[index].data_ptr())
        return out if self.count > 1 else out[0]


@dataclass(frozen=True)
class PackedModel:
    """All weights of a decoder by our names: matrices packed, vectors in float32."""

    config: ModelConfig
    weights: str
    matrices: dict[str, Packed]
    vectors: dict[str, Tensor]
    fingerprint: str = ""  # SHA-256 of the weights where it is known already (packed files)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        biases = [m.bias for m in self.matrices.values() if m.bias is not None]
        tensors = [*(m.data for m in self.matrices.values()), *biases, *self.vectors.values()]
        return sum(t.numel() * t.element_size() for t in tensors)


def core():  # type: ignore[no-untyped-def]
    """The native extension. Raises RequestError where there is none."""
    module = native.module()
    if module is None:
        raise RequestError(
            "packed weights need the native extension, which wasn't built",
            fix="install a C++ compiler and run `make setup` again, or use float32 or bfloat16 weights",
        )
    return module


def aligned(size: int) -> Tensor:
    """uint8 zeros on a 64-byte border."""
    raw = torch.zeros(size + ALIGNMENT, dtype=torch.uint8)
    start = -raw.data_ptr() % ALIGNMENT
    return raw[start : start + size]


def matrices_of(model: Decoder) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(name, weight, bias) of every matrix; experts are (count, rows, columns)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module.weight, module.bias
    yield "embedding", model.embedding.weight, None
    for name, weight in model.named_parameters():
        if weight.dim() == 3:
            yield name, weight, None


def pack_model(model: Decoder, weights: str) -> PackedModel:
    """Pack a decoder's weights as `weights` (a key of FORMATS). Raises RequestError."""
    if weights not in FORMATS:
        raise RequestError(f"weights = {weights!r} is not one of {', '.join(FORMATS)}")
    matrices = {
        name: pack_matrix(weight, FORMATS[format_of(name, weights, model.config)], bias)
        for name, weight, bias in matrices_of(model)
    }
    return PackedModel(model.config, weights, matrices, vectors_of(model))


def format_of(name: str, weights: str, config: ModelConfig) -> str:
    """How matrix `name` is packed when the model's weights are `weights`.

    A router decides, so that it stays exact. In int4, the embedding and the head of a narrow model stay in
    int8: a small error in what every token begins and ends with costs more the fewer channels share it, and
    a model of this size lives in the processor's cache whole.
    """
    if name.endswith("router"):
        return "float32"
    if weights == "int4" and name in ("embedding", "head") and config.width < NARROW:
        return "int8"
    return weights


def vectors_of(model: Decoder) -> dict[str, Tensor]:
    """Norm weights and choice biases, float32 copies."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: value.detach().float().contiguous().clone()
        for name, value in state.items()
        if name.endswith("choice_bias") or (value.dim() == 1 and not name.endswith("bias"))
    }


def pack_matrix(weight: Tensor, format_number: int, bias: Tensor | None = None) -> Packed:
    """Pack (rows, columns) or (count, rows, columns)."""
    stacked = weight.detach() if weight.dim() == 3 else weight.detach()[None]
    count, rows, columns = stacked.shape
    each = core().packed_bytes(rows, columns, format_number)
    packed = Packed(aligned(count * each), rows, columns, format_number, _padded(bias), count)
    repack(packed, weight, bias)
    return packed


def repack(packed: Packed, weight: Tensor, bias: Tensor | None) -> None:
    """Put new values into the same memory."""
    stacked = weight.detach() if weight.dim() == 3 else weight.detach()[None]
    for index, matrix in enumerate(stacked):
        source = matrix.contiguous() if matrix.dtype == torch.bfloat16 else matrix.float().contiguous()
        core().pack(
            source.data_ptr(),
            source.dtype == torch.bfloat16,
            packed.rows,
            packed.columns,
            packed.format,
            packed.describe(index)[0],
        )
    if bias is not None and packed.bias is not None:
        packed.bias[: packed.rows] = bias.detach()


def _padded(bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    out = torch.zeros(-(-len(bias) // LANES) * LANES)
    out[: len(bias)] = bias.detach()
    return out


def supports(config: ModelConfig) -> str | None:
    """Why the native step can't run this decoder, or None when it can."""
    first = config.attentions[0]
    for spec in config.layers:
        attention, mlp = spec.attention, spec.mlp
        if not isinstance(attention, AttentionSpec):
            return "latent attention"
        if attention.cache != first.cache:
            return "layers with different caches"
        if attention.qk_norm == "l2" or attention.temperature or attention.softcap:
            return "this form of attention"
        if attention.head_dim > 1024:
            return f"heads of {attention.head_dim} channels"
        scaling = attention.rope.scaling if attention.rope else None
        if scaling is not None and scaling.kind in DEPENDS_ON_LENGTH:
            return "positions that depend on the length of the text"
        if spec.parallel or mlp.activation != "silu" or (isinstance(mlp, MLPSpec) and not mlp.gated):
            return "this form of block"
        if not isinstance(mlp, MLPSpec) and mlp.weigh_input:
            return "experts with weighted inputs"
    if config.norm != "rms" or config.positions or config.logit_softcap is not None:
        return "LayerNorm, learned positions or a cap on logits"
    return None
