"""Executors: who computes a step. `make_executor` chooses the fastest that can do what is asked."""

from __future__ import annotations

from torch import bfloat16, float32
from torch import device as torch_device

from ayllu.engine.executors.executor import Executor
from ayllu.engine.executors.native import NativeExecutor
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.engine.packed import PackedModel, supports
from ayllu.errors import RequestError
from ayllu.model.decoder import Decoder

# Files of this folder are called torch and native: neither name may mean another module here.
from ayllu.native import available, describe

WEIGHTS = ("auto", "float32", "bfloat16", "int8", "int4", "fp8")
_TYPES = {"float32": float32, "bfloat16": bfloat16}


def make_executor(
    model: Decoder | PackedModel, weights: str = "auto", device: str = "cpu", cache: str = "auto"
) -> Executor:
    """`weights` auto: float32 on a CPU, bfloat16 elsewhere. `cache`: how keys and values are kept (native).

    Raises RequestError, with the reason, where no executor does what was asked.
    """
    if weights not in WEIGHTS:
        raise RequestError(f"weights = {weights!r} is not one of {', '.join(WEIGHTS)}")
    if isinstance(model, PackedModel):
        if torch_device(device).type != "cpu" or weights not in ("auto", model.weights):
            raise RequestError(
                f"packed weights ({model.weights}) can't be run as {weights} on {device}",
                fix="open the model's folder or file by its path, or leave weights and device out",
            )
        return NativeExecutor(model, cache=cache)
    if (here := model.embedding.weight.device).type != torch_device(device).type:
        raise RequestError(
            f"the model lies on {here}, and the engine is to compute on {device}",
            fix=f"give device={str(here)!r}, or load the model with device={device!r}",
        )
    if weights == "auto":
        weights = "float32" if device == "cpu" else "bfloat16"
    if torch_device(device).type == "cuda":
        if cache not in ("auto", "float32" if weights == "float32" else "bfloat16"):
            raise RequestError(
                f"a cache in {cache} can't be used here",
                why="on a GPU keys and values have the type of the activations",
                fix="leave the cache on auto",
            )
        # Looks for Triton, which is nothing to wait for on a CPU.
        from ayllu.engine.executors.cuda import CudaExecutor

        return CudaExecutor(model, weights)
    reason = _why_not_native(model, device)
    if reason is None:
        return NativeExecutor(model, weights, cache=cache)
    if weights not in _TYPES:
        raise RequestError(
            f"{weights} weights can't be used here", why=reason, fix="use float32 or bfloat16 weights"
        )
    if cache not in ("auto", weights):
        raise RequestError(
            f"a cache in {cache} can't be used here", why=reason, fix="leave the cache on auto"
        )
    return TorchExecutor(model, _TYPES[weights])


def _why_not_native(model: Decoder, device: str) -> str | None:
    if device != "cpu":
        return "the native executor computes on the CPU"
    if not available():
        return f"the native extension is not here ({describe()})"
    if unfit := supports(model.config):
        return f"the native executor doesn't do {unfit}"
    return None
