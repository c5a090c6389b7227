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

from ayllu.errors import InputNotFoundError, ModelFileDamagedError, ModelFileMissingError, UsageError
from ayllu.files import write_bytes
from ayllu.model.config import ModelConfig
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model
from ayllu.reason.transcript import Transcript

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

    @property
    def config(self) -> ModelConfig:
        """The backbone's."""
        return self.decoder.config

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


def find_verifier(path: Path) -> Path:
    """The folder that holds a verifier: `path` itself, or where a run and a released model keep theirs.

    InputNotFoundError when there is no such path, ModelFileMissingError when it holds none.
    """
    if not path.is_dir():
        raise InputNotFoundError(f"there is no folder {path}", fix="name the folder of a verifier")
    for folder in (path, path / "verifier", path / "model" / "verifier", path / "verifier" / "model"):
        if (folder / HEAD).is_file():
            return folder
    raise ModelFileMissingError(
        f"{path} holds no verifier",
        why=f"there is no file {HEAD} in it",
        fix="make one: ayllu make with a table [verifier] in the recipe",
    )


def load_verifier(path: Path, device: str = "cpu") -> Verifier:
    """The verifier of a folder, a run or a released model.

    Raises what `find_verifier` does, and ModelFileMissingError, ModelFileDamagedError as load_model does.
    """
    folder = find_verifier(path)
    verifier = Verifier(load_model(folder, device=device))
    try:
        verifier.head.load_state_dict(load((folder / HEAD).read_bytes()))
    except Exception as error:
        raise ModelFileDamagedError(
            f"{folder / HEAD} is damaged or belongs to another model", why=str(error).splitlines()[0][:200]
        ) from error
    return verifier.requires_grad_(False).eval()


def check_fits(verifier: Verifier, vocabulary: int) -> None:
    """UsageError for a verifier whose tokens are not those of a model with so many pieces of vocabulary."""
    if verifier.config.vocab_size != vocabulary:
        raise UsageError(
            f"the verifier reads {verifier.config.vocab_size:,} pieces of vocabulary, the model writes "
            f"{vocabulary:,}",
            fix="use the verifier that was made from this model",
        )


def highest(scores: Sequence[float], whole: Sequence[bool]) -> int:
    """The place of the highest score; answers that were cut off come last, of equal ones the first leads."""
    return max(range(len(scores)), key=lambda n: (whole[n], scores[n], -n))
