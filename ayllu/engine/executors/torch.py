"""The reference executor: any model, any device, plain torch.

Keys and values live in slots: slot i of every layer belongs to the i-th running sequence. Slots are
kept dense (a freed slot is filled by the last one), so that a decode step works on one slice.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from ayllu.model.decoder import Decoder
from ayllu.model.weights import cast_matrices
from ayllu.native import ops


class _LayerSlots:
    """Keys (slots, kv heads, head size, capacity) and values (slots, kv heads, capacity, head size)
    of one layer. Keys lie transposed, as the product with a query wants them."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.k_SGDT = torch.empty(0, kv_heads, head_dim, 0, dtype=dtype, device=device)
        self.v_SGTD = torch.empty(0, kv_heads, 0, head_dim, dtype=dtype, device=device)
        self.first = 0  # prefill: slot of the batch's first row
        self.lengths_B: Tensor | None = None  # decode: tokens stored before this one; None: prefill
        self.longest = 0

    def grow(self, slots: int, capacity: int) -> None:
        """Make room, keeping what is stored."""
        s, g, t, d = self.v_SGTD.shape
        if slots > s or capacity > t:
            k_SGDT = self.k_SGDT.new_zeros(max(slots, s), g, d, max(capacity, t))
            v_SGTD = self.v_SGTD.new_zeros(max(slots, s), g, max(capacity, t), d)
            k_SGDT[:s, :, :, :t], v_SGTD[:s, :, :t] = self.k_SGDT, self.v_SGTD
            self.k_SGDT, self.v_SGTD = k_SGDT, v_SGTD

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first `length` entries over another's."""
        self.k_SGDT[target, :, :, :length] = self.k_SGDT[source, :, :, :length]
        self.v_SGTD[target, :, :length] = self.v_SGTD[source, :, :length]

    def attend(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        """Store keys and values; attend causally (prefill) or to the whole slot (decode)."""
        b, t, h, d = q_BTHD.shape
        g = k_BTGD.shape[2]
        if self.lengths_B is None:
            slots = slice(self.first, self.first + b)
            q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
            self.k_SGDT[slots, :, :, :t], self.v_SGTD[slots, :, :t] = k.transpose(2, 3), v
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != g)
            return y.transpose(1, 2)
        if ops.decoding_usable(q_BTHD):
            q_SHD, k_SGD, v_SGD = (x[:, 0] for x in (q_BTHD, k_BTGD, v_BTGD))
            return ops.decode_attention(q_SHD, k_SGD, v_SGD, self.k_SGDT, self.v_SGTD, self.lengths_B)[
                :, None
            ]
        rows = torch.arange(b, device=q_BTHD.device)
        self.k_SGDT[rows, :, :, self.lengths_B] = k_BTGD[:, 0]
        self.v_SGTD[rows, :, self.lengths_B] = v_BTGD[:, 0]
        k = self.k_SGDT[:b, :, :, : self.longest].flatten(0, 1)
        v = self.v_SGTD[:b, :, : self.longest].flatten(0, 1)
        # The heads of one key-value head form a small matrix, so that keys are read once.
        scores = torch.bmm(q_BTHD.reshape(b * g, h // g, d) * d**-0.5, k).view(b, h, -1)
        later_BT = torch.arange(self.longest, device=q_BTHD.device) > self.lengths_B[:, None]
        weights = scores.masked_fill(later_BT[:, None], -torch.inf).softmax(-1).view(b * g, h // g, -1)
        return torch.bmm(weights, v).view(b, 1, h, d)


class TorchExecutor:
    """Prefill and decode over dense slots."""

    def __init__(self, model: Decoder, dtype: torch.dtype) -> None:
        self.source, self.dtype = model, dtype
        self.device = model.embedding.weight.device
        self.lengths: list[int] = []  # tokens stored in each slot
        self.layers = [_LayerSlots(s.kv_heads, s.head_dim, dtype, self.device) for s in model.config.layers]
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
        return F.linear(states_BC, self.model.head_weight.to(self.dtype)).float()


def _round_up(n: int) -> int:
    """Capacity in steps of 64, so that growing is rare."""
    return -(-n // 64) * 64
