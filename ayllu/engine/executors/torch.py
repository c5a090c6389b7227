"""The reference executor: any family, any device, plain torch over the paged cache.

All tokens of a step pass the matrix products together, whoever they belong to. Only attention knows of
sequences: those with one new token (decoding) and those with a stretch (prompts, proposals to verify) form
groups of like size, whose blocks are gathered side by side and padded.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.batch import BLOCK, Batch
from ayllu.errors import ResourceError
from ayllu.model.attention import scaled_attention, visible
from ayllu.model.config import AttentionSpec, LatentSpec, ModelConfig
from ayllu.model.decoder import Decoder
from ayllu.model.rope import DEPENDS_ON_LENGTH
from ayllu.model.weights import cast_matrices


@dataclass(frozen=True)
class _Group:
    """Sequences of like size. `rows_SQ`: their tokens' places in the batch, padded; `real_N` those of them
    that aren't padding (indices into S x Q), `places_N` their places in the batch; `tables_SW` their blocks;
    `positions_SQ` of the tokens; `fresh`: whole texts from position 0."""

    rows_SQ: Tensor
    real_N: Tensor
    places_N: Tensor
    tables_SW: Tensor
    positions_SQ: Tensor
    fresh: bool


class _LayerCache:
    """Keys (blocks, BLOCK, kv heads, key channels) and values of one layer. Latent attention stores no
    values: they are the first channels of its keys."""

    def __init__(self, spec: AttentionSpec | LatentSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, shape = spec, spec.cache
        self.shared = shape.shared
        self.k_NBGD = torch.zeros(0, BLOCK, shape.kv_heads, shape.key_dim, dtype=dtype, device=device)
        self.v_NBGE = torch.zeros(0, BLOCK, shape.kv_heads, shape.value_dim, dtype=dtype, device=device)
        self.slots_T = torch.empty(0)
        self.groups: list[_Group] = []
        self.masks: dict[tuple[int, int | None, int | None], Tensor] = {}  # shared by the layers of a step

    def grow(self, blocks: int) -> None:
        # Zeros: a place that is masked still takes part in the product, and 0 times NaN is NaN.
        for name in ("k_NBGD", "v_NBGE"):
            old = getattr(self, name)
            new = old.new_zeros(blocks, *old.shape[1:])
            new[: len(old)] = old
            setattr(self, name, new)

    def attend(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGE: Tensor | None) -> Tensor:
        """See `model.attention.LayerCache`; B is 1, T all tokens of the step."""
        q_THD, k_TGD = q_BTHD[0], k_BTGD[0]
        self.k_NBGD.view(-1, *k_TGD.shape[1:])[self.slots_T] = k_TGD
        if v_BTGE is not None:
            self.v_NBGE.view(-1, *v_BTGE.shape[2:])[self.slots_T] = v_BTGE[0]
        channels = self.shared or self.v_NBGE.shape[-1]
        y_THE = q_THD.new_empty(*q_THD.shape[:2], channels)
        for index, group in enumerate(self.groups):
            y_SQHE = self._group(index, group, q_THD[group.rows_SQ])
            y_THE[group.places_N] = y_SQHE.flatten(0, 1)[group.real_N]
        return y_THE[None]

    def _group(self, index: int, group: _Group, q_SQHD: Tensor) -> Tensor:
        spec, (s, q, h, d) = self.spec, q_SQHD.shape
        k_SKGD = self.k_NBGD[group.tables_SW].flatten(1, 2)
        if self.shared:
            v_SKGE = k_SKGD[..., : self.shared]
        else:
            v_SKGE = self.v_NBGE[group.tables_SW].flatten(1, 2)
        if group.fresh and spec.window is None and spec.chunk is None:
            k_SQGD, v_SQGE = k_SKGD[:, :q], v_SKGE[:, :q]
            return scaled_attention(q_SQHD, k_SQGD, v_SQGE, None, spec.score_scale, spec.softcap)
        mask_S1QK = self._mask(index, group)
        if q > 1:
            return scaled_attention(q_SQHD, k_SKGD, v_SKGE, mask_S1QK, spec.score_scale, spec.softcap)
        # The heads of one key-value head form a small matrix, so that keys are read once.
        g = k_SKGD.shape[2]
        # Scores in float32, as all other ways keep them: in bfloat16 one of 16 is known to a sixteenth.
        q_SGRD = q_SQHD.reshape(s, g, h // g, d).float() * spec.score_scale
        scores_SGRK = q_SGRD @ k_SKGD.permute(0, 2, 3, 1).float()
        if spec.softcap is not None:
            scores_SGRK = spec.softcap * torch.tanh(scores_SGRK / spec.softcap)
        weights_SGRK = scores_SGRK.masked_fill(~mask_S1QK, -torch.inf).softmax(-1)
        return (weights_SGRK.to(v_SKGE.dtype) @ v_SKGE.transpose(1, 2)).view(s, 1, h, -1)

    def _mask(self, index: int, group: _Group) -> Tensor:
        key = (index, self.spec.window, self.spec.chunk)
        if key not in self.masks:
            keys_K = torch.arange(group.tables_SW.shape[1] * BLOCK, device=self.k_NBGD.device)
            seen_SQK = visible(group.positions_SQ[:, :, None], keys_K, self.spec.window, self.spec.chunk)
            self.masks[key] = seen_SQK[:, None]
        return self.masks[key]


class TorchExecutor:
    """See `Executor`. Weights of `dtype` are shared with the model; of another, they are copies that
    `refresh` brings up to date."""

    def __init__(self, model: Decoder, dtype: torch.dtype = torch.float32) -> None:
        self.source, self.model, self.dtype = model, model, dtype
        self.config: ModelConfig = model.config
        self.device = model.embedding.weight.device
        self.vocab_size = model.config.vocab_size
        self.name = f"torch: {self.device.type}, {str(dtype).removeprefix('torch.')}"
        self.layers = [_LayerCache(spec, dtype, self.device) for spec in model.config.attentions]
        per_token = sum(spec.cache.elements for spec in model.config.attentions)
        self.block_bytes = BLOCK * per_token * dtype.itemsize
        self._one_by_one = depends_on_length(model.config)
        self.refresh()

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, the layout of a block and the arithmetic."""
        digest = hashlib.sha256(f"{self.config}{self.name}{torch.__version__}".encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(memoryview(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
        return digest.hexdigest()

    def refresh(self) -> None:
        """Take over the weights as they are now (they are shared, unless the type differs)."""
        if self.source.embedding.weight.dtype == self.dtype:
            return
        if self.model is self.source:
            self.model = cast_matrices(copy.deepcopy(self.source).requires_grad_(False), self.dtype)
            return
        with torch.no_grad():
            for mine, given in zip(_tensors(self.model), _tensors(self.source), strict=True):
                mine.copy_(given)

    def reserve(self, blocks: int) -> None:
        """Make room for this many blocks, keeping what is stored. Raises ResourceError."""
        try:
            for layer in self.layers:
                if blocks > len(layer.k_NBGD):
                    layer.grow(blocks)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            raise ResourceError(
                f"no memory for a cache of {blocks * self.block_bytes / 1e9:.1f} GB",
                why=str(error)[:200],
                fix="give the engine a smaller cache",
            ) from error

    @torch.inference_mode()
    def step(self, batch: Batch) -> Tensor:
        """Store the keys and values of all tokens -> logits_LV (float32) of the wanted ones."""
        if self._one_by_one and batch.sequence_T[0] != batch.sequence_T[-1]:
            return torch.cat([self.step(part) for part in _parts(batch)])
        position_T = batch.positions_T.astype(np.int64)
        slot_T = batch.tables_SW[batch.sequence_T, position_T // BLOCK] * np.int64(BLOCK) + position_T % BLOCK
        slots_T = torch.from_numpy(slot_T).to(self.device)
        groups = _groups(batch, self.device)
        masks: dict[tuple[int, int | None, int | None], Tensor] = {}
        for layer in self.layers:
            layer.slots_T, layer.groups, layer.masks = slots_T, groups, masks
        tokens_BT = torch.from_numpy(batch.tokens_T.astype(np.int64)).to(self.device)[None]
        positions_BT = torch.from_numpy(position_T).to(self.device)[None]
        states_BTC = self.model.states(
            tokens_BT, positions_BT=positions_BT, caches=self.layers, dtype=self.dtype
        )
        wanted_L = torch.from_numpy(batch.wanted_L.astype(np.int64)).to(self.device)
        return self.model.exact_logits(states_BTC[0, wanted_L])

    def export_block(self, block: int) -> Tensor:
        """The bytes of a block (uint8, on the CPU)."""
        parts = [part for layer in self.layers for part in (layer.k_NBGD[block], layer.v_NBGE[block])]
        return torch.cat([part.cpu().flatten().view(torch.uint8) for part in parts])

    def import_block(self, block: int, data: Tensor) -> None:
        """Put exported bytes into a block."""
        start = 0
        for layer in self.layers:
            for target in (layer.k_NBGD[block], layer.v_NBGE[block]):
                size = target.numel() * target.element_size()
                target.copy_(data[start : start + size].clone().view(self.dtype).view(target.shape))
                start += size

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's content."""
        for layer in self.layers:
            layer.k_NBGD[target] = layer.k_NBGD[source]
            layer.v_NBGE[target] = layer.v_NBGE[source]


def depends_on_length(config: ModelConfig) -> bool:
    """Whether rotary angles change with the length of the text: then sequences can't share a step, nor
    blocks of other texts, nor be read in pieces."""
    scalings = [spec.rope.scaling for spec in config.attentions if spec.rope is not None]
    return any(scaling is not None and scaling.kind in DEPENDS_ON_LENGTH for scaling in scalings)


def _groups(batch: Batch, device: torch.device) -> list[_Group]:
    """Sequences by the size of their stretch and of their context, so that little is padded."""
    sequence_T = batch.sequence_T
    first_S = np.flatnonzero(np.r_[True, sequence_T[1:] != sequence_T[:-1]])
    count_S = np.diff(np.r_[first_S, len(sequence_T)])
    start_S = batch.positions_T[first_S].astype(np.int64)
    blocks_S = (start_S + count_S - 1) // BLOCK + 1
    # Decoding: contexts within a factor of four of each other. Stretches: both within a factor of two;
    # whole texts apart, which need no mask.
    doublings_S = np.ceil(np.log2(blocks_S)).astype(np.int64)
    stretch_S = np.ceil(np.log2(count_S)).astype(np.int64)
    fresh_S = (count_S > 1) & (start_S == 0)
    kind_S = np.where(count_S == 1, doublings_S // 2, 1000 + 100 * stretch_S + doublings_S)
    kind_S = np.where(fresh_S, 100_000 + stretch_S, kind_S)
    groups = []
    for kind in np.unique(kind_S):
        chosen = np.flatnonzero(kind_S == kind)
        steps_Q = np.arange(count_S[chosen].max())
        real_SQ = steps_Q < count_S[chosen, None]
        steps_SQ = np.minimum(steps_Q, count_S[chosen, None] - 1)  # padding repeats the last token
        tables_SW = batch.tables_SW[sequence_T[first_S[chosen]], : blocks_S[chosen].max()].astype(np.int64)
        rows_SQ, real_N = first_S[chosen, None] + steps_SQ, np.flatnonzero(real_SQ)
        arrays = (rows_SQ, real_N, rows_SQ.ravel()[real_N], tables_SW, start_S[chosen, None] + steps_SQ)
        rows, real, places, tables, positions = (torch.from_numpy(a).to(device) for a in arrays)
        groups.append(_Group(rows, real, places, tables, positions, fresh=bool(kind >= 100_000)))
    return groups


def _parts(batch: Batch) -> list[Batch]:
    """The batch's sequences, each as a batch of its own."""
    border = np.flatnonzero(np.diff(batch.sequence_T)) + 1
    parts = []
    for tokens in np.split(np.arange(len(batch.tokens_T)), border):
        wanted_L = batch.wanted_L[(batch.wanted_L >= tokens[0]) & (batch.wanted_L <= tokens[-1])]
        parts.append(
            Batch(
                batch.tokens_T[tokens],
                batch.positions_T[tokens],
                batch.sequence_T[tokens],
                batch.tables_SW,
                wanted_L - np.int32(tokens[0]),
            )
        )
    return parts


def _tensors(model: Decoder) -> Iterator[Tensor]:
    """All that a model holds: also buffers, such as a router's choice of experts."""
    return itertools.chain(model.parameters(), model.buffers())
