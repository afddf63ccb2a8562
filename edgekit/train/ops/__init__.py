"""Kernels: one torch function for each ONNX operator that the executor runs.

Every module in this folder is imported here: a file with kernels in it is registered by being there.
"""

import importlib
import pkgutil

for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
