"""The functions of ``import edgekit``: the command line's commands as Python calls."""

from __future__ import annotations

from edgekit.api.bundles import bench, default_out, export, inspect, parity, run
from edgekit.api.compressing import distill, prune, sparsify
from edgekit.api.networks import apply_plan, load, torch_module
from edgekit.api.quantizing import debug, qat, quantize

__all__ = [
    "apply_plan",
    "bench",
    "debug",
    "default_out",
    "distill",
    "export",
    "inspect",
    "load",
    "parity",
    "prune",
    "qat",
    "quantize",
    "run",
    "sparsify",
    "torch_module",
]
