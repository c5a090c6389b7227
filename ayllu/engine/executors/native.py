"""The native executor: one C++ call runs one step of the whole model on the CPU.

Families of Llama's, Mistral's and Qwen's shape, dense or with experts; weights in float32, bfloat16, int8 or
int4, the cache in float32, bfloat16 or int8. Every output is computed by the same chain of operations
whatever else is in the batch, so that a text comes out the same alone, in a batch and after a prefix hit.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.batch import BLOCK, Batch
from ayllu.engine.packed import (
    LANES,
    Packed,
    PackedModel,
    aligned,
    core,
    matrices_of,
    pack_model,
    repack,
    supports,
    vectors_of,
)
from ayllu.errors import RequestError, ResourceError
from ayllu.model.config import AttentionSpec, ModelConfig, MoESpec, RopeSpec
from ayllu.model.decoder import Decoder
from ayllu.model.rope import frequencies
from ayllu.native import ops

CACHES = {"float32": 0, "bfloat16": 1, "int8": 2}
_FIRST_POSITIONS = 1024  # rotary tables begin with so many rows and double


class NativeExecutor:
    """See `Executor`. `model`: a live Decoder (packed now, and again at each refresh) or packed weights."""

    def __init__(
        self, model: Decoder | PackedModel, weights: str = "bfloat16", *, cache: str = "auto", level: str = ""
    ) -> None:
        if reason := supports(model.config):
            raise RequestError(f"the native executor doesn't do {reason}", fix="use the torch executor")
        self.source = model if isinstance(model, Decoder) else None
        self.packed = pack_model(model, weights) if isinstance(model, Decoder) else model
        if cache == "auto":
            cache = "float32" if self.packed.weights == "float32" else "bfloat16"
        if cache not in CACHES:
            raise RequestError(f"cache = {cache!r} is not one of {', '.join(CACHES)}")
        self.config: ModelConfig = model.config
        self.vocab_size = self.config.vocab_size
        self.core = core().Model(self.config.width, self.config.norm_eps, CACHES[cache], level)
        level = level or core().compute_level()
        self.name = f"native: {level}, {self.packed.weights} weights, {cache} cache"
        self._ropes: list[RopeSpec] = []
        for index in range(len(self.config.layers)):
            self.core.add_layer(self._layer(index))
        embedding = self.packed.matrices["embedding"]
        head = self.packed.matrices.get("head", embedding)
        norm = self.packed.vectors["norm.weight"]
        self.core.set_outer(embedding.describe(), head.describe(), norm.data_ptr())
        self.block_bytes: int = self.core.cache_block_bytes
        self.cache_BX = torch.empty(0, self.block_bytes, dtype=torch.uint8)
        self._tables: list[tuple[Tensor, Tensor]] = []
        self._positions = 0

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, the layout of a block and the arithmetic."""
        digest = hashlib.sha256(f"{self.config}{self.name}".encode())
        if self.packed.fingerprint:
            digest.update(self.packed.fingerprint.encode())
            return digest.hexdigest()
        for name, matrix in sorted(self.packed.matrices.items()):
            digest.update(name.encode())
            digest.update(memoryview(matrix.data.numpy()))
            if matrix.bias is not None:
                digest.update(matrix.bias.numpy().tobytes())
        for name, vector in sorted(self.packed.vectors.items()):
            digest.update(name.encode() + vector.numpy().tobytes())
        return digest.hexdigest()

    def reserve(self, blocks: int) -> None:
        """Make room for this many blocks, keeping what is stored. Raises ResourceError."""
        have = len(self.cache_BX)
        if blocks <= have:
            return
        try:
            grown_BX = aligned(blocks * self.block_bytes).view(blocks, self.block_bytes)
        except (RuntimeError, MemoryError) as error:
            raise ResourceError(
                f"no memory for a cache of {blocks * self.block_bytes / 1e9:.1f} GB",
                why=str(error)[:200],
                fix="give the engine a smaller cache",
            ) from error
        grown_BX[:have] = self.cache_BX
        self.cache_BX = grown_BX
        self.core.set_cache(grown_BX.data_ptr())

    def step(self, batch: Batch) -> Tensor:
        """Store the keys and values of all tokens -> logits_LV (float32) of the wanted ones."""
        ops.follow_threads()
        tokens, wanted = len(batch.tokens_T), len(batch.wanted_L)
        arrays = [batch.tokens_T, batch.positions_T, batch.sequence_T, batch.tables_SW, batch.wanted_L]
        arrays = [np.ascontiguousarray(a, dtype=np.int32) for a in arrays]
        ids_T, positions_T, sequence_T, tables_SW, wanted_L = arrays
        self._check(ids_T, positions_T, sequence_T, tables_SW, wanted_L)
        self._grow_tables(int(positions_T.max()) + 1)
        logits_LX = torch.empty(wanted, -(-self.vocab_size // LANES) * LANES)
        self.core.step(
            ids_T.ctypes.data,
            positions_T.ctypes.data,
            sequence_T.ctypes.data,
            tokens,
            tables_SW.ctypes.data,
            tables_SW.shape[1],
            wanted_L.ctypes.data,
            wanted,
            logits_LX.data_ptr(),
        )
        return logits_LX[:, : self.vocab_size]

    def export_block(self, block: int) -> Tensor:
        """The bytes of a block."""
        return self.cache_BX[block].clone()

    def import_block(self, block: int, data: Tensor) -> None:
        """Put exported bytes into a block."""
        self.cache_BX[block] = data

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's content."""
        self.cache_BX[target] = self.cache_BX[source]

    def refresh(self) -> None:
        """Pack the live Decoder's weights again, into the same memory."""
        assert self.source is not None, "packed weights don't change"
        for name, weight, bias in matrices_of(self.source):
            repack(self.packed.matrices[name], weight, bias)
        for name, vector in vectors_of(self.source).items():
            self.packed.vectors[name].copy_(vector)

    def _check(self, *arrays: Any) -> None:
        """The C++ side trusts its numbers; here they are held against the cache and the vocabulary."""
        ids_T, positions_T, sequence_T, tables_SW, wanted_L = arrays
        assert _below(ids_T, self.vocab_size)
        assert _below(positions_T, tables_SW.shape[1] * BLOCK)
        assert _below(sequence_T, len(tables_SW))
        assert _below(tables_SW, len(self.cache_BX))
        assert _below(wanted_L, len(ids_T))

    def _grow_tables(self, positions: int) -> None:
        if positions <= self._positions:
            return
        size = max(_FIRST_POSITIONS, self._positions)
        while size < positions:
            size *= 2
        at_P1 = torch.arange(size, dtype=torch.float32)[:, None]
        self._tables = []
        for spec in self._ropes:
            frequency, factor = frequencies(spec, 0, torch.device("cpu"))
            angle_PD = at_P1 * frequency
            self._tables.append((angle_PD.cos() * factor, angle_PD.sin() * factor))
        self.core.set_tables([(cosine.data_ptr(), sine.data_ptr()) for cosine, sine in self._tables])
        self._positions = size

    def _layer(self, index: int) -> dict[str, Any]:
        """What the binding reads of one layer."""
        spec, prefix = self.config.layers[index], f"blocks.{index}."
        attention = spec.attention
        assert isinstance(attention, AttentionSpec)
        matrices = _within(prefix, self.packed.matrices)
        vectors = _within(prefix, self.packed.vectors)

        def vector(name: str) -> int:
            return vectors[name].data_ptr() if name in vectors else 0

        layer: dict[str, Any] = {
            "attention_norm": vector("attention_norm.weight"),
            "mlp_norm": vector("mlp_norm.weight"),
            "q_norm": vector("attention.q_norm.weight"),
            "k_norm": vector("attention.k_norm.weight"),
            "qkv": matrices["attention.qkv"].describe(),
            "out": matrices["attention.out"].describe(),
            "heads": attention.heads,
            "kv_heads": attention.kv_heads,
            "dim": attention.head_dim,
            "window": attention.window or 0,
            "chunk": attention.chunk or 0,
            "scale": attention.score_scale,
            "rotary": attention.rope is not None,
        }
        if (rope := attention.rope) is not None:
            if rope not in self._ropes:
                self._ropes.append(rope)
            layer |= {"interleaved": rope.interleaved, "rotary_dim": rope.dim}
            layer["table"] = self._ropes.index(rope)
        if isinstance(spec.mlp, MoESpec):
            layer["experts"] = _experts(spec.mlp, matrices, vector("mlp.choice_bias"))
        else:
            layer |= {"gate_up": matrices["mlp.gate_up"].describe(), "down": matrices["mlp.down"].describe()}
        return layer


def _below(numbers: Any, bound: int) -> bool:
    """Whether all of these int32 are in [0, bound): read without its sign a negative one is huge."""
    return not numbers.size or int(numbers.view(np.uint32).max()) < bound


_T = TypeVar("_T")


def _within(prefix: str, everything: dict[str, _T]) -> dict[str, _T]:
    return {n.removeprefix(prefix): value for n, value in everything.items() if n.startswith(prefix)}


def _experts(spec: MoESpec, matrices: dict[str, Packed], choice_bias: int) -> dict[str, Any]:
    experts: dict[str, Any] = {
        "count": spec.experts,
        "active": spec.active,
        "sigmoid": spec.router == "sigmoid",
        "normalise": spec.normalise,
        "scale": spec.scale,
        "groups": spec.groups,
        "active_groups": spec.active_groups,
        "group_top2": spec.group_score == "top2",
        "choice_bias": choice_bias,
        "router": matrices["mlp.router"].describe(),
        "gate_up": [matrices["mlp.gate_up"].describe(i) for i in range(spec.experts)],
        "down": [matrices["mlp.down"].describe(i) for i in range(spec.experts)],
    }
    if spec.shared_hidden:
        experts["shared_gate_up"] = matrices["mlp.shared.gate_up"].describe()
        experts["shared_down"] = matrices["mlp.shared.down"].describe()
    return experts
