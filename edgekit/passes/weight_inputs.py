"""Take weights off the list of inputs.

Old exporters (ONNX IR version 3) list every initializer as an input too, a default that a caller may
override. Nobody does, and a weight that may change can be neither folded nor quantized.
"""

from __future__ import annotations

from edgekit.graph import Change, Graph


def weight_inputs(graph: Graph) -> Graph:
    """Make every input that has a default value a plain weight."""
    result = graph.copy()
    main = result.model.graph
    both = [value for value in main.inputs if value.name in main.initializers]
    for value in both:
        main.inputs.remove(value)
    # Before IR version 4 the format itself demands that weights are inputs.
    result.model.ir_version = max(result.model.ir_version or 0, 4)
    return result.with_change(Change("weight_inputs", f"{len(both)} weights are no longer inputs"))
