"""The models that bench/gpu.py measures: random weights of published shapes, or tiny ones for a dry run."""

from __future__ import annotations

import argparse
import gc
from dataclasses import replace

import torch

from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder
from ayllu.model.presets import preset
from ayllu.model.weights import shell_of

TINY = ModelConfig(64, 200, (dense_layer(4, 2, 16, 96),) * 2, 256)


def random_model(config: ModelConfig, device: str, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    """Random weights made on the device, norms in float32 as everywhere."""
    model = shell_of(config).to_empty(device=device).requires_grad_(False).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data = torch.ones_like(weight, dtype=torch.float32 if "norm" in name else dtype)
        else:
            weight.data = torch.empty_like(weight, dtype=dtype).normal_(std=weight.shape[-1] ** -0.5)
    return model


def config_of(name: str, wish: argparse.Namespace, layers: int = 0) -> ModelConfig:
    if wish.tiny:
        return TINY
    config = preset(name).config()
    return replace(config, layers=config.layers[:layers]) if layers else config


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
