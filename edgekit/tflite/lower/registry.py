"""Which function lowers which ONNX operator."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgekit.tflite.lower.builder import Builder

#: Emits what a node becomes and binds its outputs; raises RefusedError.
Lowering = Callable[[Builder, ir.Node], None]

LOWERINGS: dict[str, Lowering] = {}


def lowering(*ops: str) -> Callable[[Lowering], Lowering]:
    """Register a function for ONNX operators."""

    def register(function: Lowering) -> Lowering:
        for op in ops:
            LOWERINGS[op] = function
        return function

    return register
