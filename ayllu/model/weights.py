"""Model folders in and out: config.json and model.safetensors, nothing that can run code.

Loading checks everything before a weight is used: the files exist, the header parses, every tensor
has the shape and type that the config asks for, and nothing is NaN.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ayllu.errors import BadFileError, ModelFileDamagedError, ModelFileMissingError
from ayllu.files import read_json, write_bytes, write_json
from ayllu.model.config import ModelConfig
from ayllu.model.decoder import Decoder
from ayllu.model.families import qwen3

_COPY_AGAIN = "copy the whole model folder again"


def save_model(model: Decoder, folder: Path, *, bos: int, eos: int, pad: int) -> None:
    """Write config.json and model.safetensors (float32) into `folder`."""
    write_json(folder / "config.json", qwen3.config_to_hf(model.config, bos=bos, eos=eos, pad=pad))
    tensors = qwen3.weights_to_hf(model.config, model.state_dict())
    tensors = {name: tensor.float().cpu().clone() for name, tensor in sorted(tensors.items())}
    write_bytes(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def load_config(folder: Path) -> ModelConfig:
    """The config of a model folder. Errors: ModelFileMissingError, ModelFileDamagedError."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFileMissingError(f"{path} is missing", fix=_COPY_AGAIN)
    try:
        values = read_json(path)
    except BadFileError as error:
        raise ModelFileDamagedError(f"{path} is damaged", why=error.why, fix=_COPY_AGAIN) from error
    architectures = values.get("architectures") if isinstance(values, dict) else None
    if architectures != [qwen3.ARCHITECTURE]:
        raise ModelFileDamagedError(
            f"{path} names the architecture {architectures}", why=f"only {qwen3.ARCHITECTURE} is known"
        )
    return qwen3.config_from_hf(values)


def load_model(folder: Path | str, *, dtype: str = "float32", device: str = "cpu") -> Decoder:
    """The Decoder of a model folder. Errors: ModelFileMissingError, ModelFileDamagedError."""
    folder = Path(folder)
    config = load_config(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ModelFileMissingError(f"{path} is missing", fix=_COPY_AGAIN)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileDamagedError(f"{path} is damaged", why=str(error), fix=_COPY_AGAIN) from error
    state = qwen3.weights_from_hf(config, tensors)
    with torch.device("meta"):
        model = Decoder(config)
    for name, weight in model.named_parameters():
        given = state[name]
        if given.shape != weight.shape or not given.is_floating_point():
            raise ModelFileDamagedError(
                f"{path}: {name} is {tuple(given.shape)} {given.dtype}, the config asks for {tuple(weight.shape)}",
                fix=_COPY_AGAIN,
            )
        if not torch.isfinite(given).all():
            raise ModelFileDamagedError(f"{path}: {name} holds NaN or infinity", fix=_COPY_AGAIN)
    model = Decoder(config)  # the rotary tables are not stored; a real device makes them
    model.load_state_dict({name: state[name].float() for name, _ in model.named_parameters()})
    return model.to(device=device, dtype=getattr(torch, dtype)).requires_grad_(False).eval()
