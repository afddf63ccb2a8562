"""Compute what does not depend on the inputs, and infer every shape on the way.

In execution order, for each node:

1. ``Constant``: becomes an initializer under the name of its output.
2. ``Shape`` and ``Size`` of a tensor whose shape is known: become that shape. With static inputs this is what
   makes Shape/Gather/Concat/Reshape chains fold away in one walk.
3. ``If`` with a constant condition: its branch is inlined, and walked next.
4. ``CastLike`` to a known type: becomes ``Cast``.
5. All inputs constant: computed by ONNX Runtime and replaced by an initializer. Where the node only
   rearranges one weight that nobody else uses (torch writes a Linear as Transpose + MatMul), the result keeps
   the weight's name.
6. A sequence of parts of a tensor, picked at constant places: becomes Split (see ``split_sequences``).
7. Anything else: its output types and shapes are inferred from its inputs.

Left alone, with the reason: results that are graph outputs, random numbers, and results that would make the
model more than :data:`GROWTH_LIMIT` bytes bigger (``Expand`` or ``Tile`` of a small constant).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import Names, add_constant, has_subgraph, is_constant, size_bytes, static_shape
from edgekit.passes.infer_shapes import infer_node
from edgekit.passes.split_sequences import Sequences

#: Bytes by which folding may make the weights of a model bigger, in sum.
GROWTH_LIMIT = 4 << 20

#: Results up to this size are always folded and not counted: shapes, indices, scalars.
_SMALL_BYTES = 4096

_REARRANGES = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"}

#: Never folded: random by nature, or there to say that a constant is stored in integers.
_KEEP = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip


@dataclass
class _Fold:
    """State of one walk."""

    graph: ir.Graph
    opsets: dict[str, int]
    limit: int
    names: Names
    grown: int = 0
    folded: int = 0
    inlined: int = 0
    weights: dict[str, str] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)


def fold_constants(graph: Graph, *, growth_limit: int = GROWTH_LIMIT) -> Graph:
    """Fold everything that is known before the network runs.

    Args:
        graph: The graph, best with pinned input shapes.
        growth_limit: Bytes by which the weights may grow.

    Raises:
        ModelError: The shapes around a node do not fit together.
    """
    result = graph.copy()
    main = result.model.graph
    state = _Fold(main, result.model.opset_imports, growth_limit, Names(main))
    sequences = Sequences(main, state.opsets[""], state.names)
    pending = deque(main)
    while pending:
        node = pending.popleft()
        if sequences.rewrite(node):
            continue
        branch = _constant_branch(node)
        if branch is not None:
            pending.extendleft(reversed(_inline(state, node, branch)))
        else:
            _visit(state, node)
    parts = [f"{state.folded} nodes computed in advance"]
    if state.inlined:
        parts.append(f"{state.inlined} branches inlined")
    details: dict[str, Any] = {"folded": state.folded, "inlined": state.inlined, "grown_bytes": state.grown}
    if state.weights:
        details["rearranged_weights"] = state.weights
    return result.with_change(Change("fold_constants", ", ".join(parts), tuple(state.refused), details))


def _visit(state: _Fold, node: ir.Node) -> None:
    value = _shape_of(node)
    if value is not None:
        _replace(state, node, [value])
        return
    _settle_cast(node)
    inputs = [v for v in node.inputs if v is not None]
    if not all(is_constant(v) for v in inputs) or node.domain or node.op_type in _KEEP or has_subgraph(node):
        infer_node(node, state.opsets)
        return
    if any(out.is_graph_output() for out in node.outputs):
        infer_node(node, state.opsets)
        state.refused.append(
            Refusal(str(node.name or node.outputs[0].name), "a constant that is an output of the model")
        )
        return
    infer_node(node, state.opsets)
    expected = sum(size_bytes(out) for out in node.outputs)
    if not _affordable(state, node, expected):
        return
    computed = _compute(node, state.opsets)
    if computed is None:
        state.refused.append(
            Refusal(str(node.name or node.outputs[0].name), "it cannot be computed in advance")
        )
    elif _affordable(state, node, sum(a.nbytes for a in computed)):
        _replace(state, node, computed)


def _shape_of(node: ir.Node) -> np.ndarray[Any, Any] | None:
    if node.domain or node.op_type not in ("Shape", "Size") or node.outputs[0].is_graph_output():
        return None
    shape = static_shape(node.inputs[0])
    if shape is None:
        return None
    if node.op_type == "Size":
        return np.array(int(np.prod(shape, dtype=np.int64)), dtype=np.int64)
    start, end = node.attributes.get("start"), node.attributes.get("end")
    chosen = shape[start.as_int() if start else None : end.as_int() if end else None]
    return np.array(chosen, dtype=np.int64)


def _settle_cast(node: ir.Node) -> None:
    if node.domain or node.op_type != "CastLike":
        return
    target = node.inputs[1]
    if target is not None and target.dtype is not None:
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.attributes["to"] = ir.AttrInt64("to", int(target.dtype))


def _affordable(state: _Fold, node: ir.Node, result_bytes: int) -> bool:
    grown = _growth(node, result_bytes)
    if grown == 0 or state.grown + grown <= state.limit:
        return True
    where = str(node.name or node.outputs[0].name)
    reason = f"computing it in advance would add {grown / 2**20:.1f} MiB to the model"
    if not any(r.where == where for r in state.refused):
        state.refused.append(Refusal(where, reason))
    return False


def _growth(node: ir.Node, result_bytes: int) -> int:
    """Bytes by which the model grows when a node makes way for results of a size; small ones do not count."""
    if result_bytes <= _SMALL_BYTES:
        return 0
    return result_bytes - sum(size_bytes(v) for v in set(node.inputs) if v is not None and len(v.uses()) == 1)


def _compute(node: ir.Node, opsets: dict[str, int]) -> list[np.ndarray[Any, Any]] | None:
    """Results of a node with constant inputs; None where the runtime cannot tell."""
    if node.op_type == "Constant":
        return _literal(node)
    import onnx

    from edgekit.session import open_runner

    feeds = {str(v.name): array(v) for v in node.inputs if v is not None}
    outputs = [str(out.name) for out in node.outputs if out.name]
    infos = []
    for value in {v.name: v for v in node.inputs if v is not None}.values():
        infos.append(
            onnx.helper.make_tensor_value_info(str(value.name), int(value.dtype or 0), static_shape(value))
        )
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [ir.serde.serialize_node(node)],
            "fold",
            infos,
            [onnx.ValueInfoProto(name=name) for name in outputs],
        ),
        opset_imports=[onnx.helper.make_opsetid("", opsets[""])],
        ir_version=8,
    )
    try:
        runner = open_runner(proto.SerializeToString(), threads=1)
        found = runner.run({name: value for name, value in feeds.items() if value is not None})
    except ModelError:
        return None  # ONNX Runtime has no kernel for this type; the node stays
    # The runtime's own classes share no public base; a node that fails here fails loudly later.
    except Exception:
        return None
    return [np.asarray(found[name]) for name in outputs]


def _literal(node: ir.Node) -> list[np.ndarray[Any, Any]] | None:
    """What a Constant node holds; None for strings and sparse tensors."""
    for name, attribute in node.attributes.items():
        if name == "value":
            return [attribute.as_tensor().numpy()]
        if name in ("value_float", "value_floats"):
            return [np.array(attribute.value, dtype=np.float32)]
        if name in ("value_int", "value_ints"):
            return [np.array(attribute.value, dtype=np.int64)]
    return None


def _replace(state: _Fold, node: ir.Node, results: list[np.ndarray[Any, Any]]) -> None:
    outputs = [out for out in node.outputs if out.name]
    grown = 0
    if node.op_type not in ("Constant", "Shape", "Size"):
        grown = _growth(node, sum(r.nbytes for r in results))
    weight = _rearranged_weight(node, results)
    for out, result in zip(outputs, results, strict=True):
        name = str(out.name)
        if not out.uses():
            continue
        out.name = None  # frees the name for the constant
        if weight is None:
            constant = add_constant(state.graph, name, result)
        else:
            # Renaming the value would rename its tensor, which other copies of the graph share.
            base = str(weight.name)
            node.replace_input_with(0, None)
            state.graph.initializers.pop(base)
            constant = add_constant(state.graph, base, result)
            if node.op_type in _REARRANGES:
                state.weights[base] = "+".join(filter(None, (state.weights.get(base), _describe(node))))
        out.replace_all_uses_with(constant)
    state.grown += grown
    state.folded += 1
    inputs = [v for v in node.inputs if v is not None]
    state.graph.remove(node, safe=True)
    for value in inputs:
        if is_constant(value) and not value.uses() and not value.is_graph_output():
            state.graph.initializers.pop(str(value.name), None)


def _rearranged_weight(node: ir.Node, results: list[np.ndarray[Any, Any]]) -> ir.Value | None:
    """The weight whose numbers the only result holds, maybe in another order; None if there is none."""
    source = node.inputs[0] if node.inputs else None
    if source is None or not is_constant(source) or len(results) != 1:
        return None
    held = array(source)
    if held is None or (node.op_type not in _REARRANGES and not np.array_equal(results[0], held)):
        return None
    if (
        len(source.uses()) != 1
        or source.is_graph_output()
        or source.dtype is None
        or not source.dtype.is_floating_point()
    ):
        return None
    return source


def _describe(node: ir.Node) -> str:
    perm = node.attributes.get("perm")
    return f"Transpose{list(perm.as_ints())}" if perm is not None else node.op_type


def _constant_branch(node: ir.Node) -> ir.Graph | None:
    if node.domain or node.op_type != "If" or not is_constant(node.inputs[0]):
        return None
    condition = array(node.inputs[0])
    if condition is None:
        return None
    return node.attributes["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"].as_graph()


def _inline(state: _Fold, node: ir.Node, branch: ir.Graph) -> list[ir.Node]:
    """Move a branch's nodes in front of its If; returns them."""
    for name, value in list(branch.initializers.items()):
        held = array(value)
        if held is not None:
            # A new constant, because renaming this one would rename a tensor that copies of the graph share.
            value.replace_all_uses_with(add_constant(state.graph, state.names.fresh(str(name)), held))
    nodes = list(branch)
    results = list(branch.outputs)
    branch.outputs.clear()
    branch.remove(nodes)
    for moved in nodes:
        for out in moved.outputs:
            if out.name:
                out.name = state.names.fresh(out.name)
    for out, source in zip(node.outputs, results, strict=True):
        if source.producer() not in nodes or out.is_graph_output():
            # An output must come from a node, and a tensor from outside the branch keeps its own name.
            identity = ir.Node("", "Identity", [source], num_outputs=1)
            identity.outputs[0].name, out.name = out.name, None
            nodes.append(identity)
            source = identity.outputs[0]
        out.replace_all_uses_with(source, replace_graph_outputs=True)
    state.graph.insert_before(node, nodes)
    state.graph.remove(node, safe=True)
    state.inlined += 1
    return nodes
