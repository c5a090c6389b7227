"""The independent judge: the same model in transformers, with random weights.

Every weight is random, norms and biases and the router's bias too: zeros and ones, as a fresh model has
them, would hide a name that was swapped with another's.
"""

from pathlib import Path

import torch
import transformers
from case import Case
from safetensors.torch import load_file
from torch import Tensor

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

# The plainest of its implementations: masks and scales are written out, one product an expert.
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


def build(family: str, case: Case, seed: int = 0):
    """The case's model with random weights, float32, in evaluation mode."""
    judge = _model(family, case, case.keys)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Persistent tensors only: tables of rotary positions are none.
        for name, tensor in judge.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(_random(name, tensor, generator))
    return judge


def switched_off(family: str, case: Case, judge):
    """The same weights without what the case is about."""
    other = _model(family, case, case.keys | case.without)
    other.load_state_dict(judge.state_dict())
    return other


def _model(family: str, case: Case, keys: dict):
    config = transformers.AutoConfig.for_model(case.model_type or family, **keys)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **PLAIN).eval()


def _random(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.dim() >= 2:
        return noise * min(tensor.shape[-2:]) ** -0.5
    # Scales of norms lie round 1, biases round 0.
    return 0.2 * noise if name.endswith("bias") else 1.0 + 0.2 * noise


def text(case: Case, rows: int = 1, seed: int = 1) -> Tensor:
    """Random tokens (rows, case.length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, case.keys["vocab_size"], (rows, case.length), generator=generator)


@torch.no_grad()
def logits(judge, tokens_BT: Tensor) -> Tensor:
    """Its logits, without a cache."""
    return judge(tokens_BT, use_cache=False).logits


def load(folder: Path, dtype: torch.dtype = torch.float32):
    """A folder as transformers understands it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **PLAIN).eval()


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def gradients(judge, tokens_BT: Tensor, folder: Path) -> dict[str, Tensor]:
    """Gradients of the mean next-token loss under the names of its files.

    They are put in the weights' place and saved: what transformers takes apart or renames while saving
    (fused experts) it does to them, too.
    """
    judge.zero_grad()
    judge(tokens_BT, labels=tokens_BT, use_cache=False).loss.backward()
    with torch.no_grad():
        for weight in judge.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    judge.save_pretrained(folder)
    return tensors(folder)
