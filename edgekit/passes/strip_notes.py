"""Remove what exporters note at nodes and tensors: stack traces, source lines, paths of their machine.

None of it is needed to run the network, and a deployed file should not carry it. What is noted at the model
itself (class names, licence) stays.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Change, Graph


def strip_notes(graph: Graph) -> Graph:
    """Clear metadata and doc strings of the graph, its nodes and its tensors."""
    result = graph.copy()
    main = result.model.graph
    things: list[ir.Graph | ir.Node | ir.Value] = [main, *main.inputs, *main.initializers.values()]
    for node in main:
        things += [node, *node.outputs]
    noted = [thing for thing in things if thing.metadata_props or thing.doc_string]
    for thing in noted:
        thing.metadata_props.clear()
        thing.doc_string = None
    return result.with_change(Change("strip_notes", f"removed the exporter's notes at {len(noted)} places"))
