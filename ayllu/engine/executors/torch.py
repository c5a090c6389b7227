"""The reference executor: any model, any device, plain torch.

Keys and values live in slots: slot i of every layer belongs to the i-th running sequence. Slots are
kept dense (a freed slot is filled by the last one), so that a decode step works on one slice.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ayllu.model.attention import scaled_attention, visible
from ayllu.model.config import AttentionSpec, LatentSpec
from ayllu.model.decoder import Decoder
from ayllu.model.weights import cast_matrices
from ayllu.native import ops


class _LayerSlots:
    """Keys (slots, kv heads, key channels, capacity) and values (slots, kv heads, capacity, value channels)
    of one layer. Keys lie transposed, as the product with a query wants them. Latent attention stores no
    values: they are the first channels of its keys."""

    def __init__(self, spec: AttentionSpec | LatentSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, shape = spec, spec.cache
        self.shared = shape.shared
        self.k_SGDT = torch.empty(0, shape.kv_heads, shape.key_dim, 0, dtype=dtype, device=device)
        self.v_SGTE = torch.empty(0, shape.kv_heads, 0, shape.value_dim, dtype=dtype, device=device)
        self.first = 0  # prefill: slot of the batch's first row
        self.lengths_B: Tensor | None = None  # decode: tokens stored before this one; None: prefill
        self.longest = 0
        # The kernel for decoding knows full causal attention with the usual scale.
        self.plain = (
            isinstance(spec, AttentionSpec)
            and (spec.window, spec.chunk, spec.scale, spec.softcap) == (None,) * 4
        )

    def grow(self, slots: int, capacity: int) -> None:
        """Make room, keeping what is stored."""
        s, g, d, t = self.k_SGDT.shape
        e = self.v_SGTE.shape[3]
        if slots > s or capacity > t:
            k_SGDT = self.k_SGDT.new_zeros(max(slots, s), g, d, max(capacity, t))
            v_SGTE = self.v_SGTE.new_zeros(max(slots, s), g, max(capacity, t), e)
            k_SGDT[:s, :, :, :t], v_SGTE[:s, :, :t] = self.k_SGDT, self.v_SGTE
            self.k_SGDT, self.v_SGTE = k_SGDT, v_SGTE

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first `length` entries over another's."""
        self.k_SGDT[target, :, :, :length] = self.k_SGDT[source, :, :, :length]
        self.v_SGTE[target, :, :length] = self.v_SGTE[source, :, :length]

    def attend(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGE: Tensor | None) -> Tensor:
        """Store keys and values; attend causally (prefill) or to the whole slot (decode)."""
        if self.lengths_B is None:
            return self._prefill(q_BTHD, k_BTGD, v_BTGE)
        b, _, h, d = q_BTHD.shape
        g = k_BTGD.shape[2]
        if v_BTGE is not None and self.plain and ops.decoding_usable(q_BTHD):
            q_SHD, k_SGD, v_SGD = (x[:, 0] for x in (q_BTHD, k_BTGD, v_BTGE))
            y_SHD = ops.decode_attention(q_SHD, k_SGD, v_SGD, self.k_SGDT, self.v_SGTE, self.lengths_B)
            return y_SHD[:, None]
        rows = torch.arange(b, device=q_BTHD.device)
        self.k_SGDT[rows, :, :, self.lengths_B] = k_BTGD[:, 0]
        k = self.k_SGDT[:b, :, :, : self.longest].flatten(0, 1)
        if v_BTGE is None:
            v = k[:, : self.shared].transpose(1, 2)
        else:
            self.v_SGTE[rows, :, self.lengths_B] = v_BTGE[:, 0]
            v = self.v_SGTE[:b, :, : self.longest].flatten(0, 1)
        # The heads of one key-value head form a small matrix, so that keys are read once.
        scores_BHT = torch.bmm(q_BTHD.reshape(b * g, h // g, d) * self.spec.score_scale, k).view(b, h, -1)
        if self.spec.softcap is not None:
            scores_BHT = self.spec.softcap * torch.tanh(scores_BHT / self.spec.softcap)
        keys_T = torch.arange(self.longest, device=q_BTHD.device)
        seen_BT = visible(self.lengths_B[:, None], keys_T, self.spec.window, self.spec.chunk)
        weights = scores_BHT.masked_fill(~seen_BT[:, None], -torch.inf).softmax(-1).view(b * g, h // g, -1)
        return torch.bmm(weights, v).view(b, 1, h, -1)

    def _prefill(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGE: Tensor | None) -> Tensor:
        b, t = q_BTHD.shape[:2]
        slots = slice(self.first, self.first + b)
        self.k_SGDT[slots, :, :, :t] = k_BTGD.permute(0, 2, 3, 1)
        if v_BTGE is None:
            v_BTGE = k_BTGD[..., : self.shared]
        else:
            self.v_SGTE[slots, :, :t] = v_BTGE.transpose(1, 2)
        mask_B1TT, spec = None, self.spec
        if spec.window is not None or spec.chunk is not None:
            index_T = torch.arange(t, device=q_BTHD.device)
            mask_B1TT = visible(index_T[:, None], index_T, spec.window, spec.chunk)[None, None]
        return scaled_attention(q_BTHD, k_BTGD, v_BTGE, mask_B1TT, spec.score_scale, spec.softcap)


class TorchExecutor:
    """Prefill and decode over dense slots."""

    def __init__(self, model: Decoder, dtype: torch.dtype) -> None:
        self.source, self.dtype = model, dtype
        self.device = model.embedding.weight.device
        self.lengths: list[int] = []  # tokens stored in each slot
        self.layers = [_LayerSlots(spec, dtype, self.device) for spec in model.config.attentions]
        self.model = model
        self.refresh()

    def refresh(self) -> None:
        """Take over the weights as they are now (they are shared, unless the type differs)."""
        if self.source.embedding.weight.dtype == self.dtype:
            return
        if self.model is self.source:
            self.model = cast_matrices(copy.deepcopy(self.source).requires_grad_(False), self.dtype)
            return
        with torch.no_grad():
            for mine, given in zip(self.model.parameters(), self.source.parameters(), strict=True):
                mine.copy_(given)

    def prefill(self, prompts: list[list[int]]) -> Tensor:
        """Give each prompt the next free slot -> logits after its last token, (len(prompts), V)."""
        longest = max(map(len, prompts))
        tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : len(prompt)] = torch.tensor(prompt)
        first = len(self.lengths)
        for layer in self.layers:
            layer.grow(first + len(prompts), _round_up(longest + 1))
            layer.first, layer.lengths_B = first, None
        # Rows are padded on the right: causality keeps the padding away from every real token.
        states_BTC = self._states(tokens_BT.to(self.device), None)
        self.lengths += [len(p) for p in prompts]
        last_B = torch.tensor([len(p) - 1 for p in prompts], device=self.device)
        return self._logits(states_BTC[torch.arange(len(prompts), device=self.device), last_B])

    def decode(self, tokens: list[int]) -> Tensor:
        """One more token for every slot, in order -> logits (slots, V)."""
        lengths_B = torch.tensor(self.lengths, device=self.device)
        longest = max(self.lengths) + 1
        for layer in self.layers:
            layer.grow(len(tokens), _round_up(longest))
            layer.lengths_B, layer.longest = lengths_B, longest
        tokens_B1 = torch.tensor(tokens, device=self.device)[:, None]
        states_BTC = self._states(tokens_B1, lengths_B[:, None])
        self.lengths = [n + 1 for n in self.lengths]
        return self._logits(states_BTC[:, 0])

    def free(self, slot: int) -> None:
        """Drop a slot; the last one moves into its place."""
        last = len(self.lengths) - 1
        if slot != last:
            for layer in self.layers:
                layer.move(last, slot, self.lengths[last])
            self.lengths[slot] = self.lengths[last]
        self.lengths.pop()

    @torch.inference_mode()
    def _states(self, tokens_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        return self.model.states(tokens_BT, positions_BT=positions_BT, caches=self.layers, dtype=self.dtype)

    @torch.inference_mode()
    def _logits(self, states_BC: Tensor) -> Tensor:
        return self.model.logits(states_BC).float()


def _round_up(n: int) -> int:
    """Capacity in steps of 64, so that growing is rare."""
    return -(-n // 64) * 64
