"""What else a node says about sizes, corrected after its tensors got shorter.

Group counts, target shapes, split sizes, slice limits, indices, paddings. A constant that says it is
replaced by a new one, because other nodes may share it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgekit.graph import array
from edgekit.passes.edit import Names, add_constant, int_attribute, static_shape
from edgekit.prune.channels import Ints
from edgekit.prune.cut import Cut
from edgekit.prune.rules import axes_of, given, optional, shape_of
from edgekit.prune.rules_shape import pad_begin
from edgekit.prune.rules_slice import slices


class Rewriter:
    """Corrects the nodes of a graph whose tensors still have their old shapes."""

    def __init__(self, graph: ir.Graph, cut: Cut) -> None:
        self.graph = graph
        self.cut = cut
        self.names = Names(graph)

    def node(self, node: ir.Node) -> None:
        """Correct one node; nothing for one whose tensors all stay as they are."""
        rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        touched = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
        if rewrite is not None and any(
            self.after(v) != list(shape_of(v)) for v in touched if static_shape(v)
        ):
            rewrite(self, node)

    def after(self, value: ir.Value) -> list[int]:
        """A tensor's shape afterwards."""
        return self.cut.shape(str(value.name), shape_of(value))

    def kept(self, value: ir.Value, axis: int) -> Ints:
        """The indices along an axis that stay."""
        found = self.cut.kept(str(value.name), axis)
        return np.arange(shape_of(value)[axis]) if found is None else found

    def set(self, node: ir.Node, index: int, values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
        """Give a node a constant of its own."""
        present = optional(node, index)
        name = f"{node.outputs[0].name}.{index}" if present is None else str(present.name)
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, add_constant(self.graph, self.names.fresh(name), values))


_Rewrite = Callable[[Rewriter, ir.Node], None]


def _conv(state: Rewriter, node: ir.Node) -> None:
    """The number of groups follows from the channels and the size of a group that the weight has."""
    if int_attribute(node, "group", 1) == 1:
        return
    whole = node.outputs[0] if node.op_type == "ConvTranspose" else given(node, 0)
    groups = state.after(whole)[1] // state.after(given(node, 1))[1]
    node.attributes["group"] = ir.AttrInt64("group", groups)


def _target(state: Rewriter, node: ir.Node) -> None:
    """Reshape and Expand: entries that name a size; 0 (as before) and −1 (the rest) stay."""
    target = array(given(node, 1))
    if target is None:
        return
    before, after = shape_of(node.outputs[0]), state.after(node.outputs[0])
    offset = len(before) - len(target)
    new = [
        after[axis] if entry == before[axis] and entry > 0 else int(entry)
        for axis, entry in enumerate(target.tolist(), offset)
    ]
    if new != target.tolist():
        state.set(node, 1, np.array(new, np.int64))


def _split(state: Rewriter, node: ir.Node) -> None:
    axis = int_attribute(node, "axis", 0) % len(shape_of(given(node, 0)))
    sizes = [state.after(out)[axis] for out in node.outputs]
    if "split" in node.attributes:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    node.attributes.pop("num_outputs", None)
    state.set(node, 1, np.array(sizes, np.int64))


def _slice(state: Rewriter, node: ir.Node) -> None:
    """Limits in the shorter axis; positions at irregular distances are taken by a Gather after the slice."""
    value = given(node, 0)
    picked = slices(node, shape_of(value))
    if picked is None:
        return
    limits: dict[int, tuple[int, int, int]] = {}
    gathers: dict[int, Ints] = {}
    for axis, positions in picked.items():
        kept = state.kept(value, axis)
        wanted = np.asarray(positions, np.int64)
        index = np.searchsorted(kept, wanted)
        held = index < len(kept)
        held[held] = kept[index[held]] == wanted[held]
        places = index[held]
        steps = np.unique(np.diff(places))
        if len(steps) > 1 or (len(steps) == 1 and steps[0] < 1):
            limits[axis], gathers[axis] = (0, len(kept), 1), places
        else:
            step = int(steps[0]) if len(steps) else 1
            limits[axis] = (int(places[0]), int(places[-1]) + 1, step)
    columns = [list(column) for column in zip(*limits.values(), strict=True)]
    if "starts" in node.attributes:
        node.attributes.update(
            starts=ir.AttrInt64s("starts", columns[0]),
            ends=ir.AttrInt64s("ends", columns[1]),
            axes=ir.AttrInt64s("axes", list(limits)),
        )
    else:
        for index_, values in zip(
            (1, 2, 3, 4), (columns[0], columns[1], list(limits), columns[2]), strict=True
        ):
            state.set(node, index_, np.array(values, np.int64))
    for axis, places in gathers.items():
        _insert_gather(state, node, axis, places)


def _insert_gather(state: Rewriter, node: ir.Node, axis: int, places: Ints) -> None:
    out = node.outputs[0]
    name = str(out.name)
    indices = add_constant(state.graph, state.names.fresh(f"{name}.kept"), places)
    gather = ir.Node(
        "", "Gather", [out, indices], [ir.AttrInt64("axis", axis)], name=f"{node.name or name}.kept"
    )
    result = gather.outputs[0]
    result.type = out.type
    result.shape = None if out.shape is None else out.shape.copy()
    out.replace_all_uses_with(result, replace_graph_outputs=True)
    gather.replace_input_with(0, out)
    out.name = state.names.fresh(f"{name}.all")
    result.name = name
    state.graph.insert_after(node, gather)


def _gather(state: Rewriter, node: ir.Node) -> None:
    indices = array(given(node, 1))
    data = given(node, 0)
    axis = int_attribute(node, "axis", 0) % len(shape_of(data))
    if indices is None or len(state.kept(data, axis)) == shape_of(data)[axis]:
        return
    kept = state.kept(data, axis)
    positions = indices.astype(np.int64) % shape_of(data)[axis]
    new = np.searchsorted(kept, positions)
    if indices.ndim:
        held = np.isin(positions, kept)
        new = new[held]
    state.set(node, 1, np.asarray(new, np.int64))


def _resize(state: Rewriter, node: ir.Node) -> None:
    """Resize may name the whole target size."""
    sizes = optional(node, 3)
    values = array(sizes)
    if values is None or values.size == 0:
        return
    attribute = node.attributes.get("axes")
    after = state.after(node.outputs[0])
    where = range(len(after)) if attribute is None else [a % len(after) for a in attribute.as_ints()]
    state.set(node, 3, np.array([after[axis] for axis in where], np.int64))


def _pad(state: Rewriter, node: ir.Node) -> None:
    """How many positions before and behind each axis stay."""
    value, out = given(node, 0), node.outputs[0]
    rank = len(shape_of(value))
    begin = pad_begin(node, rank)
    if begin is None:
        return
    starts, ends = [], []
    for axis in range(rank):
        if shape_of(value)[axis] == shape_of(out)[axis]:
            starts.append(begin[axis])
            ends.append(-begin[axis])
            continue
        kept = state.kept(out, axis)
        starts.append(int((kept < begin[axis]).sum()) if begin[axis] > 0 else begin[axis])
        ends.append(len(kept) - len(state.kept(value, axis)) - starts[-1])
    which = axes_of(node, 3, rank) if "pads" not in node.attributes else None
    where = which or list(range(rank))
    pads = [*(starts[a] for a in where), *(ends[a] for a in where)]
    if "pads" in node.attributes:
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    else:
        state.set(node, 1, np.array(pads, np.int64))


def _squeeze(state: Rewriter, node: ir.Node) -> None:
    """Name the axes, so that an axis with one position left stays."""
    sizes = shape_of(given(node, 0))
    if axes_of(node, 1, len(sizes)) is None:
        state.set(node, 1, np.array([axis for axis, size in enumerate(sizes) if size == 1], np.int64))


def _group_norm(state: Rewriter, node: ir.Node) -> None:
    value = given(node, 0)
    groups = node.attributes["num_groups"].as_int()
    node.attributes["num_groups"] = ir.AttrInt64(
        "num_groups", groups * state.after(value)[1] // shape_of(value)[1]
    )


_REWRITES: dict[str, _Rewrite] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Expand": _target,
    "Gather": _gather,
    "GroupNormalization": _group_norm,
    "Pad": _pad,
    "Reshape": _target,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
}
