"""Leaving out of a layer comparison what cannot be compared.

Equalization divides the channels of a tensor by factors and multiplies the weights that read it: the network
computes the same, but the tensor is another quantity in the int8 graph, and a difference is no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgekit.graph import Graph
from edgekit.quantize.equalize import HOMOGENEOUS, TRANSPARENT

REASON = "equalization changed the scale of its channels, so that the values cannot be compared"


def without_rescaled(
    parity: dict[str, Any], graph: Graph, history: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """A parity report whose rescaled layers are among the skipped ones.

    Args:
        parity: The ``parity`` part of a report.
        graph: The float graph.
        history: What was done to it, as a report has it.
    """
    scaled = rescaled(graph, history)
    if not scaled or "layers" not in parity:
        return parity
    kept = [row for row in parity["layers"] if row["name"] not in scaled]
    left = [{"name": row["name"], "reason": REASON} for row in parity["layers"] if row["name"] in scaled]
    return {**parity, "layers": kept, "skipped": [*parity.get("skipped", []), *left]}


def rescaled(graph: Graph, history: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Tensors whose channels equalization has rescaled.

    Those that it names, what their activation reads, and what follows them through nodes that keep channels
    apart.
    """
    named = {
        t for change in history if change["pass_name"] == "equalize" for t in change["details"]["raised"]
    }
    values = graph.values()
    found: set[str] = set()
    waiting = [name for name in named if name in values]
    for name in list(waiting):
        producer = values[name].producer()
        if producer is None:
            continue
        if producer.op_type in (*HOMOGENEOUS, "Clip"):
            waiting += [str(value.name) for value in producer.inputs[:1] if value is not None]
        elif producer.op_type == "Mul":
            makers = [(value, value.producer()) for value in producer.inputs if value is not None]
            waiting += [
                str(v.name) for v, maker in makers if maker is not None and maker.op_type != "Sigmoid"
            ]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for node in values[name].consumers():
            if node.op_type in TRANSPARENT or node.op_type == "Concat":
                waiting += [str(value.name) for value in node.outputs]
    return frozenset(found)
