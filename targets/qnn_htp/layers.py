"""The layers that a Hexagon Tensor Processor computes, read from a QDQ graph or a float one as if in int8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.edit import is_constant, static_shape
from edgekit.prune.pricing import as_is
from edgekit.quantize.plan import MAC_OPS
from edgekit.stats import node_macs
from edgekit.targets.qnn_htp.work import Work, padded_elements, work_of

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FUSED = frozenset({"Relu", "Clip"})
_FUSES = MAC_OPS | {"Add", "Sub", "Mul", "Div"}
_BIAS_BYTES = 4
_WIDEST = 2  # bytes of an activation's codes; what is larger counts or indexes
_NOTHING = frozenset({"Identity", "Dropout", "Constant"})


@dataclass
class Tensor:
    """An activation as it is stored.

    Attributes:
        size: Bytes, channels padded.
        born: Number of the layer that writes it.
        last: Number of the last layer that reads it.
        outside: Whether it is an input or output of the network, which lies in the memory outside.
    """

    size: int
    born: int
    last: int
    outside: bool = False


@dataclass
class Layer:
    """One operator with what is computed in its kernel.

    Attributes:
        name: Name of the ONNX node.
        op: Its operator, with an activation that follows in the same kernel: ``Conv+Relu``.
        item: Bytes of one element of its activations: 2 where it computes with 16 bits.
        macs: Multiply-accumulates, unpadded.
        work: What the units do.
        weight_bytes: Its constants as they are stored.
        reads: Keys of the tensors that it reads.
        writes: Keys of the tensors that it writes.
    """

    name: str
    op: str
    item: int
    macs: int
    work: Work
    weight_bytes: int = 0
    reads: list[ir.Value] = field(default_factory=list)
    writes: list[ir.Value] = field(default_factory=list)


@dataclass(frozen=True)
class Network:
    """Layers and tensors of one graph.

    Attributes:
        layers: In execution order.
        tensors: Every activation.
        left: Nodes that compute in float beside the processor.
        quantized: Whether the graph has number formats.
        item: Bytes that an activation of a float graph was taken to have.
    """

    layers: tuple[Layer, ...]
    tensors: dict[ir.Value, Tensor]
    left: tuple[ir.Node, ...]
    quantized: bool
    item: int = 1


def read_network(graph: Graph, item: int = 1) -> Network:
    """The layers of a graph.

    Args:
        graph: A QDQ graph, or a float one.
        item: Bytes of one activation element of a float graph.

    Raises:
        ModelError: A tensor has no static shape.
    """
    return _Reader(graph, item).read()


class _Reader:
    def __init__(self, graph: Graph, item: int) -> None:
        self.item = item
        self.nodes = list(graph.nodes)
        self.quantized = any(node.op_type == _DEQUANTIZE for node in self.nodes)
        self.inputs = set(graph.model.graph.inputs)
        self.outputs = set(graph.model.graph.outputs)
        self.layers: list[Layer] = []
        self.tensors: dict[ir.Value, Tensor] = {}
        self.left = {node: None for node in self.nodes if self._in_float(node)}
        self.fused: set[ir.Node] = set()

    def read(self) -> Network:
        for node in self.nodes:
            if node in self.fused or node.op_type in _NOTHING or self._folded(node):
                continue
            if node.op_type in (_QUANTIZE, _DEQUANTIZE):
                if self._converts(node):
                    self._add(node, node.outputs[0])
            elif node not in self.left:
                self._compute(node)
        return Network(tuple(self.layers), self.tensors, tuple(self.left), self.quantized, self.item)

    def _compute(self, node: ir.Node) -> None:
        last = node
        while (following := self._absorbed(last)) is not None:
            self.fused.add(following)
            last = following
        self._add(node, *(last.outputs if last is not node else node.outputs), last=last)

    def _add(self, node: ir.Node, *outputs: ir.Value, last: ir.Node | None = None) -> None:
        reads = list(dict.fromkeys(self._root(v) for v in node.inputs if v is not None and _computed(v)))
        writes = [self._stored(v) for v in outputs if v.name]
        item = max((size for v in reads if (size := self._item(v)) <= _WIDEST), default=1)
        op = node.op_type if last is None or last is node else f"{node.op_type}+{last.op_type}"
        for value in (*(v for v in node.inputs if v is not None), *outputs):
            _shape(value)
        work = work_of(as_is(node), item)
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            work = Work(vector_bytes=sum(prod(_shape(v)) * self._item(v) for v in (*reads, *writes)))
        layer = Layer(
            str(node.name), op, item, node_macs(node), work, self._constants(node, work), reads, writes
        )
        number = len(self.layers)
        self.layers.append(layer)
        for value in reads:
            known = self.tensors.get(value)
            if known is None:
                self.tensors[value] = self._tensor(value, number)
            else:
                known.last = number
        for value in writes:
            self.tensors[value] = self._tensor(value, number)

    def _tensor(self, value: ir.Value, number: int) -> Tensor:
        outside = value in self.inputs or value in self.outputs
        if self.quantized and _is_float(value):
            outside = True  # what a CPU computes, or reads
        elements = prod(_shape(value)) if outside else padded_elements(_shape(value))
        return Tensor(elements * self._item(value), number, number, outside)

    def _item(self, value: ir.Value) -> int:
        if value.dtype is None:
            return 1
        if value.dtype.is_floating_point() and not self.quantized:
            return 1 if is_constant(value) else self.item
        return max(1, int(value.dtype.itemsize))

    def _constants(self, node: ir.Node, work: Work) -> int:
        """Bytes of a node's constants; the weight of a multiplication is padded."""
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            return 0
        total = 0
        for index, value in enumerate(node.inputs):
            codes = _codes(value)
            if value is None or codes is None:
                continue
            elements = prod(_shape(codes))
            if index == 1 and work.weights:
                elements = work.weights
            elif node.op_type == "Gather" and index == 0:
                elements = min(elements, prod(_shape(node.outputs[0])))
            bias = index > 1 and node.op_type in MAC_OPS
            total += elements * (_BIAS_BYTES if bias else self._item(codes))
        return total

    def _root(self, value: ir.Value) -> ir.Value:
        """The stored form of what a node reads."""
        producer = value.producer()
        if producer is not None and producer.op_type == _DEQUANTIZE and producer.inputs[0] is not None:
            return producer.inputs[0]
        if producer is not None and producer.op_type in _NOTHING and producer.inputs:
            return self._root(producer.inputs[0]) if producer.inputs[0] is not None else value
        return value

    def _stored(self, value: ir.Value) -> ir.Value:
        """The stored form of what a node writes: the codes, where it is quantized at once."""
        for node in value.consumers():
            if node.op_type == _QUANTIZE and not self._is_second(node):
                return node.outputs[0]
        return value

    def _is_second(self, quantize: ir.Node) -> bool:
        """Whether a tensor has another quantized form before this one."""
        value = quantize.inputs[0]
        if value is None:
            return False
        first = next(n for n in value.consumers() if n.op_type == _QUANTIZE)
        return first is not quantize

    def _converts(self, node: ir.Node) -> bool:
        """Whether a Quantize or Dequantize node is a kernel of its own: at the ends, between formats."""
        value = node.inputs[0]
        if value is None or is_constant(value):
            return False
        if node.op_type == _DEQUANTIZE:
            result = node.outputs[0]
            return result in self.outputs or any(reader in self.left for reader in result.consumers())
        producer = value.producer()
        if producer is None or producer in self.left or producer.op_type == _DEQUANTIZE:
            return True
        return self._is_second(node)

    def _absorbed(self, node: ir.Node) -> ir.Node | None:
        """What follows in the same kernel."""
        return None if node.outputs[0] in self.outputs else _follower(node)

    def _in_float(self, node: ir.Node) -> bool:
        """Whether a node of a quantized graph computes in float."""
        if not self.quantized or node.op_type in (_QUANTIZE, _DEQUANTIZE, *_NOTHING) or self._folded(node):
            return False
        if any(_is_float(v) and _computed(v) and not _is_coded(v) for v in node.inputs if v is not None):
            return True
        return any(_is_float(v) and not self._reaches_codes(v) for v in node.outputs if v.name)

    def _reaches_codes(self, value: ir.Value) -> bool:
        if any(reader.op_type == _QUANTIZE for reader in value.consumers()):
            return True
        producer = value.producer()
        following = None if producer is None else _follower(producer)
        return following is not None and self._reaches_codes(following.outputs[0])

    def _folded(self, node: ir.Node) -> bool:
        return not any(v is not None and _computed(v) for v in node.inputs)


def _codes(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a constant input, None where the input is computed or left out."""
    if value is None or _computed(value):
        return None
    producer = value.producer()
    return value if producer is None else producer.inputs[0]


def _computed(value: ir.Value) -> bool:
    """False for a constant and for a constant that is dequantized."""
    producer = value.producer()
    if producer is not None and producer.op_type == _DEQUANTIZE:
        return not is_constant(producer.inputs[0])
    return not is_constant(value)


def _is_coded(value: ir.Value) -> bool:
    """Whether a float tensor exists as codes, or only inside the kernel of which it is a part."""
    producer = value.producer()
    if producer is None:
        return False
    return producer.op_type == _DEQUANTIZE or _follower(producer) is not None


def _follower(node: ir.Node) -> ir.Node | None:
    """The activation, or the bias of a MatMul, that is computed in the same kernel as what it reads."""
    readers = list(node.outputs[0].consumers()) if len(node.outputs) == 1 else []
    if node.op_type not in _FUSES or len(readers) != 1:
        return None
    if readers[0].op_type == "Add" and node.op_type == "MatMul":
        others = [v for v in readers[0].inputs if v is not node.outputs[0]]
        return readers[0] if all(v is not None and not _computed(v) for v in others) else None
    return readers[0] if readers[0].op_type in _FUSED else None


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = static_shape(value)
    if shape is None:
        raise ModelError(f"tensor '{value.name}' has no static shape", hint="Capture the model first")
    return shape


def live_bytes(network: Network) -> list[int]:
    """Bytes of the activations alive at each layer, those outside left out."""
    return list(_sweep(network))


def _sweep(network: Network) -> Iterator[int]:
    change = [0] * (len(network.layers) + 1)
    for tensor in network.tensors.values():
        if not tensor.outside:
            change[tensor.born] += tensor.size
            change[tensor.last + 1] -= tensor.size
    live = 0
    for step in change[:-1]:
        live += step
        yield live
