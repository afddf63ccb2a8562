"""The loop of the passes that write single operators in another way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal
from edgekit.passes.subgraph import Builder, Rewriter

#: Empty: the node is rewritten. Words: it stays, for this reason. None: there is nothing to do.
Verdict = str | None


def rewrite_nodes(
    graph: Graph,
    pass_name: str,
    words: str,
    ops: Collection[str],
    judge: Callable[[ir.Node], Verdict],
    rewrite: Callable[[Builder, ir.Node], None],
    **details: str,
) -> Graph:
    """Replace every node of some operators, or say why it has to stay.

    Args:
        graph: The graph, with static shapes.
        pass_name: What the history calls it.
        words: What the result says was done; ``{}`` stands for the number of nodes.
        ops: Operators of the standard domain.
        judge: Whether to rewrite a node.
        rewrite: Puts other nodes in the place of one; the builder names them after its first output.
        details: What else the history keeps.
    """
    result = graph.copy()
    rewriter = Rewriter(result.model)
    done: Counter[str] = Counter()
    refused: list[Refusal] = []
    for node in [n for n in result.model.graph if n.op_type in ops and not n.domain]:
        if node.graph is None:  # went with a node before it
            continue
        verdict = judge(node)
        if verdict is None:
            continue
        if verdict:
            refused.append(Refusal(str(node.name), verdict))
            continue
        done[node.op_type] += 1
        rewrite(rewriter.before(node, str(node.outputs[0].name)), node)
    change = Change(
        pass_name, words.format(done.total()), tuple(refused), {"rewritten": dict(done), **details}
    )
    return result.with_change(change)


def given(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator requires.

    Raises:
        ValueError: The node lacks it, which no valid model does.
    """
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        raise ValueError(f"{node.name} has no input {index}")
    return value


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT
