"""Ayllu: make, check, run and carry on an open language model.

    model = ayllu.load(folder)                  # the decoder: model(tokens_BT) -> logits_BTV
    tokenizer = ayllu.load_tokenizer(folder)
    with ayllu.Engine(folder) as engine: ...

The three names are imported at first use, so that `import ayllu` and `ayllu --help` don't wait for torch.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Engine", "__version__", "load", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from ayllu.model.weights import load_model

        return load_model
    if name == "load_tokenizer":
        from ayllu.text.tokenizer import Tokenizer

        return Tokenizer.load
    if name == "Engine":
        from ayllu.engine.engine import Engine

        return Engine
    raise AttributeError(f"module 'ayllu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
