"""Write the arithmetic of a layer normalization as one ``LayerNormalization`` node.

With means over the last axes:

    m = ReduceMean(x);  d = x - m;  v = ReduceMean(d d)          d d also as Pow(d, 2)
    s = Sqrt(v + eps)
    n = d / s                                                    also as d Reciprocal(s)
    y = n gamma + beta                                           either may be missing

    y = LayerNormalization(x, gamma, beta),   axis = the first of the axes

(Ba et al. 2016, arXiv:1607.06450.) Exporters of older opsets write it like this. One node says what the group
is, so that a target can run it whole or take it apart in its own way. gamma and beta stay the parameters that
they are. A group whose inner tensors something else reads is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import int_attribute, is_constant, static_shape
from edgekit.passes.subgraph import Builder, Rewriter, maker, read_outside, scalar, sole_reader


@dataclass
class _Norm:
    """What has been found of one normalization."""

    source: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    nodes: set[ir.Node]
    result: ir.Value
    gamma: ir.Value | None = None
    beta: ir.Value | None = None
    shape: tuple[int, ...] = field(default=())


def fuse_layernorm(graph: Graph) -> Graph:
    """Replace every layer normalization that is written out."""
    result = graph.copy()
    rewriter = Rewriter(result.model)
    fused: list[str] = []
    refused: list[Refusal] = []
    for node in [n for n in result.model.graph if not n.domain and n.op_type == "Sqrt"]:
        norm = _match(node)
        if norm is None:
            continue
        reason = _obstacle(norm)
        if reason:
            refused.append(Refusal(str(node.name), reason))
            continue
        fused.append(str(norm.result.name))
        _rewrite(rewriter, norm)
    summary = f"wrote {len(fused)} layer normalizations as one node each"
    return result.with_change(Change("fuse_layernorm", summary, tuple(refused), {"fused": fused}))


def _match(root: ir.Node) -> _Norm | None:
    """The normalization whose standard deviation ``root`` computes."""
    add = maker(root.inputs[0], "Add")
    if add is None:
        return None
    epsilon = next((e for v in add.inputs if (e := scalar(v)) is not None), None)
    variance = next((m for v in add.inputs if (m := maker(v, "ReduceMean")) is not None), None)
    square = maker(variance.inputs[0], "Mul", "Pow") if variance is not None else None
    if epsilon is None or variance is None or square is None:
        return None
    centered = square.inputs[0]
    squares = square.inputs[1] is centered if square.op_type == "Mul" else scalar(square.inputs[1]) == 2
    minus = maker(centered, "Sub")
    mean = _mean_of(minus)
    if not squares or minus is None or mean is None or minus.inputs[0] is None or centered is None:
        return None
    axes = _axes(mean)
    if axes is None or axes != _axes(variance):
        return None
    norm = _Norm(minus.inputs[0], axes, epsilon, {root, add, variance, square, minus, mean}, centered)
    return norm if _follow(norm, root) else None


def _follow(norm: _Norm, root: ir.Node) -> bool:
    """Find what comes behind the standard deviation."""
    divide = sole_reader(root.outputs[0])
    divisor = root.outputs[0]
    operator = "Div"
    if divide is not None and divide.op_type == "Reciprocal" and not divide.domain:
        norm.nodes.add(divide)
        divisor, operator = divide.outputs[0], "Mul"
        divide = sole_reader(divisor)
    if divide is None or divide.domain or divide.op_type != operator:
        return False
    ordered = list(divide.inputs)
    if operator == "Mul" and ordered[0] is divisor:
        ordered.reverse()
    minus = maker(ordered[0], "Sub")
    mean = _mean_of(minus)
    # The difference may have been written a second time.
    if ordered[1] is not divisor or minus is None or mean is None or minus.inputs[0] is not norm.source:
        return False
    if _axes(mean) != norm.axes:
        return False
    norm.nodes |= {divide, minus, mean}
    norm.result = divide.outputs[0]
    dims = static_shape(norm.source) or ()
    norm.shape = dims[norm.axes[0] :]
    norm.gamma = _affine(norm, "Mul")
    norm.beta = _affine(norm, "Add")
    return True


def _affine(norm: _Norm, op: str) -> ir.Value | None:
    """The constant that the result so far is multiplied with or added to, if that is all that reads it."""
    reader = sole_reader(norm.result)
    if reader is None or reader.domain or reader.op_type != op:
        return None
    others = [v for v in reader.inputs if v is not norm.result]
    if len(others) != 1 or not is_constant(others[0]):
        return None
    shape = list(static_shape(others[0]) or ())
    while len(shape) > len(norm.shape) and shape[0] == 1:
        shape.pop(0)
    fits = len(shape) <= len(norm.shape) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(norm.shape), strict=False)
    )
    if not fits or static_shape(reader.outputs[0]) != static_shape(norm.result):
        return None
    norm.nodes.add(reader)
    norm.result = reader.outputs[0]
    return others[0]


def _mean_of(minus: ir.Node | None) -> ir.Node | None:
    """The ReduceMean of ``x`` in ``x - ReduceMean(x)``."""
    mean = maker(minus.inputs[1], "ReduceMean") if minus is not None else None
    return mean if minus is not None and mean is not None and mean.inputs[0] is minus.inputs[0] else None


def _axes(mean: ir.Node) -> tuple[int, ...] | None:
    """Axes of a mean that keeps them; None where they are not known."""
    shape = static_shape(mean.inputs[0])
    given = array(mean.inputs[1]) if len(mean.inputs) > 1 else None
    if shape is None or given is None or not given.size or int_attribute(mean, "keepdims", 1) != 1:
        return None
    return tuple(sorted(int(a) % len(shape) for a in given.ravel()))


def _obstacle(norm: _Norm) -> str:
    """Why the group has to stay; empty if it need not."""
    rank = len(static_shape(norm.source) or ())
    if norm.axes != tuple(range(norm.axes[0], rank)):
        return f"it normalizes over axes {list(norm.axes)} of {rank}, not the last ones"
    outside = read_outside(norm.nodes, norm.result)
    return f"'{outside}' inside the normalization is also read elsewhere" if outside else ""


def _rewrite(rewriter: Rewriter, norm: _Norm) -> None:
    last = norm.result.producer()
    if last is None:
        raise ValueError("a result without a node")
    build = rewriter.before(last, str(norm.result.name))
    inputs = [norm.source, _parameter(build, norm, norm.gamma, "gamma", 1.0)]
    if norm.beta is not None:
        inputs.append(_parameter(build, norm, norm.beta, "beta", 0.0))
    node = build.node("LayerNormalization", "norm", *inputs, axis=norm.axes[0], epsilon=norm.epsilon)
    build.take(norm.result, node)


def _parameter(build: Builder, norm: _Norm, value: ir.Value | None, label: str, default: float) -> ir.Value:
    """The parameter in the shape of the normalized axes: as it is where it has that already."""
    if value is None:
        return build.constant(label, np.full(norm.shape, default))
    if static_shape(value) == norm.shape:
        return value
    held = np.asarray(array(value))
    flat = held.reshape(held.shape[max(held.ndim - len(norm.shape), 0) :])
    return build.constant(label, np.broadcast_to(flat, norm.shape).copy())
