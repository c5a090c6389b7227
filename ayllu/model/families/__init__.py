"""The families: one file each, its config keys and weight names <-> ours.

A file of this folder that has ARCHITECTURES is a family; there is no list to keep. It has

    ARCHITECTURES               the values of config.json's "architectures" it reads; the first is written
    config_from_hf(values)      -> ModelConfig; ModelFileDamagedError for what the decoder doesn't do
    config_to_hf(config)        -> the architecture's keys; RequestError for what the family can't say
    entries(config)             -> which tensors of a file fill which of ours (names.py)
    IGNORED                     regular expressions: names in files that are no weights
    SPELLINGS                   (if any) how published files spell names otherwise (formats/spelling.py)
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import Any


@functools.cache
def _families() -> dict[str, ModuleType]:
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "ARCHITECTURES")}


def __getattr__(name: str) -> Any:
    """FAMILIES: name -> module, listed when it is first asked for."""
    if name == "FAMILIES":
        return _families()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def family(name: str) -> ModuleType:
    """The family of that name. Raises KeyError."""
    return _families()[name]


def family_of(architecture: str) -> ModuleType | None:
    """The family that reads this value of "architectures", or None."""
    return next((module for module in _families().values() if architecture in module.ARCHITECTURES), None)
