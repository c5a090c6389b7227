"""The native core: small C++ kernels behind one binding, and a torch path beside each of them.

`available()` says whether the extension was built and loads; `describe()` which machine level it
took. Without a compiler everything works, slower, on the torch path.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType


@cache
def module() -> ModuleType | None:
    """The extension, or None. AYLLU_NATIVE=0 in the environment switches it off."""
    if os.environ.get("AYLLU_NATIVE") == "0":
        return None
    try:
        return importlib.import_module("ayllu.native._native")
    except ImportError:
        return None


def available() -> bool:
    """Whether the native kernels can be used."""
    return module() is not None


def describe() -> str:
    """`AVX-512`, `AVX2` or `portable`; `off (torch path)` without the extension."""
    native = module()
    return native.machine_level() if native is not None else "off (torch path)"
