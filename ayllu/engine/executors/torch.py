"""The reference executor: any model, any device, plain torch.

Keys and values live in slots: slot i of every layer belongs to the i-th running sequence. Slots are
kept dense (a freed slot is filled by the last one), so that a decode step works on one slice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ayllu.model.decoder import Decoder


class _LayerSlots:
    """Keys and values of one layer: (slots, kv heads, capacity, head size)."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.k_SGTD = torch.empty(0, kv_heads, 0, head_dim, dtype=dtype, device=device)
        self.v_SGTD = torch.empty(0, kv_heads, 0, head_dim, dtype=dtype, device=device)
        self.first = 0  # slot of the batch's first row
        self.index_B: Tensor = torch.empty(0, dtype=torch.long)  # write position while decoding
        self.longest = 0
        self.mask_B1T: Tensor | None = None  # None: prefill

    def grow(self, slots: int, capacity: int) -> None:
        """Make room, keeping what is stored."""
        for name in ("k_SGTD", "v_SGTD"):
            old = getattr(self, name)
            s, g, t, d = old.shape
            if slots > s or capacity > t:
                new = old.new_zeros(max(slots, s), g, max(capacity, t), d)
                new[:s, :, :t] = old
                setattr(self, name, new)

    def attend(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        """Store keys and values; attend causally (prefill) or to the whole slot (decode)."""
        b, t, h, d = q_BTHD.shape
        g = k_BTGD.shape[2]
        slots = slice(self.first, self.first + b)
        if self.mask_B1T is None:
            q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
            self.k_SGTD[slots, :, :t], self.v_SGTD[slots, :, :t] = k, v
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != g)
            return y.transpose(1, 2)
        rows = torch.arange(b, device=q_BTHD.device)
        self.k_SGTD[rows, :, self.index_B] = k_BTGD[:, 0]
        self.v_SGTD[rows, :, self.index_B] = v_BTGD[:, 0]
        k = self.k_SGTD[:b, :, : self.longest].flatten(0, 1)
        v = self.v_SGTD[:b, :, : self.longest].flatten(0, 1)
        # The heads of one key-value head form a small matrix, so that keys are read once.
        scores = torch.bmm(q_BTHD.reshape(b * g, h // g, d) * d**-0.5, k.transpose(1, 2))
        scores = scores.view(b, h, -1) + self.mask_B1T
        weights = scores.softmax(-1).view(b * g, h // g, -1)
        return torch.bmm(weights, v).view(b, 1, h, d)


class TorchExecutor:
    """Prefill and decode over dense slots."""

    def __init__(self, model: Decoder, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.device = model.embedding.weight.device
        self.lengths: list[int] = []  # tokens stored in each slot
        self.layers = [_LayerSlots(s.kv_heads, s.head_dim, dtype, self.device) for s in model.config.layers]

    def prefill(self, prompts: list[list[int]]) -> Tensor:
        """Give each prompt the next free slot -> logits after its last token, (len(prompts), V)."""
        longest = max(map(len, prompts))
        tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : len(prompt)] = torch.tensor(prompt)
        first = len(self.lengths)
        for layer in self.layers:
            layer.grow(first + len(prompts), _round_up(longest + 1))
            layer.first, layer.mask_B1T = first, None
        # Rows are padded on the right: causality keeps the padding away from every real token.
        states_BTC = self._states(tokens_BT.to(self.device), None)
        self.lengths += [len(p) for p in prompts]
        last_B = torch.tensor([len(p) - 1 for p in prompts], device=self.device)
        return self._logits(states_BTC[torch.arange(len(prompts), device=self.device), last_B])

    def decode(self, tokens: list[int]) -> Tensor:
        """One more token for every slot, in order -> logits (slots, V)."""
        index_B = torch.tensor(self.lengths, device=self.device)
        longest = max(self.lengths) + 1
        positions_T = torch.arange(longest, device=self.device)
        mask_B1T = torch.zeros(len(tokens), 1, longest, dtype=self.dtype, device=self.device)
        mask_B1T.masked_fill_((positions_T > index_B[:, None])[:, None], -torch.inf)
        for layer in self.layers:
            layer.grow(len(tokens), _round_up(longest))
            layer.first, layer.index_B, layer.longest, layer.mask_B1T = 0, index_B, longest, mask_B1T
        tokens_B1 = torch.tensor(tokens, device=self.device)[:, None]
        states_BTC = self._states(tokens_B1, index_B[:, None])
        self.lengths = [n + 1 for n in self.lengths]
        return self._logits(states_BTC[:, 0])

    def free(self, slot: int) -> None:
        """Drop a slot; the last one moves into its place."""
        last = len(self.lengths) - 1
        if slot != last:
            n = self.lengths[last]
            for layer in self.layers:
                layer.k_SGTD[slot, :, :n] = layer.k_SGTD[last, :, :n]
                layer.v_SGTD[slot, :, :n] = layer.v_SGTD[last, :, :n]
            self.lengths[slot] = n
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
