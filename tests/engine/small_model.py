"""One random decoder for the tests of the engine: small, sharp enough to have clear favourites."""

import torch

from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder

CONTEXT, VOCABULARY = 96, 211


def make_model(seed: int = 0, context: int = CONTEXT) -> Decoder:
    """Float32, with a favourite that is nowhere a near tie of another."""
    config = ModelConfig(48, VOCABULARY, (dense_layer(4, 2, 12, 80),) * 2, context)
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config).requires_grad_(False).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model
