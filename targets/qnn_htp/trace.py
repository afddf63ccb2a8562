"""What the QNN execution provider says that it made of a model.

It writes a trace beside the context: which nodes became which QNN operators, and which it leaves, with the
reason. The trace calls nodes as they are after ONNX Runtime's layout transformation: ``conv_token_7`` for
what the file calls ``conv``, ``x_DequantizeLinear/duplicated`` for a DequantizeLinear that feeds two nodes,
and names that no file has for the Transposes that were put in. :func:`read_trace` gives the file's names
back.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import ToolError
from edgekit.target import LeftNode
from edgekit.targets.qnn_htp.names import NodeTable

FILE_NAME = "qnn_op_trace.json"
_QDQ = ("QuantizeLinear", "DequantizeLinear")
#: QNN operators between codes and floats: in a group of other nodes, what is between them is float.
_CONVERTS = frozenset({"Quantize", "Dequantize"})
#: What the provider calls the functions and partitions that it made itself.
_OWN = re.compile(r"^QNNExecutionProvider_")
_SAYS = re.compile(r"\s*\w+ node `[^`]*` will not be assigned to QNN EP\.")


@dataclass(frozen=True)
class NodeMapping:
    """Nodes of the file that became QNN operators together.

    Attributes:
        nodes: Names of the nodes, such as a convolution and the activation behind it; Q or DQ where they
            stay operators of their own. Empty where the provider put the operator in.
        ops: Their types, in the same order.
        names: What the provider calls the whole group.
        quantizers: Names of the QuantizeLinear and DequantizeLinear nodes that they absorb.
        qnn_ops: Types of the QNN operators.
        fusion: What the provider calls this kind of group: ``OrtNodeUnit`` for a node with its Q and DQ,
            another word where it fused more.
        is_conversion: Whether it only converts between number formats.
        is_float: Whether it computes in float: a float tensor enters or leaves it without a Q or DQ, or the
            provider put the kernels' own conversions between them.
    """

    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    names: tuple[str, ...]
    quantizers: tuple[str, ...]
    qnn_ops: tuple[str, ...]
    fusion: str
    is_conversion: bool = False
    is_float: bool = False


@dataclass(frozen=True)
class Trace:
    """What became of a model.

    Attributes:
        mappings: In the order of the trace.
        refused: The nodes that HTP does not take, with the reason; a Q or DQ only where it is refused itself.
        qnn_ops: Number of QNN operators of each type.
        removed: The nodes of the file that ONNX Runtime's own rewrites left nothing of: Transposes that
            cancel against those of the layout, one of two equal nodes, slices and a Concat that became one
            SpaceToDepth. Known only where the trace was read with the model.
        inserted: Names of the nodes that they put in, such as Transposes for the layout.
        fusions: Number of groups of each kind.
        total: Nodes that the provider was asked about, Q and DQ included.
        supported: How many of them it took.
        subgraphs: Parts that the model fell into.
        soc_model: The SoC that was asked for, by QNN's number; 0 where it was not.
        arch: The HTP architecture that was asked for, such as 75; 0 where it was not. What the context was
            made for is in its :class:`~edgekit.targets.qnn_htp.stamp.Stamp`.
    """

    mappings: tuple[NodeMapping, ...]
    refused: tuple[LeftNode, ...]
    qnn_ops: dict[str, int]
    removed: tuple[str, ...]
    inserted: tuple[str, ...]
    fusions: dict[str, int]
    total: int
    supported: int
    subgraphs: int
    soc_model: int
    arch: int

    @property
    def complete(self) -> bool:
        """Whether every node is on HTP, in one piece."""
        return self.supported == self.total > 0 and not self.refused and self.subgraphs == 1

    @property
    def float_nodes(self) -> tuple[str, ...]:
        """Names of the nodes that HTP computes in float; known where the trace was read with the model."""
        return tuple(name for mapping in self.mappings if mapping.is_float for name in mapping.nodes)

    @property
    def conversions(self) -> tuple[str, ...]:
        """Names of the Q and DQ that stay operators of their own, those at the graph's edge among them.

        One that the layout transformation moved has the provider's name.
        """
        groups = (m.nodes or m.names for m in self.mappings if m.is_conversion)
        return tuple(dict.fromkeys(name for group in groups for name in group))

    def qnn_of(self, node: str) -> tuple[str, ...]:
        """Types of the QNN operators that a node of the file is part of; empty where it is in none."""
        return tuple(op for m in self.mappings if node in m.nodes for op in m.qnn_ops)


def read_trace(path: Path, model: Path | None = None) -> Trace:
    """Read ``qnn_op_trace.json``.

    Args:
        path: The trace.
        model: The ``.onnx`` file that was compiled: with it names are given back for certain, and nodes
            that compute in float are found.

    Raises:
        ToolError: The file is missing, or not what the provider of version 2.7 writes.
    """
    if not path.is_file():
        raise ToolError(
            "the QNN execution provider wrote no trace, so nothing is known of what runs on HTP",
            where=str(path),
        )
    try:
        return _trace(json.loads(path.read_text(encoding="utf-8")), NodeTable.read(model))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ToolError(
            f"the trace is not as the QNN execution provider 2.7 writes it: {error!r}",
            where=str(path),
            hint="pip install 'edgekit[qnn]' gives a version that edgekit knows",
        ) from error


def _trace(data: dict[str, Any], table: NodeTable) -> Trace:
    entries = [entry for part in data["subgraph_traces"] for entry in part["op_mappings"]]
    mappings, inserted = _mappings(entries, table)
    target, summary = data["soc_traces"][0]["compilation_target"], data["summary"]
    left = [
        LeftNode(table.find(n["node_name"]) or n["node_name"], n["op_type"], _reason(n["reason"]))
        for n in data["unsupported_nodes"]
    ]
    return Trace(
        mappings=mappings,
        refused=_cores(left),
        qnn_ops=dict(sorted(Counter(str(entry["dst_qnn_op_type"]) for entry in entries).items())),
        removed=_removed(mappings, left, table),
        inserted=inserted,
        fusions={str(kind): int(count) for kind, count in sorted((summary["fusion_count"] or {}).items())},
        total=int(summary["total_onnx_nodes"]),
        supported=int(summary["supported_nodes"]),
        subgraphs=int(summary["qnn_subgraphs"]),
        soc_model=int(target["soc_model"] or 0),
        arch=int(str(target["htp_arch"]).lstrip("Vv") or 0),
    )


def _mappings(
    entries: list[dict[str, Any]], table: NodeTable
) -> tuple[tuple[NodeMapping, ...], tuple[str, ...]]:
    # One group of nodes may become several operators, each with an entry of its own.
    groups: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for entry in entries:
        names = tuple(str(s["name"]) for s in entry["sources"] if s["type"] == "OP")
        groups.setdefault(names, (str(entry["node_group_type"]), []))[1].append(str(entry["dst_qnn_op_type"]))
    mappings: list[NodeMapping] = []
    inserted: dict[str, None] = {}
    for names, (fusion, qnn_ops) in groups.items():
        known = {name: table.find(name) for name in names}
        inserted |= dict.fromkeys(n for n, k in known.items() if not k and table.op(n) not in _QDQ)
        mappings.append(_mapping(names, table, qnn_ops, fusion))
    return tuple(mappings), tuple(inserted)


def _removed(mappings: Iterable[NodeMapping], left: Iterable[LeftNode], table: NodeTable) -> tuple[str, ...]:
    there = {name for m in mappings for name in m.nodes} | {node.node for node in left}
    return tuple(
        n for n, node in table.nodes.items() if node.op not in (*_QDQ, "Constant") and n not in there
    )


def _mapping(names: tuple[str, ...], table: NodeTable, qnn_ops: list[str], fusion: str) -> NodeMapping:
    found = [(table.find(name), table.op(name)) for name in names]
    kinds = [(name, op) for name, op in found if op in _QDQ]
    conversion = len(kinds) == len(found)
    nodes = {name: op for name, op in found if name and (conversion or op not in _QDQ)}
    quantizers = () if conversion else table.absorbed(tuple(nodes), kinds)
    open_ended = table.is_float(tuple(nodes), kinds) or not _CONVERTS.isdisjoint(qnn_ops)
    return NodeMapping(
        nodes=tuple(nodes),
        ops=tuple(nodes.values()),
        names=names,
        quantizers=quantizers,
        qnn_ops=tuple(qnn_ops),
        fusion=fusion,
        is_conversion=conversion,
        is_float=not conversion and open_ended,
    )


_FAILED = re.compile(
    r"Validation FAILED for .*\n(?P<nodes>(?:\s*Operator type: .*\n)+)\s*REASON : (?P<reason>.*)"
)
_ONE = re.compile(r"Operator type: (\S*) Node name: (.*) Node index: \d+")
_UNSUPPORTED = re.compile(r"Unsupported nodes in QNN EP: (.*)")
_NAMED = re.compile(r"\{ name: (.*?), type: (\S+?) \}")


def unplaced(log: str) -> tuple[LeftNode, ...]:
    """The nodes that the provider's messages say it leaves.

    Used where no trace was written, as when HTP takes nothing at all, and where a node was replaced by its
    definition: the trace speaks then of the parts alone, and the messages give no reason.
    """
    left: dict[str, LeftNode] = {}
    for failed in _FAILED.finditer(log):
        reason = _reason(failed["reason"])
        nodes = [LeftNode(name, op, reason) for op, name in _ONE.findall(failed["nodes"])]
        left |= {node.node: node for node in _cores(nodes)}
    for message in _UNSUPPORTED.findall(log):
        for name, op in _NAMED.findall(message):
            left.setdefault(name, LeftNode(name, op, "The QNN execution provider does not support it"))
    return tuple(node for node in left.values() if not _OWN.match(node.node))


def _reason(text: str) -> str:
    return _SAYS.sub("", str(text)).strip(" .\n")


def _cores(left: Iterable[LeftNode]) -> tuple[LeftNode, ...]:
    """Without the Q and DQ that are left because of the node between them, and without the provider's own."""
    left = [node for node in left if not _OWN.match(node.node)]
    reasons = {node.reason for node in left if node.op not in _QDQ}
    return tuple(node for node in left if node.op not in _QDQ or node.reason not in reasons)
