"""Small decoders of awkward shapes: heads that don't fill the width, odd vocabularies, grouped queries."""

import torch

from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder

CONFIGS = {
    "one kv head, tied": ModelConfig(48, 131, (dense_layer(4, 1, 16, 72),) * 2, 64),
    "two kv heads, own head": ModelConfig(
        96, 257, (dense_layer(6, 2, 8, 40, theta=500_000.0),) * 3, 80, tied=False
    ),
    "as many kv heads, wide": ModelConfig(32, 67, (dense_layer(4, 4, 24, 96, theta=777.0),) * 2, 50),
    "one head": ModelConfig(64, 513, (dense_layer(1, 1, 34, 33),), 40, norm_eps=1e-3, tied=False),
}


def random_decoder(config: ModelConfig, seed: int = 0, spread: float = 0.15) -> Decoder:
    """Weights far from the start of training: nothing is zero, norms are not one."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config)
    with torch.no_grad():
        for weight in model.parameters():
            centre = 1.0 if weight.dim() == 1 else 0.0
            weight.copy_(centre + spread * torch.randn(weight.shape, generator=generator))
    return model.eval()


def random_tokens(config: ModelConfig, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """(rows, length) token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (rows, length), generator=generator)
