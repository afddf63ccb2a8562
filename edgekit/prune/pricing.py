"""What cost models of targets share: nodes as they are, the bytes they move, where answers are remembered."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import is_constant, size_bytes, static_shape
from edgekit.quantize.plan import MAC_OPS
from edgekit.target import NodeRequest


def as_is(node: ir.Node) -> NodeRequest:
    """A node with the sizes that it has."""
    return NodeRequest(
        node,
        tuple(None if v is None else static_shape(v) for v in node.inputs),
        tuple(static_shape(v) or () for v in node.outputs),
    )


def moved_bytes(node: ir.Node) -> int:
    """Bytes of the computed tensors that a node reads and writes."""
    tensors = dict.fromkeys(
        v for v in (*node.inputs, *node.outputs) if v is not None and v.name and not is_constant(v)
    )
    return sum(size_bytes(v) for v in tensors)


def other_bytes(graph: Graph) -> dict[str, int]:
    """Bytes that nodes move which do not multiply and accumulate, by operator."""
    sizes: dict[str, int] = {}
    for node in graph.nodes:
        if node.op_type not in MAC_OPS:
            sizes[node.op_type] = sizes.get(node.op_type, 0) + moved_bytes(node)
    return sizes


def cache_file(stem: str, identity: Any, suffix: str = "") -> Path:
    """A file in the user's cache folder for what holds only where ``identity`` is the same."""
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "edgekit" / f"{stem}-{name}{suffix}.json"
