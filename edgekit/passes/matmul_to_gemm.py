"""Write every product with stored weights as a Gemm with a row of weights for each output.

    1.  MatMul(x, W) (+ b)          = Gemm(rows of x, W^T, b), transB = 1, in the shape of the result
    2.  MatMul(W, x)                = MatMul(x^T, W^T)^T
    3.  Gemm(x, W, C, alpha, beta)  = Gemm(x, alpha W^T, beta C), transB = 1, transA as a Transpose before it;
                                      a C that is no stored row is added behind it
    4.  Gemm(x, computed, C)        = MatMul (+ C)

A Gemm is one kernel with a 32-bit bias where a MatMul and an Add are two, with a rounding to 8 bits in
between; with ``transB = 1`` its scales lie along the first axis of the weights, as those of a convolution.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import float_attribute, int_attribute, is_constant, static_shape
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder, sole_reader

_Array = np.ndarray[Any, Any]


def matmul_to_gemm(graph: Graph) -> Graph:
    """Rewrite every MatMul and Gemm that is not in this form; results keep their names."""
    words = "wrote {} matrix products as layers with rows of weights"
    return rewrite_nodes(graph, "matmul_to_gemm", words, ("MatMul", "Gemm"), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    if not is_float(node.inputs[0]) or any(static_shape(v) is None for v in node.inputs if v is not None):
        return "it does not compute in float32, or a shape is not known"
    if node.op_type == "Gemm":
        return None if _is_plain(node) else ""
    stored = [v for v in node.inputs if _weights(v) is not None]
    return "" if len(stored) == 1 else None


def _is_plain(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return (
        is_constant(node.inputs[1])
        and (bias is None or _row(bias, _columns(node)) is not None)
        and (float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)) == (1.0, 1.0)
        and (int_attribute(node, "transA", 0), int_attribute(node, "transB", 0)) == (0, 1)
    )


def _columns(node: ir.Node) -> int:
    return (static_shape(node.outputs[0]) or (0,))[-1]


def _weights(value: ir.Value | None) -> _Array | None:
    """A stored matrix or vector."""
    held = array(value) if is_constant(value) else None
    return held if held is not None and held.ndim in (1, 2) else None


def _row(value: ir.Value, columns: int) -> _Array | None:
    """A stored vector of one number for each column."""
    held = array(value) if is_constant(value) else None
    return held if held is not None and held.shape == (columns,) else None


def _rewrite(build: Builder, node: ir.Node) -> None:
    if node.op_type == "MatMul":
        _matmul(build, node)
    elif is_constant(node.inputs[1]):
        _gemm(build, node)
    else:
        _computed(build, node)


def _matmul(build: Builder, node: ir.Node) -> None:
    weights = _weights(given(node, 1))
    if weights is None:
        first = _weights(given(node, 0))
        build.take(node.outputs[0], _mirrored(build, node, np.asarray(first)))
        return
    out = node.outputs[0]
    add, bias = _bias_behind(out) if weights.ndim == 2 else (None, None)
    old = add.outputs[0] if add is not None else out
    columns = weights if weights.ndim == 2 else weights[:, None]
    build.take(old, _layer(build, given(node, 0), columns, bias, static_shape(old) or ()))


def _bias_behind(out: ir.Value) -> tuple[ir.Node | None, _Array | None]:
    """The Add that alone reads a product and adds a stored row to it."""
    add = sole_reader(out)
    if add is None or add.op_type != "Add" or add.domain or static_shape(add.outputs[0]) != static_shape(out):
        return None, None
    other = next((v for v in add.inputs if v is not out), None)
    columns = (static_shape(out) or (0,))[-1]
    held = array(other) if is_constant(other) else None
    if held is None or held.size not in (1, columns) or (held.ndim and held.shape[-1] not in (1, columns)):
        return None, None
    if held.size > 1 and held.shape[-1] != columns:
        return None, None
    return add, np.broadcast_to(held.ravel(), (columns,)).copy()


def _layer(
    build: Builder, x: ir.Value, columns: _Array, bias: _Array | None, shape: tuple[int, ...]
) -> ir.Value:
    """``x columns + bias`` over the last axis of ``x``, in the given shape."""
    before = static_shape(x) or ()
    rows = (math.prod(before[:-1]), columns.shape[0])
    if before != rows:
        x = build.node("Reshape", "rows", x, build.constant("rows_shape", rows, np.int64))
    constants = [build.constant("weights", np.ascontiguousarray(columns.T))]
    if bias is not None:
        constants.append(build.constant("bias", bias))
    y = build.node("Gemm", "layer", x, *constants, transB=1)
    if static_shape(y) == shape:
        return y
    return build.node("Reshape", "result", y, build.constant("result_shape", shape, np.int64))


def _mirrored(build: Builder, node: ir.Node, weights: _Array) -> ir.Value:
    """``weights x``, with the inner axis of ``x`` brought to the end and the result back."""
    x, shape = given(node, 1), static_shape(node.outputs[0]) or ()
    rank = len(static_shape(x) or ())
    columns = weights.T if weights.ndim == 2 else weights[:, None]
    if rank < 2:
        return _layer(build, x, columns, None, shape)
    perm = [*range(rank - 2), rank - 1, rank - 2]
    turned = build.node("Transpose", "turned", x, perm=perm)
    if weights.ndim == 1:
        return _layer(build, turned, columns, None, shape)
    made = _layer(build, turned, columns, None, (*shape[:-2], shape[-1], shape[-2]))
    return build.node("Transpose", "back", made, perm=perm)


def _gemm(build: Builder, node: ir.Node) -> None:
    x, out = given(node, 0), node.outputs[0]
    weights = np.asarray(array(node.inputs[1])).astype(np.float64)
    columns = (weights.T if int_attribute(node, "transB", 0) else weights) * float_attribute(
        node, "alpha", 1.0
    )
    if int_attribute(node, "transA", 0):
        x = build.node("Transpose", "turned", x, perm=[1, 0])
    added, count = _added(build, node), columns.shape[1]
    held = added if isinstance(added, np.ndarray) else None
    is_row = held is not None and held.size in (1, count) and (not held.ndim or held.shape[-1] == held.size)
    bias = np.broadcast_to(held.ravel(), (count,)).copy() if held is not None and is_row else None
    y = _layer(build, x, columns, bias, static_shape(out) or ())
    build.take(out, y if added is None or bias is not None else _plus(build, y, added))


def _computed(build: Builder, node: ir.Node) -> None:
    x, y = given(node, 0), given(node, 1)
    if int_attribute(node, "transA", 0):
        x = build.node("Transpose", "turned", x, perm=[1, 0])
    if int_attribute(node, "transB", 0):
        y = build.node("Transpose", "turned", y, perm=[1, 0])
    product, alpha = build.node("MatMul", "product", x, y), float_attribute(node, "alpha", 1.0)
    if alpha != 1.0:
        product = build.node("Mul", "scaled", product, build.constant("alpha", alpha))
    added = _added(build, node)
    build.take(node.outputs[0], product if added is None else _plus(build, product, added))


def _added(build: Builder, node: ir.Node) -> ir.Value | _Array | None:
    """``beta C`` of a Gemm: numbers, where C is stored."""
    added, beta = node.inputs[2] if len(node.inputs) > 2 else None, float_attribute(node, "beta", 1.0)
    if added is None or beta == 0.0:
        return None
    held = array(added) if is_constant(added) else None
    if held is not None:
        return np.asarray(held.astype(np.float64) * beta)
    return added if beta == 1.0 else build.node("Mul", "share", added, build.constant("beta", beta))


def _plus(build: Builder, y: ir.Value, added: ir.Value | _Array) -> ir.Value:
    term = build.constant("added", added) if isinstance(added, np.ndarray) else added
    return build.node("Add", "sum", y, term)
