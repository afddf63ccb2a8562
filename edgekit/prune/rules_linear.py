"""Channels through the layers that sum over them: Conv, ConvTranspose, Gemm, MatMul, Einsum.

The atoms of a layer's output channels are those of its weight's axis, so a weight that two layers share
ties their outputs together by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.passes.edit import int_attribute, is_constant
from edgekit.prune.channels import ONE, Axes, Axis, Fixed, Labels, Role, node_name
from edgekit.prune.rules import broadcast, given, lock_axes, optional, rule, shape_of, spatial


@rule("Conv", "ConvTranspose")
def _conv(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Weight (C_out, C_in / groups, …), transposed (C_in, C_out / groups, …).

    With groups, one unit is the same offset in every group, so that the groups stay equal; where a group
    has only one channel on either side (depthwise), a unit is a whole group instead, and the number of
    groups shrinks.
    """
    x, weight = given(node, 0), given(node, 1)
    kernel = range(2, len(shape_of(weight)))
    lock_axes(labels, weight, kernel, "it is a kernel's size")
    before = list(labels.of(x))
    after = spatial(node, labels, before)
    if not is_constant(weight):
        reason = f"the weights of {node.op_type} '{node_name(node)}' are computed"
        lock_axes(labels, weight, None, reason)
        lock_axes(labels, x, [1], reason)
        out: Axis = Fixed(reason)
    elif int_attribute(node, "group", 1) == 1:
        out = _dense(node, labels)
    else:
        out = _grouped(node, labels)
    bias = optional(node, 2)
    if bias is not None:
        out = labels.merge(out, labels.of(bias)[0], node)
        labels.use(bias, 0, Role.FOLLOWS, node)
    return [[after[0], out, *after[2:]]]


def _dense(node: ir.Node, labels: Labels) -> Axis:
    into, out = (1, 0) if node.op_type == "Conv" else (0, 1)
    x, weight = given(node, 0), given(node, 1)
    labels.merge(labels.of(x)[1], labels.of(weight)[into], node)
    labels.use(weight, into, Role.READS, node)
    labels.use(weight, out, Role.MAKES, node)
    return labels.of(weight)[out]


def _grouped(node: ir.Node, labels: Labels) -> Axis:
    x, weight = given(node, 0), given(node, 1)
    groups = int_attribute(node, "group", 1)
    channels_in, channels_out = shape_of(x)[1], shape_of(node.outputs[0])[1]
    before = labels.of(x)[1]
    if channels_in == groups or channels_out == groups:
        return _by_group(node, labels, before, channels_in // groups, channels_out // groups)
    transposed = node.op_type == "ConvTranspose"
    offset_in, offset_out = labels.fresh(channels_in // groups), labels.fresh(channels_out // groups)
    every_in, every_out = _tile(offset_in, groups), _tile(offset_out, groups)
    labels.merge(before, every_in, node)
    into, out = (every_in, offset_out) if transposed else (offset_in, every_out)
    places = (into, out) if transposed else (out, into)
    for axis, place in enumerate(places):
        labels.merge(labels.of(weight)[axis], place, node)
    labels.use(weight, 0, Role.READS if transposed else Role.MAKES, node)
    labels.use(weight, 1, Role.MAKES if transposed else Role.READS, node)
    return every_out


def _by_group(node: ir.Node, labels: Labels, before: Axis, per_in: int, per_out: int) -> Axis:
    """Units are whole groups: ``per_in`` channels in, ``per_out`` channels out."""
    weight = given(node, 1)
    groups = shape_of(given(node, 0))[1] // per_in
    unit = labels.fresh(groups)
    labels.merge(before, _repeat(unit, per_in), node)
    out = _repeat(unit, per_out)
    axes = labels.of(weight)
    labels.merge(axes[0], _repeat(unit, per_in) if node.op_type == "ConvTranspose" else out, node)
    labels.use(weight, 0, Role.FOLLOWS, node)
    labels.lock(axes[1], "the size of a group of channels stays")
    return out


def _tile(axis: Axis, times: int) -> Axis:
    return axis if isinstance(axis, Fixed) else np.tile(axis, times)


def _repeat(axis: Axis, times: int) -> Axis:
    return axis if isinstance(axis, Fixed) else np.repeat(axis, times)


@rule("Gemm")
def _gemm(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """(M, K) times (K, N) plus something that broadcasts to (M, N); a factor may be stored transposed."""
    a, b = given(node, 0), given(node, 1)
    m, k = (1, 0) if int_attribute(node, "transA", 0) else (0, 1)
    inner, n = (1, 0) if int_attribute(node, "transB", 0) else (0, 1)
    labels.merge(labels.of(a)[k], labels.of(b)[inner], node)
    _sum_over(node, labels, k, inner)
    axes = [labels.of(a)[m], labels.of(b)[n]]
    labels.use(a, m, Role.MAKES, node)
    labels.use(b, n, Role.MAKES, node)
    c = optional(node, 2)
    if c is None:
        return [axes]
    shape = shape_of(node.outputs[0])
    added = broadcast(node, labels, [c], shape)
    return [
        [
            axis if other is ONE else labels.merge(axis, other, node)
            for axis, other in zip(axes, added, strict=True)
        ]
    ]


@rule("MatMul")
def _matmul(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """(…, M, K) times (…, K, N); batch axes broadcast, a vector has neither M nor N."""
    a, b = given(node, 0), given(node, 1)
    left, right = labels.of(a), labels.of(b)
    k, inner = len(left) - 1, max(len(right) - 2, 0)
    labels.merge(left[k], right[inner], node)
    _sum_over(node, labels, k, inner)
    rows = [] if len(left) == 1 else [left[-2]]
    columns = [] if len(right) == 1 else [right[-1]]
    if rows:
        labels.use(a, -2, Role.MAKES, node)
    if columns:
        labels.use(b, -1, Role.MAKES, node)
    batch = _batch(node, labels, a, b)
    if not (is_constant(a) or is_constant(b)):
        labels.batch.extend(axis for axis in batch if not isinstance(axis, Fixed))
    return [[*batch, *rows, *columns]]


def _sum_over(node: ir.Node, labels: Labels, k: int, inner: int) -> None:
    """What reads the channels of a product: its constant factor; of two computed ones, the first."""
    if is_constant(node.inputs[1]):
        labels.contract(node, 1, inner)
    else:
        labels.contract(node, 0, k)


def _batch(node: ir.Node, labels: Labels, a: ir.Value, b: ir.Value) -> Axes:
    size = max(len(shape_of(a)), len(shape_of(b)), 2) - 2
    result: list[Axis] = [ONE] * size
    for value in (a, b):
        sizes, found = shape_of(value)[:-2], labels.of(value)[:-2]
        for place, (dim, axis) in enumerate(zip(sizes, found, strict=True), size - len(sizes)):
            if dim != 1:
                result[place] = axis if result[place] is ONE else labels.merge(result[place], axis, node)
                labels.use(value, place - size + len(sizes), Role.FOLLOWS, node)
    return result


@rule("Einsum")
def _einsum(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """The same letter is the same axis; letters that the result lacks are summed over."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    values = [v for v in node.inputs if v is not None]
    left, _, right = equation.partition("->")
    terms = left.split(",")
    plain = "->" in equation and "." not in equation and all(len(set(t)) == len(t) for t in (*terms, right))
    if not plain or len(values) > 2:
        for value in values:
            lock_axes(labels, value, None, f"Einsum '{node_name(node)}' ({equation}) is not followed")
        return []
    letters: dict[str, Axis] = {}
    for term, value in zip(terms, values, strict=True):
        for axis, letter in enumerate(term):
            label, size = labels.of(value)[axis], shape_of(value)[axis]
            if size != 1 or letter not in letters:
                present = letters.get(letter, ONE)
                letters[letter] = label if present is ONE else labels.merge(present, label, node)
    _einsum_uses(node, labels, terms, values, right)
    return [[letters[letter] for letter in right]]


def _einsum_uses(node: ir.Node, labels: Labels, terms: list[str], values: list[ir.Value], right: str) -> None:
    for letter in sorted(set("".join(terms))):
        holders = [(i, term.index(letter)) for i, term in enumerate(terms) if letter in term]
        if letter not in right:
            if len(holders) == 1:
                # A plain sum: the removed positions have to be zero in this very tensor.
                labels.contract(node, *holders[0])
                continue
            constant = [h for h in holders if is_constant(values[h[0]])]
            labels.contract(node, *(constant or holders)[-1])
            continue
        for index, axis in holders:
            shared = len(holders) > 1
            labels.use(values[index], axis, Role.FOLLOWS if shared else Role.MAKES, node)
            label = labels.of(values[index])[axis]
            if shared and not any(is_constant(v) for v in values) and not isinstance(label, Fixed):
                labels.batch.append(label)
