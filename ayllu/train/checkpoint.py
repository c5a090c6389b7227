"""Checkpoints: whole or absent, two at a time, believed only after their hashes agree.

A checkpoint is a folder `step-000120` with weights, the optimizer's memory and state.json, which
holds the hashes of the two and of its own content. It is filled under a temporary name, synced and
renamed, so that a kill at any moment leaves either no new checkpoint or a whole one. The one before
is kept until the next, in case the newest is damaged afterwards.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from ayllu.errors import AylluError, BadFileError, CheckpointDamagedError
from ayllu.files import new_folder, read_json, sha256_file, sha256_json, write_bytes, write_json
from ayllu.model.decoder import Decoder
from ayllu.progress import Progress
from ayllu.train.optim import Optimizer

KEPT = 2
_PARTS = ("weights.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint restores besides weights and optimizer."""

    step: int  # steps that are done
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, model: Decoder, optimizer: Optimizer, state: dict[str, Any]
) -> None:
    """Write `folder/step-NNNNNN` and drop all but the newest two."""
    with new_folder(folder / f"step-{step:06d}") as inside:
        weights = {name: w.detach().contiguous() for name, w in model.named_parameters()}
        for name, tensors in zip(_PARTS, (weights, optimizer.tensors()), strict=True):
            write_bytes(inside / name, save(tensors))
        hashes = {name: sha256_file(inside / name) for name in _PARTS}
        about = {"step": step, "optimizer_steps": optimizer.steps, "sha256": hashes, "state": state}
        write_json(inside / "state.json", {"about": about, "sha256": sha256_json(about)})
    for old in sorted(folder.glob("step-*"), key=_step)[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, model: Decoder, optimizer: Optimizer, progress: Progress
) -> Checkpoint | None:
    """Restore the newest whole checkpoint in place -> what it says, or None when there is none.

    A damaged one is named on the terminal and passed over. CheckpointDamagedError when all are.
    """
    found = sorted(folder.glob("step-*"), key=_step, reverse=True)
    for path in found:
        try:
            about, parts = _read(path)
            weights, memory = dict(model.named_parameters()), optimizer.tensors()
            _check_names(parts[0], weights)
            _check_names(parts[1], memory)
        except (AylluError, OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            progress.say(f"checkpoint {path.name} is damaged ({reason}); trying the one before it")
            continue
        _copy(parts[0], weights)
        _copy(parts[1], memory)
        optimizer.steps = about["optimizer_steps"]
        return Checkpoint(about["step"], about["state"])
    if found:
        raise CheckpointDamagedError(
            f"no checkpoint in {folder} is whole", fix=f"delete {folder} to start this stage again"
        )
    return None


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    whole = read_json(path / "state.json")
    about: dict[str, Any] = whole["about"]
    if sha256_json(about) != whole["sha256"]:
        raise BadFileError("the hash of state.json differs")
    parts = []
    for name in _PARTS:
        data = (path / name).read_bytes()
        if sha256_file(path / name) != about["sha256"][name]:
            raise BadFileError(f"the hash of {name} differs")
        parts.append(load(data))
    return about, parts


def _check_names(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    if {n: t.shape for n, t in source.items()} != {n: t.shape for n, t in target.items()}:
        raise BadFileError("it belongs to another model")


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.detach().copy_(source[name])


def _step(path: Path) -> int:
    """The number in a checkpoint's name (by name, a millionth step would come before the one before it)."""
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1
