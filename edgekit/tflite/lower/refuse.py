"""How a node is refused: with the rule it breaks and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.errors import ModelError


class RefusedError(Exception):
    """A node cannot be lowered; caught by the lowering, which names the node and goes on.

    Args:
        rule: What the node is or does that has no counterpart.
        remedy: What the user can do.
    """

    def __init__(self, rule: str, remedy: str) -> None:
        self.rule = rule
        self.remedy = remedy
        super().__init__(rule)


@dataclass(frozen=True)
class RefusedNode:
    """One node that stands in the way.

    Attributes:
        node: Its name.
        op: Its ONNX operator.
        rule: Why it has no counterpart in TFLite.
        remedy: What the user can do.
    """

    node: str
    op: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.op} '{self.node}': {self.rule} ({self.remedy})"


class RefusedNodesError(ModelError):
    """Nodes that have no counterpart in an integer TFLite model.

    Attributes:
        nodes: All of them, in graph order.
    """

    def __init__(self, what: str, nodes: tuple[RefusedNode, ...]) -> None:
        self.nodes = nodes
        super().__init__(what + ": " + "; ".join(str(n) for n in nodes))
