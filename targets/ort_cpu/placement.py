"""What ONNX Runtime's CPU provider made of a model: the nodes on integer kernels, those in float, and why.

The session is created with ``optimized_model_filepath``, so that ONNX Runtime writes down the graph it will
run. That graph is read back: element types are followed from node to node (the file does not state the types
of tensors that ONNX Runtime added), every node is counted, and for each float node the original graph tells
why.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ModelError
from edgekit.target import LeftNode, Placement

if TYPE_CHECKING:
    import onnx

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
#: Ops that compute in integers whatever their name in the original graph was.
_INTEGER_OPS = (
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "NhwcMaxPool",
    "QAttention",
    "QEmbedLayerNormalization",
)
#: Integer in, float out: the product is integer, the rescaling is fused into the same kernel.
_INTEGER_TO_FLOAT = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits")
#: Ops that only move values; on float tensors they cost time but compute nothing.
_MOVES = (
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Pad",
    "ReorderInput",
    "ReorderOutput",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
#: Ops with a kernel that goes from one scale to another. These two sets are what ONNX Runtime 1.32 does when
#: the op stands between Dequantize and Quantize nodes; the tests try each one with the installed version.
RESCALING_KERNELS = frozenset(
    {
        "Add",
        "AveragePool",
        "Concat",
        "Conv",
        "Gemm",
        "GlobalAveragePool",
        "LeakyRelu",
        "MatMul",
        "Mul",
        "Sigmoid",
        "Softmax",
    }
)
#: Ops that run on the 8-bit codes as they are, so only when input and output share scale and zero point.
SAME_SCALE_KERNELS = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "MaxPool",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
#: Names ONNX Runtime gives to an op that it has fused with its activation or brought to another layout.
_RENAMED = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "Upsample": "Resize"}

_FLOAT, _BYTE, _OTHER = "float", "byte", "other"
_TYPES = {1: _FLOAT, 10: _FLOAT, 11: _FLOAT, 16: _FLOAT, 2: _BYTE, 3: _BYTE}


def placement(path: Path) -> Placement:
    """Ask ONNX Runtime what it runs.

    A float model has an empty ``left``: nothing was asked to run in integers.

    Raises:
        ModelError: The file is missing or ONNX Runtime refuses it.
    """
    import onnx

    optimized = optimized_graph(path)
    before = onnx.load(path, load_external_data=False).graph
    kinds = _node_kinds(optimized)
    quantized = any(n.op_type in _CONVERSIONS or n.op_type.startswith("QLinear") for n in before.node)
    explain = _Reasons.of(before)
    floats = [node for node, kind in zip(optimized.node, kinds, strict=True) if kind == "float"]
    return Placement(
        integer_nodes=kinds.count("integer"),
        float_nodes=len(floats),
        conversions=kinds.count("conversion"),
        ops=dict(sorted(Counter(node.op_type for node in optimized.node).items())),
        left=tuple(LeftNode(_label(n), n.op_type, explain.why(n)) for n in floats) if quantized else (),
    )


def optimized_graph(path: Path) -> onnx.GraphProto:
    """The graph as ONNX Runtime runs it on this machine.

    Raises:
        ModelError: The file is missing or ONNX Runtime refuses it.
    """
    import onnx
    import onnxruntime as ort

    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        target = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own that share no public base
            raise ModelError(f"ONNX Runtime refuses the model: {error}", where=str(path)) from error
        return onnx.load(target, load_external_data=False).graph


def _node_kinds(graph: onnx.GraphProto) -> list[str]:
    """``integer``, ``float``, ``conversion`` or ``other`` (shape arithmetic, booleans) for every node."""
    types = _known_types(graph)
    kinds = []
    for node in graph.node:
        incoming = [types.get(name, _OTHER) for name in node.input if name]
        produced = _produced(node, incoming, types)
        for name in node.output:
            types.setdefault(name, produced)
        outgoing = [types[name] for name in node.output if name]
        kinds.append(_kind(node, incoming, outgoing))
    return kinds


def _known_types(graph: onnx.GraphProto) -> dict[str, str]:
    types = {t.name: _TYPES.get(t.data_type, _OTHER) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types.setdefault(value.name, _TYPES.get(value.type.tensor_type.elem_type, _OTHER))
    return types


def _produced(node: onnx.NodeProto, incoming: list[str], types: dict[str, str]) -> str:
    """Type of the node's first output when the file does not state it."""
    op = node.op_type
    if op == "DequantizeLinear" or op in _INTEGER_TO_FLOAT:
        return _FLOAT
    if op == "QuantizeLinear":
        # Without a zero point the codes are uint8, unless the attribute says otherwise; 16 bits have a zero
        # point.
        return types.get(node.input[2], _OTHER) if len(node.input) > 2 else _BYTE
    if op == "QGemm":
        # The last two inputs are the output's scale and zero point; without them the output is float.
        return _BYTE if len(node.input) > 8 and node.input[8] else _FLOAT
    if op.startswith("QLinear") or op in ("NhwcMaxPool", "DynamicQuantizeLinear"):
        return _BYTE
    if op == "Cast":
        return next((_TYPES.get(a.i, _OTHER) for a in node.attribute if a.name == "to"), _OTHER)
    if op in ("Shape", "Size", "NonZero", "ArgMax", "ArgMin", "ConvInteger", "MatMulInteger"):
        return _OTHER
    return incoming[0] if incoming else _OTHER


def _kind(node: onnx.NodeProto, incoming: list[str], outgoing: list[str]) -> str:
    op = node.op_type
    if op in _CONVERSIONS:
        return "conversion"
    if op.startswith("QLinear") or op in _INTEGER_OPS or op in _INTEGER_TO_FLOAT:
        return "integer"
    # Where and If have a boolean first; the data decides, not the first input.
    if _FLOAT in outgoing or (_FLOAT in incoming and _BYTE not in incoming):
        return "float"
    return "integer" if _BYTE in outgoing or _BYTE in incoming else "other"


@dataclass(frozen=True)
class _Reasons:
    """The original graph, asked why a node stayed in float.

    Attributes:
        producers: The node that writes a tensor.
        consumers: The nodes that read a tensor.
        constants: Names of initializers and outputs of Constant nodes.
        outputs: Names of the graph's outputs.
        wide: Tensors whose codes are wider than 8 bits.
        scales: Values of the scalar float constants, by name.
    """

    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    consumers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()
    scales: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Reasons:
        producers = {name: node for node in graph.node for name in node.output}
        consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                consumers.setdefault(name, []).append(node)
        constants = {t.name for t in graph.initializer}
        constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
        sixteen = {t.name for t in graph.initializer if t.data_type in (4, 5)}
        wide = {
            node.output[0]
            for node in graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
            if node.input[2] in sixteen
        }
        outputs = frozenset(o.name for o in graph.output)
        return cls(producers, consumers, frozenset(constants), outputs, frozenset(wide), _scalars(graph))

    def why(self, node: onnx.NodeProto) -> str:
        """The reason, in words for the user; ``node`` comes from the optimized graph."""
        op = _RENAMED.get(node.op_type, node.op_type)
        if op in ("ReorderInput", "ReorderOutput"):
            return "added by ONNX Runtime to change the memory layout around a float node"
        # A fused node keeps the name of its output tensor, not always that of the node.
        original = next((self.producers[name] for name in node.output if name in self.producers), None)
        if original is None:
            return "made by ONNX Runtime from float nodes whose inputs or outputs are not quantized"
        moves = "only moves float values: " if op in _MOVES else ""
        return moves + (self._why_original(original) or self._why_unfused(original))

    def _why_original(self, node: onnx.NodeProto) -> str:
        data = [name for name in node.input if name and name not in self.constants]
        results = [name for name in node.output if name]
        if self.wide & set(data).union(*map(self._codes, results)):
            return "its tensors have 16-bit codes, and ONNX Runtime's CPU has integer kernels for 8 bits only"
        fed = [name for name in data if self._is_dequantized(name)]
        if not fed and not any(self._codes(name) for name in results):
            return "its inputs and its output are not quantized"
        if len(fed) < len(data):
            plain = next(name for name in data if name not in fed)
            return f"its input '{plain}' is not quantized"
        if node.op_type not in RESCALING_KERNELS | SAME_SCALE_KERNELS:
            return f"ONNX Runtime's CPU has no integer kernel for {node.op_type}"
        return self._why_scales(node, fed[0]) if node.op_type in SAME_SCALE_KERNELS else ""

    def _why_scales(self, node: onnx.NodeProto, fed: str) -> str:
        scale = self.scales.get(self.producers[fed].input[1])
        for name in node.output:
            for reader in self.consumers.get(name, []):
                other = self.scales.get(reader.input[1]) if reader.op_type == "QuantizeLinear" else scale
                if scale is not None and other is not None and other != scale:
                    text = f"the scales of its input and output differ ({scale:.6g} and {other:.6g})"
                    return f"{text}, and {node.op_type} runs on integers only when they are equal"
        return ""

    def _why_unfused(self, node: onnx.NodeProto) -> str:
        for name in node.output:
            if name in self.outputs and not self._codes(name):
                return f"it writes the graph output '{name}' in float"
            if name and not self._codes(name):
                readers = ", ".join(sorted({n.op_type for n in self.consumers.get(name, [])})) or "nothing"
                return f"its output '{name}' is not quantized where it is read (by {readers})"
        return "quantized on both sides, but ONNX Runtime did not join it to an integer kernel"

    def _is_dequantized(self, name: str) -> bool:
        producer = self.producers.get(name)
        return producer is not None and producer.op_type == "DequantizeLinear"

    def _codes(self, name: str) -> set[str]:
        """The quantized views of a float tensor."""
        readers = self.consumers.get(name, [])
        return {n.output[0] for n in readers if n.op_type == "QuantizeLinear" and n.input[0] == name}


def _scalars(graph: onnx.GraphProto) -> dict[str, float]:
    from onnx import numpy_helper

    single = [t for t in graph.initializer if t.data_type == 1 and all(size == 1 for size in t.dims)]
    return {t.name: float(numpy_helper.to_array(t).reshape(-1)[0]) for t in single}


def _label(node: onnx.NodeProto) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)
