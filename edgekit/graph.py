"""The one representation of a network: an ONNX graph and the history of what was done to it.

Passes are functions ``Graph -> Graph``. A pass works on ``graph.copy()`` and returns
``copy.with_change(...)``; the graph it was given stays as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError

if TYPE_CHECKING:
    import onnx

#: Opset that captured graphs are brought to: the lowest with 16-bit QuantizeLinear in the standard domain.
OPSET = 21


@dataclass(frozen=True)
class Refusal:
    """Something a pass would have done but did not.

    Attributes:
        where: Name of the node or tensor.
        reason: Why, in words for the user.
    """

    where: str
    reason: str


@dataclass(frozen=True)
class Change:
    """What one pass did.

    Attributes:
        pass_name: The pass.
        summary: One line for the user, with counts.
        refused: What it left alone and why.
        details: Numbers and names for the report, JSON-ready.
    """

    pass_name: str
    summary: str
    refused: tuple[Refusal, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and element type of a graph input or output.

    Attributes:
        name: The tensor's name.
        shape: Dimensions; every one is known after capture.
        dtype: NumPy element type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def to_json(self) -> dict[str, Any]:
        """As reports and ``--json`` have it."""
        return {"name": self.name, "shape": list(self.shape), "dtype": str(self.dtype)}


@dataclass(frozen=True)
class Graph:
    """An ONNX model with its history. Treat ``model`` as read-only; call :meth:`copy` before changing it.

    Attributes:
        model: The onnx-ir model, weights in memory.
        history: One entry for each pass that has run, oldest first.
    """

    model: ir.Model
    history: tuple[Change, ...] = ()

    @property
    def nodes(self) -> Iterator[ir.Node]:
        """Nodes of the main graph in execution order."""
        return iter(self.model.graph)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(value) for value in self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(value) for value in self.model.graph.outputs)

    def copy(self) -> Graph:
        """A graph whose nodes can be changed freely; weight arrays are shared until replaced."""
        return replace(self, model=self.model.clone(deep_copy=False))

    def with_change(self, change: Change) -> Graph:
        return replace(self, history=(*self.history, change))

    def values(self) -> dict[str, ir.Value]:
        """Every named tensor of the main graph: inputs, initializers and node outputs."""
        found = {str(v.name): v for v in self.model.graph.inputs}
        found.update({str(name): v for name, v in self.model.graph.initializers.items()})
        for node in self.model.graph:
            found.update({str(v.name): v for v in node.outputs if v.name})
        return found

    def to_proto(self) -> onnx.ModelProto:
        return ir.to_proto(self.model)

    def to_bytes(self) -> bytes:
        return bytes(self.to_proto().SerializeToString())

    def sha256(self) -> str:
        """Hash of the serialized model."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: Path) -> int:
        """Write the model as one ``.onnx`` file, whole or not at all; returns its size in bytes.

        Raises:
            OutputError: The file cannot be written.
        """
        from edgekit.files import write_whole

        data = self.to_bytes()
        write_whole(path, data)
        return len(data)


def array(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The constant held by an initializer, or None when the value is computed (or absent)."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        raise ModelError(
            f"tensor '{value.name}' has no static shape", hint="Pin it with --input-shape NAME=1,3,H,W"
        )
    return TensorSpec(
        str(value.name), tuple(int(d) for d in value.shape.numpy()), np.dtype(value.dtype.numpy())
    )
