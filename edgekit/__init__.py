"""edgekit: from a trained network to a proven int8 deployment on an edge chip."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.api import (
        apply_plan,
        bench,
        distill,
        export,
        inspect,
        load,
        parity,
        prune,
        quantize,
        run,
        sparsify,
        torch_module,
    )
    from edgekit.errors import EdgekitError

__version__ = "0.1.0"

__all__ = [
    "EdgekitError",
    "apply_plan",
    "bench",
    "distill",
    "export",
    "inspect",
    "load",
    "parity",
    "prune",
    "quantize",
    "run",
    "sparsify",
    "torch_module",
]


class _Package(ModuleType):
    """``edgekit.quantize`` and ``edgekit.prune`` are the functions, also once the folder of that name is
    imported.

    The folders' modules are reached by ``from edgekit.quantize.x import y``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used, so that ``import edgekit`` is quick."""
    if name not in __all__:
        raise AttributeError(f"module 'edgekit' has no attribute '{name}'")
    module = importlib.import_module("edgekit.errors" if name == "EdgekitError" else "edgekit.api")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


sys.modules[__name__].__class__ = _Package
