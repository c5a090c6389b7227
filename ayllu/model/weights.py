"""Model folders in and out: config.json and model.safetensors, nothing that can run code.

Loading checks everything before a weight is used: the files exist, the header parses, there are
exactly the tensors that the config asks for, with their shapes and types, and nothing is NaN.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ayllu.errors import BadFileError, ModelFileDamagedError, ModelFileMissingError, RequestError
from ayllu.files import read_json, write_bytes, write_json
from ayllu.model.config import ModelConfig
from ayllu.model.decoder import Decoder
from ayllu.model.families import qwen3

_COPY_AGAIN = "copy the whole model folder again"
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    # The parser gives up on endless digits with ValueError and on endless nesting with RecursionError.
    except (BadFileError, ValueError, RecursionError, OSError) as error:
        why = error.why if isinstance(error, BadFileError) else str(error)
        raise ModelFileDamagedError(f"{path} is damaged", why=why, fix=_COPY_AGAIN) from error
    architectures = values.get("architectures") if isinstance(values, dict) else None
    if architectures != [qwen3.ARCHITECTURE]:
        raise ModelFileDamagedError(
            f"{path} names the architecture {str(architectures)[:200]}",
            why=f"only {qwen3.ARCHITECTURE} is known",
        )
    return qwen3.config_from_hf(values)


def load_model(folder: Path | str, *, dtype: str = "float32", device: str = "cpu") -> Decoder:
    """The Decoder of a model folder, its matrices in `dtype` (norms and rotary tables stay in float32).

    Errors: ModelFileMissingError, ModelFileDamagedError; RequestError for an unknown `dtype`.
    """
    if dtype not in _TYPES:
        raise RequestError(f"dtype = {dtype!r} is not one of {', '.join(_TYPES)}")
    folder = Path(folder)
    config = load_config(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ModelFileMissingError(f"{path} is missing", fix=_COPY_AGAIN)
    try:
        tensors = load_file(path)
    # Besides its own error the library lets a KeyError out for types that torch doesn't have, and
    # UnicodeError and the like for broken names.
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
        raise ModelFileDamagedError(f"{path} is damaged", why=str(error), fix=_COPY_AGAIN) from error
    _check_tensors(path, config, tensors)
    state = qwen3.weights_from_hf(config, {name: tensor.float() for name, tensor in tensors.items()})
    model = Decoder(config)
    model.load_state_dict(state)
    return cast_matrices(model, _TYPES[dtype]).to(device).requires_grad_(False).eval()


def cast_matrices(model: Decoder, dtype: torch.dtype) -> Decoder:
    """Matrices to `dtype`, in place. Norms and rotary tables need float32's digits and are small."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.to(dtype)
    return model


def _check_tensors(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """ModelFileDamagedError unless `tensors` are what the config asks for: no more, no less, finite."""

    def damaged(what: str) -> ModelFileDamagedError:
        return ModelFileDamagedError(f"{path}: {what}", fix=_COPY_AGAIN)

    wanted = qwen3.shapes(config)
    # A tied head may be stored too (others do that); it is the embedding.
    allowed = wanted | ({qwen3.HEAD: wanted[qwen3.EMBEDDING]} if config.tied else {})
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise damaged(f"the weights lack {missing[0]}")
    if foreign := sorted(tensors.keys() - allowed.keys()):
        raise damaged(f"the weights hold {foreign[0]!r:.200}, which this architecture doesn't have")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != allowed[name] or tensor.dtype not in (*_TYPES.values(), torch.float64):
            raise damaged(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype}, the config asks for {allowed[name]}"
            )
        if not torch.isfinite(tensor).all():
            raise damaged(f"{name} holds NaN or infinity")
