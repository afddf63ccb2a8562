"""Write a mean over the pixels of a feature map as pooling.

    ReduceMean(x, axes = all spatial axes) = GlobalAveragePool(x), reshaped when the axes are not kept

Pooling has integer kernels nearly everywhere; a general mean has them nearly nowhere.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import Names, add_constant, static_shape


def mean_to_pool(graph: Graph) -> Graph:
    """Replace every ReduceMean over exactly the spatial axes of a feature map of rank 4 or more."""
    result = graph.copy()
    main = result.model.graph
    names = Names(main)
    refused: list[Refusal] = []
    replaced = 0
    for node in [n for n in main if n.op_type == "ReduceMean"]:
        shape = static_shape(node.inputs[0])
        axes = _axes(node, shape)
        if shape is None or len(shape) < 4 or axes != tuple(range(2, len(shape))):
            refused.append(Refusal(str(node.name), f"its axes {axes} are not the pixels of a feature map"))
            continue
        _replace(main, node, shape, names)
        replaced += 1
    summary = f"{replaced} means over pixels written as GlobalAveragePool"
    return result.with_change(Change("mean_to_pool", summary, tuple(refused)))


def _axes(node: ir.Node, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    given = array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if given is None or shape is None:
        return None
    return tuple(sorted(int(a) % len(shape) for a in given.ravel()))


def _replace(main: ir.Graph, node: ir.Node, shape: tuple[int, ...], names: Names) -> None:
    old = node.outputs[0]
    keep = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
    pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
    pooled = pool.outputs[0]
    pooled.type, pooled.shape = old.type, ir.Shape([*shape[:2], *[1] * (len(shape) - 2)])
    new = [pool]
    if not keep:
        pooled.name = names.fresh(f"{old.name}.pooled")
        target = add_constant(main, names.fresh(f"{old.name}.shape"), np.array(shape[:2], np.int64))
        flat = ir.node("Reshape", [pooled, target], name=f"{node.name}.reshape")
        flat.outputs[0].type, flat.outputs[0].shape = old.type, old.shape
        new.append(flat)
    last = new[-1].outputs[0]
    main.insert_before(node, new)
    old.replace_all_uses_with(last, replace_graph_outputs=True)
    label = old.name
    main.remove(node, safe=True)
    last.name = label
