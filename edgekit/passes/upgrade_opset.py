"""Bring a graph to :data:`edgekit.graph.OPSET`.

Between opsets 11 and 21 most operators only gained types and attributes. These changed meaning or form:

====  =================================  ==================================================================
from  operators                          what is done
====  =================================  ==================================================================
12    Dropout                            the ``ratio`` attribute goes (inference does not use it)
13    Softmax, LogSoftmax, Hardmax       were taken over all axes from ``axis`` (default 1) on, flattened to
                                         2-D; now over one axis: Flatten and Reshape around it
13    Squeeze, Unsqueeze, ReduceSum      ``axes`` becomes an input
13    Split                              ``split`` becomes an input
13    Resize                             empty ``roi`` and ``scales`` tensors become absent inputs
14    BatchNormalization                 five outputs become three (the training outputs go)
16    RoiAlign                           the old coordinate rule is spelled out
18    ReduceMean, ReduceMax, …           ``axes`` becomes an input
18    Split                              ``num_outputs`` where the sizes are not given
20    GridSample                         ``bilinear``, ``bicubic`` become ``linear``, ``cubic``
20    DFT                                ``axis`` becomes an input
21    GroupNormalization                 scale and bias of a group are repeated for each of its channels
====  =================================  ==================================================================

A test holds this table against every operator version in the ``onnx`` package. The converters that exist are
not used: onnx's own takes Hardmax 12 → 13 for unchanged and passes the whole model through another
representation; onnxscript's starts at opset 18 and goes on after a node that it could not convert.

A graph with a *higher* opset is relabelled where every operator in it is defined alike at the target, and
refused otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import OPSET, Change, Graph, array
from edgekit.passes.edit import Names, add_constant, int_attribute, static_shape

#: Older models are refused: their Clip, Pad, Slice, Resize and TopK work differently again.
OLDEST = 11


class _Editor:
    """What an adapter needs beside its node: constants with free names, and nodes around it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.names = Names(graph)

    def constant(self, node: ir.Node, label: str, values: Any) -> ir.Value:
        name = self.names.fresh(f"{node.outputs[0].name}.{label}")
        return add_constant(self.graph, name, np.asarray(values))

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)


Adapter = Callable[[ir.Node, _Editor], bool]
"""Changes a node in place; returns False where the node needed no change."""


def upgrade_opset(graph: Graph, version: int = OPSET) -> Graph:
    """Convert to another opset.

    Args:
        graph: The graph; the ranks of Softmax inputs have to be known.
        version: The opset to reach.

    Raises:
        ModelError: The model is older than :data:`OLDEST`, or a node has no counterpart at ``version``.
    """
    present = graph.model.opset_imports.get("", 0)
    if present == version:
        return graph.with_change(Change("upgrade_opset", f"opset {version} already"))
    if present < OLDEST:
        raise ModelError(
            f"opset {present} is too old: before {OLDEST}, Clip, Pad, Resize and Slice worked differently",
            valid=[f"{OLDEST} and later"],
            hint="Export the model again with a newer opset",
        )
    result = graph.copy()
    adapted: Counter[str] = Counter()
    if present > version:
        for node in result.model.graph.all_nodes():
            _check_older(node, present, version)
    else:
        editor = _Editor(result.model.graph)
        for step in range(present + 1, version + 1):
            for node in list(result.model.graph):
                adapter = ADAPTERS.get((node.op_type, step))
                if adapter is not None and not node.domain and adapter(node, editor):
                    adapted[node.op_type] += 1
    for node in result.model.graph.all_nodes():
        if not node.domain:
            node.version = None
    result.model.opset_imports[""] = version
    # The IR version that came with this opset; runtimes read it before they read the opset.
    result.model.ir_version = 10 if version >= 21 else max(result.model.ir_version or 0, 8)
    text = f"opset {present} to {version}"
    if adapted:
        text += ": " + ", ".join(f"{count} {op}" for op, count in sorted(adapted.items())) + " rewritten"
    return result.with_change(
        Change("upgrade_opset", text, details={"from": present, "adapted": dict(adapted)})
    )


def _drop_ratio(node: ir.Node, _: _Editor) -> bool:
    return node.attributes.pop("ratio", None) is not None


def _softmax(node: ir.Node, editor: _Editor) -> bool:
    source, out = node.inputs[0], node.outputs[0]
    shape = static_shape(source)
    if source is None or shape is None:
        raise ModelError(
            "the shape of its input is unknown, which its older definition depends on",
            where=f"{node.op_type} '{node.name}'",
        )
    axis = int_attribute(node, "axis", 1) % max(len(shape), 1)
    tail = [i for i in range(axis, len(shape)) if shape[i] != 1]
    if len(tail) <= 1:
        # Flattening adds nothing when one axis carries all elements.
        node.attributes["axis"] = ir.AttrInt64("axis", tail[0] if tail else len(shape) - 1)
        return True
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    flat = _around(node, "Flatten", [source], editor, "flat", [ir.AttrInt64("axis", axis)])
    flat.outputs[0].shape = ir.Shape([rows, int(np.prod(shape[axis:], dtype=np.int64))])
    flat.outputs[0].type = source.type
    editor.graph.insert_before(node, flat)
    node.replace_input_with(0, flat.outputs[0])
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    back = _around(
        node, "Reshape", [out, editor.constant(node, "shape", np.array(shape, np.int64))], editor, "back", []
    )
    back.outputs[0].shape, back.outputs[0].type = ir.Shape(shape), out.type
    name = str(out.name)
    back.replace_input_with(0, None)
    out.replace_all_uses_with(back.outputs[0], replace_graph_outputs=True)
    back.replace_input_with(0, out)
    out.name, back.outputs[0].name = back.outputs[0].name, name
    out.shape = flat.outputs[0].shape.copy() if flat.outputs[0].shape is not None else None
    editor.graph.insert_after(node, back)
    return True


def _around(
    node: ir.Node, op: str, inputs: list[ir.Value], editor: _Editor, label: str, attributes: list[ir.Attr]
) -> ir.Node:
    made = ir.Node(
        "", op, inputs, attributes, num_outputs=1, name=f"{node.name or node.outputs[0].name}.{label}"
    )
    made.outputs[0].name = editor.names.fresh(f"{node.outputs[0].name}.{label}")
    return made


def _to_input(attribute: str, index: int) -> Adapter:
    """An adapter that turns a list attribute into a constant input."""

    def adapt(node: ir.Node, editor: _Editor) -> bool:
        present = node.attributes.pop(attribute, None)
        if present is None:
            return False
        editor.set_input(node, index, editor.constant(node, attribute, np.array(present.as_ints(), np.int64)))
        return True

    return adapt


def _resize(node: ir.Node, editor: _Editor) -> bool:
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "tf_half_pixel_for_nn":
        raise ModelError(
            "uses 'tf_half_pixel_for_nn', which later opsets do not have",
            where=f"Resize '{node.name}'",
            hint="Export the model again with opset 13 or later",
        )
    cropped = mode is not None and mode.as_string() == "tf_crop_and_resize"
    changed = False
    for index in (1, 2):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            continue
        content = array(value)
        if (index == 1 and not cropped) or (content is not None and content.size == 0):
            node.replace_input_with(index, None)
            changed = True
    return changed


def _drop_training_outputs(node: ir.Node, _: _Editor) -> bool:
    extra = node.outputs[1:]
    if not extra:
        return False
    if any(out.uses() or out.is_graph_output() for out in extra):
        raise ModelError(
            "its training outputs are used",
            where=f"{node.op_type} '{node.name}'",
            hint="Export the model in eval mode",
        )
    node.resize_outputs(1)
    return True


def _old_roi(node: ir.Node, _: _Editor) -> bool:
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "output_half_pixel"
    )
    return True


def _count_outputs(node: ir.Node, _: _Editor) -> bool:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return False
    node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    return True


def _grid_sample(node: ir.Node, _: _Editor) -> bool:
    mode = node.attributes.get("mode")
    renamed = {"bilinear": "linear", "bicubic": "cubic"}.get(mode.as_string()) if mode is not None else None
    if renamed is None:
        return False
    node.attributes["mode"] = ir.AttrString("mode", renamed)
    return True


def _dft(node: ir.Node, editor: _Editor) -> bool:
    axis = int_attribute(node, "axis", 1)
    node.attributes.pop("axis", None)
    editor.set_input(node, 2, editor.constant(node, "axis", np.array(axis, np.int64)))
    return True


def _group_norm(node: ir.Node, editor: _Editor) -> bool:
    shape = static_shape(node.inputs[0])
    groups = int_attribute(node, "num_groups", 1)
    for index, label in ((1, "scale"), (2, "bias")):
        values = array(node.inputs[index])
        if shape is None or values is None:
            raise ModelError(
                "its scale and bias are not constant",
                where=f"{node.op_type} '{node.name}'",
                hint="Export with opset 21",
            )
        repeated = np.repeat(values, shape[1] // groups)
        editor.set_input(node, index, editor.constant(node, label, repeated))
    return True


_axes_to_input = _to_input("axes", 1)

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("Dropout", 12): _drop_ratio,
    **{(op, 13): _softmax for op in ("Softmax", "LogSoftmax", "Hardmax")},
    **{(op, 13): _axes_to_input for op in ("Squeeze", "Unsqueeze", "ReduceSum")},
    ("Split", 13): _to_input("split", 1),
    ("Resize", 13): _resize,
    ("BatchNormalization", 14): _drop_training_outputs,
    ("RoiAlign", 16): _old_roi,
    **{
        (f"Reduce{kind}", 18): _axes_to_input
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
    ("Split", 18): _count_outputs,
    ("GridSample", 20): _grid_sample,
    ("DFT", 20): _dft,
    ("GroupNormalization", 21): _group_norm,
}
"""What to do with an operator on the way to the opset that changed it."""


def _check_older(node: ir.Node, present: int, version: int) -> None:
    """Refuse a node that an older opset defines differently."""
    import onnx.defs

    if node.domain:
        return
    now = onnx.defs.get_schema(node.op_type, present, "")
    if now.since_version <= version:
        return
    where = f"{node.op_type} node '{node.name}'"
    hint = f"Export the model again with opset_version={version}"
    try:
        then = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError as error:
        raise ModelError(
            f"opset {version} has no such operator, the model's {present} does", where=where, hint=hint
        ) from error
    strange = [name for name in node.attributes if name not in then.attributes]
    defaults = [
        name for name in then.attributes if name not in node.attributes and not _same_default(now, then, name)
    ]
    if strange or defaults or len(node.inputs) > then.max_input:
        what = ", ".join(strange or defaults) or "its inputs"
        raise ModelError(f"opset {version} defines it differently ({what})", where=where, hint=hint)


def _same_default(now: Any, then: Any, name: str) -> bool:
    if name not in now.attributes:
        return False
    return bool(
        now.attributes[name].default_value.SerializeToString()
        == then.attributes[name].default_value.SerializeToString()
    )
