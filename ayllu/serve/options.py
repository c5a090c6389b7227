"""How an engine runs, as a person says it on the command line: the flags that run, chat and serve share; and
how one answer is chosen out of several.

Nothing here imports torch: the words are parsed before a model is thought of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ayllu.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", re.IGNORECASE)
MOST_ANSWERS = 128  # to one question
HOT = 0.7  # their temperature, unless told (Wang et al. 2022, section 3.1)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def bytes_of(size: str) -> int:
    """Bytes of "8GB", "500 MB", "1.5GiB" or a plain number. UsageError for anything else, and for none."""
    found = _SIZE.fullmatch(size.strip())
    if found is not None:
        number, prefix, binary = found.groups()
        count = float(number) * (1024 if binary else 1000) ** _POWERS[prefix.lower()]
        if 1 <= count < 2**62:
            return int(count)
    raise UsageError(f"{size[:40]!r} is no size", fix="write it like 500MB or 8GB")


@dataclass(frozen=True)
class EngineOptions:
    """What two sensible people would choose differently; see `Engine`. None: it wasn't said.

    Parameters
    ----------
    weights
        float32, bfloat16, int8 or int4 (default: packed ones as they are, others in
        float32, on a GPU bfloat16).
    cache
        How keys and values are kept: float32, bfloat16 or int8 (default: follows the weights).
    cache_folder
        Keep what was read in this folder: conversations go on after a restart without being read again.
    cache_folder_size
        At most so much there; what wasn't used for longest goes first.
    speculate
        Guess several tokens at once: ngram (from the text itself), or a smaller MODEL of the same vocabulary
        (default: none).
    device
        cpu, or cuda for a GPU (default: cpu).
    """

    weights: str | None = None
    cache: str | None = None
    cache_folder: Path | None = None
    cache_folder_size: str = "8GB"
    speculate: str | None = None
    device: str | None = None

    def said(self) -> EngineOptions:
        """With what is usual where nothing was said."""
        return replace(
            self,
            weights="auto" if self.weights is None else self.weights,
            cache="auto" if self.cache is None else self.cache,
            speculate=None if self.speculate == "none" else self.speculate,
            device="cpu" if self.device is None else self.device,
        )

    def arguments(self) -> dict[str, Any]:
        """For `Engine`. UsageError for a size or a device that is none."""
        said = self.said()
        return {
            "weights": said.weights,
            "cache": said.cache,
            "cache_folder": said.cache_folder,
            "cache_folder_bytes": bytes_of(said.cache_folder_size),
            "speculate": said.speculate,
            "device": checked_device(str(said.device)),
        }


def checked_device(device: str, *, auto: bool = False) -> str:
    """`device`, or UsageError for what is none. `auto`: whether that may be said."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?" + ("|auto" if auto else ""), device):
        known = "auto, cpu, cuda or cuda:1" if auto else "cpu, cuda or cuda:1"
        raise UsageError(f"there is no device {device[:40]!r}", fix=f"choose {known}")
    return device


@dataclass(frozen=True)
class ChoiceOptions:
    """One answer out of several.

    Parameters
    ----------
    votes
        Answer so many times and give the answer that most agree on; with a verifier votes weigh its scores.
    best_of
        Answer so many times and give the one that the verifier scores highest.
    verifier
        A verifier's folder, or a run or model that has one.
    """

    votes: int | None = None
    best_of: int | None = None
    verifier: Path | None = None

    def answers(self, temperature: float | None) -> int:
        """How many to give; 0 when nothing is to be chosen. UsageError for options that contradict."""
        k, name = (self.best_of, "--best-of") if self.best_of is not None else (self.votes, "--votes")
        if k is None:
            if self.verifier is not None:
                raise UsageError(
                    "a verifier chooses among several answers, and one was asked for",
                    fix="add --best-of 8 or --votes 8",
                )
            return 0
        if self.votes is not None and self.best_of is not None:
            raise UsageError("--votes and --best-of are two ways to choose", fix="give one of them")
        if not 2 <= k <= MOST_ANSWERS:
            raise UsageError(f"{name} {k} is not possible", fix=f"give 2 to {MOST_ANSWERS}")
        if self.best_of is not None and self.verifier is None:
            raise UsageError(
                "--best-of needs somebody who knows which is best",
                fix="add --verifier FOLDER, or take --votes",
            )
        if temperature == 0:
            raise UsageError(
                f"{name} {k} at temperature 0 would be the same answer every time",
                fix=f"leave --temperature out (it is {HOT} then), or give one above 0",
            )
        return k
