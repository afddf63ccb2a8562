"""What the targets share that take ``.tflite`` files."""

from __future__ import annotations

from copy import copy
from typing import Literal, Self

from edgekit.graph import Graph


class TfliteTarget:
    """A target that takes ``.tflite`` files.

    Attributes:
        io: What the int8 artifact takes and returns.
    """

    io: Literal["quantized", "float"]

    def with_io(self, io: Literal["quantized", "float"]) -> Self:
        """The same target whose int8 artifacts have other ends."""
        other = copy(self)
        other.io = io
        return other

    def prepare(self, graph: Graph) -> Graph:
        """The float network with the operators that TFLite has integer kernels for."""
        from edgekit.tflite.prepare import prepare

        return prepare(graph)

    def lower(self, graph: Graph) -> Graph:
        """The graph itself: TFLite's operators and layouts are chosen when it is compiled."""
        return graph
