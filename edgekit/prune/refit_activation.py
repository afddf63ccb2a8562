"""What the next node makes of a layer's output, as far as it works element by element.

An error in front of a ReLU counts only where the ReLU lets it through. A refit that knows the function
spends its weights on what the rest of the network can see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import array
from edgekit.passes.edit import float_attribute

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Activation:
    """A function of one variable.

    Attributes:
        name: ``identity`` or the operator.
        value: ``f`` of rows ``[G, R, C / G]``, the channels in ``G`` groups.
        slope: Its derivative.
        steepest: Largest slope.
    """

    name: str
    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    steepest: float = 1.0


IDENTITY = Activation("identity", lambda z: z, np.ones_like)


def activation_of(value: ir.Value, groups: int) -> Activation:
    """The activation that is the only reader of ``value``; the identity where there is none that is known."""
    uses = value.uses()
    if value.is_graph_output() or not uses:
        return IDENTITY
    nodes = list(dict.fromkeys(use.node for use in uses))
    if len(nodes) == 2:
        return SILU if _is_silu(value, nodes) else IDENTITY
    if len(nodes) != 1 or len(uses) != 1 or nodes[0].domain:
        return IDENTITY
    return _known(nodes[0], groups)


def activated(value: ir.Value, groups: int = 1) -> ir.Value | None:
    """What :func:`activation_of` makes of ``value``; None for the identity."""
    activation = activation_of(value, groups)
    if activation is IDENTITY:
        return None
    product = next((use.node for use in value.uses() if use.node.op_type == "Mul"), None)
    node = product if activation is SILU else next(use.node for use in value.uses())
    return None if node is None else node.outputs[0]


def before_activation(value: ir.Value) -> ir.Value | None:
    """The tensor of which ``value`` is the activation; None where there is no such tensor."""
    producer = value.producer()
    inputs = () if producer is None else producer.inputs
    return next((v for v in inputs if v is not None and activated(v) is value), None)


def _known(node: ir.Node, groups: int) -> Activation:
    op = node.op_type
    if op == "Relu":
        return between(0.0, np.inf, op)
    if op == "Clip":
        bounds = [array(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2)]
        if any(len(node.inputs) > i and node.inputs[i] is not None and bounds[i - 1] is None for i in (1, 2)):
            return IDENTITY
        low, high = bounds
        return between(-np.inf if low is None else float(low), np.inf if high is None else float(high), op)
    if op == "LeakyRelu":
        return leaky(float_attribute(node, "alpha", 0.01), op)
    if op == "PRelu":
        slope = array(node.inputs[1])
        if slope is None or slope.size not in (1, slope.shape[0], slope.shape[-1]):
            return IDENTITY
        return leaky(slope.reshape(groups if slope.size > 1 else 1, 1, -1), op)
    if op in ("Sigmoid", "Tanh", "HardSwish"):
        return {"Sigmoid": SIGMOID, "Tanh": TANH, "HardSwish": HARD_SWISH}[op]
    return IDENTITY


def _is_silu(value: ir.Value, nodes: list[ir.Node]) -> bool:
    """``x`` goes to a Sigmoid and to the Mul that multiplies both."""
    gate = next((n for n in nodes if n.op_type == "Sigmoid"), None)
    product = next((n for n in nodes if n.op_type == "Mul"), None)
    if gate is None or product is None or gate.outputs[0].is_graph_output():
        return False
    return set(product.inputs) == {value, gate.outputs[0]} and len(gate.outputs[0].uses()) == 1


def between(low: float, high: float, name: str) -> Activation:
    """Clipping to an interval."""
    return Activation(
        name, lambda z: np.clip(z, low, high), lambda z: ((z > low) & (z < high)).astype(z.dtype)
    )


def leaky(alpha: float | Array, name: str) -> Activation:
    """``z`` above 0, ``alpha z`` below; ``alpha`` a number or ``[G, 1, C / G]``."""
    steepest = max(1.0, float(np.abs(alpha).max()))
    return Activation(
        name,
        lambda z: np.where(z > 0, z, z * alpha).astype(z.dtype),
        lambda z: np.where(z > 0, 1.0, alpha).astype(z.dtype),
        steepest,
    )


def _sigmoid(z: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))


def _sigmoid_slope(z: Array) -> Array:
    s = _sigmoid(z)
    return np.asarray(s * (1 - s))


def _silu_slope(z: Array) -> Array:
    s = _sigmoid(z)
    return np.asarray(s * (1 + z * (1 - s)))


SIGMOID = Activation("Sigmoid", _sigmoid, _sigmoid_slope, 0.25)
TANH = Activation("Tanh", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
SILU = Activation("SiLU", lambda z: z * _sigmoid(z), _silu_slope, 1.1)
HARD_SWISH = Activation(
    "HardSwish",
    lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
    lambda z: np.where(z >= 3, 1.0, np.where(z <= -3, 0.0, z / 3 + 0.5)).astype(z.dtype),
    1.5,
)
