"""The executor for NVIDIA GPUs: the torch executor, whose decode steps are graphs of few kernels.

Sequences that get one token run the Triton kernels of `gpu`, each number of them as one CUDA graph.
Stretches of prompts, and decoders that the kernels don't know, run as in the torch executor. Weights are
bfloat16 or float32 (shared with a live model where it has that type), or int8, int4 and fp8 with the
activations as they are.

The order of sums depends on how many sequences a step has: in bfloat16 a text may come out otherwise in a
batch than alone, unlike on the CPU.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.engine.batch import Batch
from ayllu.engine.blocks import blocks_for
from ayllu.engine.executors.cuda_graphs import SIZES, Graphs
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.engine.packed import supports
from ayllu.errors import AylluWarning, RequestError
from ayllu.gpu.weight_only import KINDS, WeightOnly
from ayllu.model.config import AttentionSpec, RopeSpec
from ayllu.model.decoder import Decoder
from ayllu.model.moe import MoE, choose
from ayllu.model.rope import rope_tables

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = (*_TYPES, *KINDS)
_MOST_PAIRS = 512  # of tokens and experts: beyond that experts are better multiplied one by one

try:  # Triton comes with torch's builds for CUDA
    from ayllu.gpu import attention, products, rows

    _NO_TRITON = ""
except ImportError as error:
    _NO_TRITON = f"Triton isn't installed ({error})"


class CudaExecutor(TorchExecutor):
    """See `Executor`. Also runs on a CPU under Triton's interpreter, for tests. RequestError for weights
    that it doesn't know or the device can't do."""

    def __init__(self, model: Decoder, weights: str = "bfloat16") -> None:
        if weights not in WEIGHTS:
            raise RequestError(f"weights = {weights!r} is not one of {', '.join(WEIGHTS)}")
        device = model.embedding.weight.device
        on_gpu = device.type == "cuda"
        if weights == "fp8" and on_gpu and torch.cuda.get_device_capability(device) < (8, 9):
            raise RequestError("this GPU has no 8-bit floats", fix="use int8 weights")
        self.weights = weights
        self._places: list[int] = []
        self.graphs = Graphs(self._decode, blocks_for(model.config.context), device)
        super().__init__(model, _TYPES.get(weights, torch.bfloat16))
        unfit = supports(model.config)
        self.without_kernels = _NO_TRITON or (f"the kernels don't do {unfit}" if unfit else "")
        if _NO_TRITON:
            warnings.warn(f"decoding by torch operations: {_NO_TRITON}", AylluWarning, stacklevel=2)
        self._on_device = torch.cuda.device(device) if on_gpu else nullcontext()
        self._proven = False  # whether the kernels have run here
        self.name = f"cuda: {torch.cuda.get_device_name(device) if on_gpu else 'interpreted'}, {weights}"
        self.name += f", {self.without_kernels or 'graphs of Triton kernels'}"

    def refresh(self) -> None:
        """Take over the weights as they are now, into the same memory, which graphs know."""
        if self.weights in _TYPES:
            super().refresh()
        elif self.model is self.source:
            self.model = _in_few_bits(self.source, self.weights, self.dtype)
        else:
            _renew(self.model, self.source)
        places = [weight.data_ptr() for weight in self.model.parameters()]
        if places != self._places:  # a live model's weights may have moved
            self._places = places
            self.graphs.forget()

    def reserve(self, blocks: int) -> None:
        """Make room for this many blocks, keeping what is stored. Raises ResourceError."""
        if blocks > len(self.layers[0].k_NBGD):
            self.graphs.forget()
        super().reserve(blocks)

    def step(self, batch: Batch) -> Tensor:
        """Store the keys and values of all tokens -> logits_LV (float32) of the wanted ones."""
        if self.without_kernels:
            return super().step(batch)
        changes = np.diff(batch.sequence_T) != 0
        single_T = np.r_[True, changes] & np.r_[changes, True]
        alone = bool(single_T.all())  # as nearly always
        singles = batch if alone else _only(batch, single_T)
        if not single_T.any() or not self._fits(singles):
            return super().step(batch)
        if alone:
            return self._decoded(batch)
        # Texts know nothing of each other: those that get one token keep their graph beside a new prompt.
        found_LV = self._decoded(singles), super().step(_only(batch, ~single_T))
        logits_LV = found_LV[0].new_empty(len(batch.wanted_L), found_LV[0].shape[1])
        among_L = single_T[batch.wanted_L]
        for rows_L, part_LV in zip((among_L, ~among_L), found_LV, strict=True):
            logits_LV[torch.from_numpy(np.flatnonzero(rows_L)).to(self.device)] = part_LV
        return logits_LV

    def _decoded(self, batch: Batch) -> Tensor:
        """A step in which every sequence has one token."""
        try:
            with torch.inference_mode(), self._on_device:
                tables_SW = batch.tables_SW[batch.sequence_T]
                logits_SV = self.graphs.run(batch.tokens_T, batch.positions_T, tables_SW)
        except Exception as error:
            if self._proven or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            # No compiler for Triton's launchers, say. Known at the first step, as nothing is compiled before.
            self.without_kernels = f"Triton fails here ({type(error).__name__}: {error})"[:300]
            warnings.warn(f"decoding by torch operations: {self.without_kernels}", AylluWarning, stacklevel=2)
            return super().step(batch)
        self._proven = True
        return logits_SV if len(batch.wanted_L) == len(logits_SV) else logits_SV[batch.wanted_L.tolist()]

    def _fits(self, batch: Batch) -> bool:
        """Whether sequences of one token each are few enough for the kernels."""
        count, width = len(batch.tokens_T), batch.tables_SW.shape[1]
        experts = max(getattr(spec.mlp, "active", 0) for spec in self.config.layers)
        most = min(SIZES[-1], _MOST_PAIRS // experts if experts else SIZES[-1])
        return count <= most and width <= self.graphs.plan_SX.shape[1] - 2

    # ---- the step
    def _decode(self, plan_SX: Tensor) -> Tensor:
        """plan_SX as in gpu/attention.py -> logits_SV. Asks the device for nothing."""
        model, eps = self.model, self.config.norm_eps
        x_SC = F.embedding(plan_SX[:, 0], model.embedding.weight)
        tables: dict[RopeSpec, tuple[Tensor, Tensor]] = {}
        added_SC: Tensor | None = None
        for block, layer in zip(model.blocks, self.layers, strict=True):
            spec, attend = layer.spec, block.attention
            assert isinstance(spec, AttentionSpec)
            if (rope := spec.rope) is not None and rope not in tables:
                tables[rope] = tuple(t[0] for t in rope_tables(rope, plan_SX[None, :, 1]))
            q_SHD = rows.place(
                _product(rows.add_norm(x_SC, added_SC, block.attention_norm.weight, eps), attend.qkv),
                layer.k_NBGD,
                layer.v_NBGE,
                plan_SX,
                heads=spec.heads,
                norms=(attend.q_norm.weight, attend.k_norm.weight) if attend.q_norm is not None else None,
                tables=tables[rope] if rope is not None else None,
                interleaved=rope is not None and rope.interleaved,
                eps=eps,
            )
            y_SHD = attention.attend(
                q_SHD,
                layer.k_NBGD,
                layer.v_NBGE,
                plan_SX,
                scale=spec.score_scale,
                window=spec.window,
                chunk=spec.chunk,
            )
            added_SC = _product(y_SHD.flatten(1), attend.out)
            added_SC = _mlp(rows.add_norm(x_SC, added_SC, block.mlp_norm.weight, eps), block.mlp)
        y_SC = rows.add_norm(x_SC, added_SC, model.norm.weight, eps)
        return _product(y_SC, model.head if model.head is not None else model.embedding, torch.float32)


def _only(batch: Batch, chosen_T: np.ndarray) -> Batch:
    """The tokens that are chosen."""
    new_T = np.cumsum(chosen_T, dtype=np.int32) - 1
    return Batch(
        batch.tokens_T[chosen_T],
        batch.positions_T[chosen_T],
        batch.sequence_T[chosen_T],
        batch.tables_SW,
        new_T[batch.wanted_L[chosen_T[batch.wanted_L]]],
    )


def _mlp(x_SC: Tensor, mlp: nn.Module) -> Tensor:
    if not isinstance(mlp, MoE):
        return _product(rows.gate(_product(x_SC, mlp.gate_up)), mlp.down)
    logits_SE = F.linear(x_SC.float(), mlp.router.weight.float())
    expert_SK, weight_SK = choose(logits_SE, mlp.spec, mlp.choice_bias)
    which_P, active = expert_SK.flatten().to(torch.int32), mlp.spec.active
    hidden_PH = rows.gate(_expert(x_SC, mlp, "gate_up", which_P, active))
    y_PC = _expert(hidden_PH, mlp, "down", which_P, 1)
    y_SC = (y_PC.view(*expert_SK.shape, -1) * weight_SK[:, :, None]).sum(1).to(x_SC.dtype)
    return y_SC if mlp.shared is None else y_SC + _mlp(x_SC, mlp.shared)


def _expert(x_MC: Tensor, moe: MoE, name: str, which_P: Tensor, repeats: int) -> Tensor:
    """Row m // repeats of x by the matrix `name` of expert which_P[m]."""
    few = getattr(moe, f"{name}_few", None)
    weight = getattr(moe, name) if few is None else few.data
    scale, count = (None, weight.shape[1]) if few is None else (few.scale, few.rows)
    chosen = {"which_M": which_P, "repeats": repeats}
    return products.product(x_MC, weight, scale, None, count, out=x_MC.dtype, **chosen)


def _product(x_MC: Tensor, layer: nn.Module, out: torch.dtype | None = None) -> Tensor:
    bias = getattr(layer, "bias", None)
    if isinstance(layer, WeightOnly):
        return products.product(x_MC, layer.data, layer.scale, bias, layer.rows, out=out or x_MC.dtype)
    if len(x_MC) > 1:  # cuBLAS
        if out == torch.float32 and x_MC.is_cuda and x_MC.dtype != out and bias is None:
            return torch.mm(x_MC, layer.weight.T, out_dtype=out)
        return F.linear(x_MC, layer.weight, bias)
    return products.product(x_MC, layer.weight, None, bias, len(layer.weight), out=out or x_MC.dtype)


# ---- weights in few bits
class _FewBitExperts(MoE):
    """Experts whose weights are made floats again where the torch executor multiplies by them."""

    gate_up = property(lambda self: self.gate_up_few.weight)
    down = property(lambda self: self.down_few.weight)


def _in_few_bits(source: Decoder, kind: str, dtype: torch.dtype) -> Decoder:
    """A decoder with its matrices in few bits. The embedding, which is looked up, is in `dtype`; norms and
    routers are shared with `source`."""
    model = copy.deepcopy(source, {id(t): t for t in [*source.parameters(), *source.buffers()]})
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not name.endswith("router"):
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, WeightOnly(layer.weight, layer.bias, kind, dtype))
        if isinstance(layer, MoE):
            for own in ("gate_up", "down"):
                setattr(layer, f"{own}_few", WeightOnly(layer._parameters.pop(own), None, kind, dtype))
            layer.__class__ = _FewBitExperts
    if model.head is None:
        model.head = WeightOnly(source.embedding.weight, None, kind, dtype)
    model.embedding = nn.Embedding.from_pretrained(source.embedding.weight.detach().to(dtype))
    return model


def _renew(model: Decoder, source: Decoder) -> None:
    """The weights of `source` as they are now, into the memory of its copy in few bits."""
    given = dict(source.named_parameters())
    for name, layer in model.named_modules():
        if isinstance(layer, WeightOnly):
            stacked = given.get(name.removesuffix("_few"))
            weight = given.get(f"{name}.weight", source.embedding.weight) if stacked is None else stacked
            layer.update(weight, given.get(f"{name}.bias"))
    with torch.no_grad():
        model.embedding.weight.copy_(source.embedding.weight)
