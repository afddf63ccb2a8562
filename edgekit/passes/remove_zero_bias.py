"""Remove the zeros that exporters put in for a missing bias.

torch writes a Conv without bias before a BatchNormalization with a bias of zeros under a made-up name.
Folding the normalization drops it; where that stays, this pass does.
"""

from __future__ import annotations

from edgekit.graph import Change, Graph, array
from edgekit.passes.edit import is_constant, is_false

_LAYERS = ("Conv", "ConvTranspose")


def remove_zero_bias(graph: Graph) -> Graph:
    """Remove biases of nothing but zeros from convolutions that a BatchNormalization follows."""
    result = graph.copy()
    removed = []
    for node in result.model.graph:
        bias = node.inputs[2] if node.op_type in _LAYERS and len(node.inputs) > 2 else None
        followed = any(use.node.op_type == "BatchNormalization" for use in node.outputs[0].uses())
        if bias is None or not followed or not is_constant(bias) or not is_false(array(bias)):
            continue
        node.replace_input_with(2, None)
        removed.append(str(node.name))
        if not bias.uses() and not bias.is_graph_output():
            del result.model.graph.initializers[str(bias.name)]
    summary = f"removed {len(removed)} biases of nothing but zeros"
    return result.with_change(Change("remove_zero_bias", summary, details={"removed": removed}))
