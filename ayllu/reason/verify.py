"""A verifier: the model's own backbone with a head that says how likely a solution is right.

Cobbe et al. 2021 (arXiv 2110.14168, section 4.2): a head on every token of a solution, trained to tell
whether the whole will be right, then best of N by the value at the last token. Telling a good solution
from a bad one is easier than making it, and a small verifier gains what a model several times as large
would (TinyGSM, Liu et al. 2023). How it is trained stands in train/verifier.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ayllu.errors import ModelFileDamagedError, ModelFileMissingError
from ayllu.files import write_bytes
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model
from ayllu.reason.loop import Answer
from ayllu.reason.transcript import Chat, Transcript
from ayllu.reason.vote import winner

HEAD = "verifier.safetensors"  # beside model.safetensors
_ROWS = 16  # solutions scored together


class Verifier(nn.Module):
    """A decoder and one linear head on its final states; the decoder's own head stays unused."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = nn.Linear(decoder.config.width, 1, device=decoder.embedding.weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens_BT: Tensor, document_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T) of "this will be right", after each token."""
        states_BTC = self.decoder.states(tokens_BT, document_BT=document_BT)
        values: Tensor = self.head(states_BTC.float())[..., 0]
        return values

    @torch.no_grad()
    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        """The probability that each solution is right, read at its last token."""
        device, found = self.head.weight.device, list[float]()
        for first in range(0, len(transcripts), _ROWS):
            rows = [transcript.ids() for transcript in transcripts[first : first + _ROWS]]
            tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64, device=device)
            for row, ids in enumerate(rows):  # padding comes after the last token and is never looked at
                tokens[row, : len(ids)] = torch.tensor(ids, device=device)
            last = torch.tensor([len(ids) - 1 for ids in rows], device=device)
            logits = self(tokens).gather(1, last[:, None])[:, 0]
            found += logits.sigmoid().tolist()
        return found


def save_head(verifier: Verifier, folder: Path) -> None:
    """Write the head beside the backbone's weights (train/sft.py: save_into)."""
    tensors = {
        name: weight.detach().contiguous().cpu() for name, weight in verifier.head.state_dict().items()
    }
    write_bytes(folder / HEAD, save(tensors))


def load_verifier(folder: Path, device: str = "cpu") -> Verifier:
    """A verifier from its folder. Raises ModelFileMissingError, ModelFileDamagedError, as load_model does."""
    path = folder / HEAD
    if not path.is_file():
        raise ModelFileMissingError(f"{folder} holds no verifier", fix=f"it should have a file {HEAD}")
    verifier = Verifier(load_model(folder, device=device))
    try:
        verifier.head.load_state_dict(load(path.read_bytes()))
    except Exception as error:
        raise ModelFileDamagedError(
            f"{path} is damaged or belongs to another model", why=str(error).splitlines()[0][:200]
        ) from error
    return verifier


def best_of(verifier: Verifier, answers: Sequence[Answer]) -> int:
    """The place of the answer with the highest score; those that were cut off come last."""
    assert answers
    scores = verifier.score([answer.transcript for answer in answers])
    return max(range(len(answers)), key=lambda n: (answers[n].finish_reason == "stop", scores[n], -n))


def weighted_vote(verifier: Verifier, chat: Chat, answers: Sequence[Answer]) -> int | None:
    """The place of the answer that wins when each vote weighs what its solution scores (Li et al. 2022,
    arXiv 2206.02336). None when none is whole."""
    texts = [chat.answer(a.transcript) if a.finish_reason == "stop" else None for a in answers]
    return winner(texts, verifier.score([answer.transcript for answer in answers]))
