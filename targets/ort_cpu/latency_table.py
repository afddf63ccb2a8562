"""What pruned forms of a network cost on this machine: a table of kernels, timed one by one.

    latency = scale x sum of table[node] + sum of rate[op] x bytes + fixed

1. Conv, ConvTranspose, Gemm and MatMul: a model of that one node (with the activation that ONNX Runtime fuses
   into it; for int8 with QuantizeLinear and DequantizeLinear around it) is timed by ONNX Runtime's profiler.
2. All other nodes: time per byte, from a profile of the whole original network. What ONNX Runtime makes of
   them is seen there: a fused node costs nothing, two that became one share its time.
3. ``scale`` brings the table to the same profile: in a network a kernel finds its input in the cache.

Figures are remembered in the user's cache folder, for the CPU and the version of ONNX Runtime.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.artifacts import KINDS
from edgekit.errors import OutputError, UsageError
from edgekit.files import write_whole
from edgekit.graph import Graph, array
from edgekit.measure.machine import core_ids, machine
from edgekit.measure.result import Measurement, Method
from edgekit.passes.edit import is_constant
from edgekit.prune.pricing import as_is, cache_file, moved_bytes, other_bytes
from edgekit.quantize.made_up import with_made_up_ranges
from edgekit.quantize.plan import MAC_OPS
from edgekit.target import NodeRequest, Profile
from edgekit.targets.ort_cpu.kernel_times import Job, Kernels, time_kernels
from edgekit.targets.ort_cpu.lift_biases import lift_biases

if TYPE_CHECKING:
    import onnx

    from edgekit.quantize.scheme import Scheme

#: Activations that ONNX Runtime computes inside the kernel before them.
FUSED = frozenset({"Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid"})
#: Kernels that multiply and accumulate, under the names that ONNX Runtime gives them.
KERNELS = frozenset(
    {
        *MAC_OPS, "FusedConv", "FusedGemm", "FusedMatMul", "QLinearConv", "QGemm", "QLinearMatMul",
        "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    }
)  # fmt: skip
#: The profile of the whole network is taken longer than that of a node.
_WHOLE = {"passes": 3, "runs": 10, "seconds": 0.4, "most": 40, "wall": True}
#: Scales at which one profile is believed; otherwise the machine was busy and it is taken again, up to so
#: often.
_PLAUSIBLE = (0.8, 1.3)
_TRIES = 4
_FORMAT = 1


@dataclass
class LatencyTable:
    """A :class:`~edgekit.target.CostModel`; make one with :meth:`open`.

    Attributes:
        graph: The network before pruning.
        kind: ``float`` or ``int8``.
        threads: ONNX Runtime threads.
        scheme: Number formats for int8.
        path: File in which figures are remembered; None for nowhere.
        known: Milliseconds by description of the node.
        measured: Nodes timed by this object (others were known).
        notes: What the reader must know.
    """

    graph: Graph
    kind: str
    threads: int
    scheme: Scheme | None
    path: Path | None
    known: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    notes: tuple[str, ...] = ()
    _rates: dict[str, float] = field(default_factory=dict)
    _scale: float = 1.0
    _fixed: float = 0.0
    _quiet: bool = False

    @classmethod
    def open(
        cls,
        profile: Profile,
        scheme: Scheme | None,
        graph: Graph,
        kind: str,
        threads: int,
        *,
        cache: bool = True,
    ) -> LatencyTable:
        """Profile the network as it is and get the table of its kernels ready.

        Args:
            profile: Has to be this machine.
            scheme: Number formats for ``int8``.
            graph: The network before pruning; captured, float.
            kind: ``float`` or ``int8``.
            threads: ONNX Runtime threads; 0 is the profile's.
            cache: Whether figures are remembered in the user's cache folder.

        Raises:
            UsageError: The profile is another machine, or ``kind`` is unknown.
            ToolError: The measurement failed.
        """
        if not profile.host:
            raise UsageError(
                f"latency on {profile.title} cannot be told here: that needs a table of its kernels",
                where="target",
                hint="Prune to a share of macs, or for a profile of this machine such as ort-cpu:host-1t",
            )
        if kind not in KINDS or (kind == "int8" and scheme is None):
            raise UsageError(f"there is no artifact kind '{kind}'", where="cost_kind", valid=KINDS)
        count = min(threads or profile.threads or len(core_ids()), len(core_ids()))
        table = cls(graph, kind, count, scheme, _cache_file(kind, count) if cache else None)
        table._load()
        table._calibrate()
        return table

    @property
    def parts(self) -> int:
        """Timing takes long, and the time of a CPU's kernels grows evenly."""
        return 4

    @property
    def fixed_ms(self) -> float:
        return self._fixed

    def node_ms(self, requests: Sequence[NodeRequest]) -> list[float]:
        """See :class:`~edgekit.target.CostModel`; what is not known yet is timed now."""
        return [self._scale * self.known[key] for key in self._look_up(requests)]

    def byte_ms(self, node: ir.Node) -> float:
        return 0.0 if node.op_type in MAC_OPS else self._rates.get(node.op_type, self._rates[""])

    def predict(self, graph: Graph) -> Measurement:
        """The latency of a pruned form of the network.

        Raises:
            ToolError: A kernel that was not known could not be timed.
        """
        requests = [as_is(node) for node in graph.nodes if node.op_type in MAC_OPS]
        kernels = sum(self.node_ms(requests))
        others = sum(self.byte_ms(node) * moved_bytes(node) for node in graph.nodes)
        spread = {"kernels": kernels, "others": others, "fixed": self._fixed}
        note = f"from kernels timed one by one on this machine, {self.kind}, threads: {self.threads}"
        return Measurement(kernels + others + self._fixed, "ms", Method.MODEL_ESTIMATE, spread, note)

    def _look_up(self, requests: Sequence[NodeRequest]) -> list[str]:
        """Keys of the nodes, all of them known afterwards."""
        models = {}
        keys = []
        for request in requests:
            key = _describe(request)
            keys.append(key)
            if key not in self.known and key not in models:
                models[key] = self._compiled(_single(request))
        if models:
            for key, kernels in zip(models, self._time(list(models.values())), strict=True):
                own = {op: ms for op, ms in kernels.ms.items() if op in KERNELS}
                self.known[key] = sum((own or kernels.ms).values())
            self.measured += len(models)
            self._save()
        return keys

    def _calibrate(self) -> None:
        """Scale, rates and the fixed part from a profile of the whole network."""
        nodes = [n for n in self.graph.nodes if n.op_type in MAC_OPS]
        table = sum(self.known[key] for key in self._look_up([as_is(n) for n in nodes]))
        model, best = self._compiled(self.graph), None
        for _ in range(_TRIES):
            (whole,) = self._time([model], whole=True)
            if best is None or sum(whole.ms.values()) < sum(best.ms.values()):
                best = whole
            own = sum(ms for op, ms in best.ms.items() if op in KERNELS)
            self._scale = own / table if table > 0 and own > 0 else 1.0
            self._fixed = max(0.0, best.run_ms - sum(best.ms.values()))
            self._rates = _rates(self.graph, {op: ms for op, ms in best.ms.items() if op not in KERNELS})
            if _PLAUSIBLE[0] <= self._scale <= _PLAUSIBLE[1]:
                self._quiet = True
                self._save()
                return
        text = f"kernels take {self._scale:.2f} x as long in the network as by themselves"
        self.notes = (
            *self.notes,
            f"{text}: other work runs on this machine. The estimate is rough, takes kernels by "
            "themselves as the measure, and is not remembered",
        )
        # Short kernels slip through between interruptions, the whole network does not: it is brought to the
        # kernels' measure, and the difference to the wall clock is the other work's, not the network's.
        self._rates = {op: rate / self._scale for op, rate in self._rates.items()}
        self._scale, self._fixed = 1.0, 0.0

    def _compiled(self, graph: Graph) -> bytes:
        if self.kind == "int8" and self.scheme is not None:
            graph = lift_biases(with_made_up_ranges(graph, self.scheme))
        return graph.to_bytes()

    def _time(self, models: Sequence[bytes], *, whole: bool = False) -> list[Kernels]:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            files = []
            for number, model in enumerate(models):
                path = Path(folder) / f"{number}.onnx"
                path.write_bytes(model)
                files.append(str(path))
            effort: dict[str, Any] = _WHOLE if whole else {}
            return time_kernels(Job(files, self.threads, list(core_ids()[-self.threads :]), **effort))

    def _load(self) -> None:
        if self.path is None or not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] == _FORMAT:
                self.known.update({str(key): float(ms) for key, ms in content["ms"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.notes = (*self.notes, f"the remembered kernel times are not used: {error}")

    def _save(self) -> None:
        if self.path is None or not self._quiet:
            return
        content = {"format": _FORMAT, "machine": machine(), "ms": self.known}
        try:
            write_whole(self.path, json.dumps(content, indent=0).encode())
        except OutputError as error:
            self.notes = (*self.notes, f"kernel times are not remembered: {error}")


def _cache_file(kind: str, threads: int) -> Path:
    here = machine()
    identity = [here["cpu"], here["features"], here["onnxruntime"], here["os"]]
    return cache_file("kernels", identity, f"-{kind}-{threads}")


def _describe(request: NodeRequest) -> str:
    """Everything that a kernel's time depends on."""
    node, fused = request.node, _fused(request.node)
    constants = [v is not None and is_constant(v) for v in node.inputs]
    parts = [node.op_type, _attributes(node), request.inputs, constants, fused.op_type if fused else ""]
    return json.dumps(parts, separators=(",", ":"))


def _attributes(node: ir.Node) -> dict[str, Any]:
    # The group count follows from the shapes.
    plain = {a.name: a.value for a in node.attributes.values() if a.name != "group"}
    return {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in sorted(plain.items())}


def _fused(node: ir.Node) -> ir.Node | None:
    """The activation that ONNX Runtime computes in the same kernel."""
    out = node.outputs[0]
    readers = list(out.uses())
    if len(readers) != 1 or out.is_graph_output() or node.op_type not in ("Conv", "Gemm"):
        return None
    reader = readers[0].node
    bounded = all(v is None or is_constant(v) for v in reader.inputs[1:])
    return reader if reader.op_type in FUSED and bounded else None


def _single(request: NodeRequest) -> Graph:
    """A model of one node with random weights, and its activation."""
    from onnx import TensorProto, helper, numpy_helper

    from edgekit.graph import OPSET
    from edgekit.passes.infer_shapes import infer_shapes

    random = np.random.default_rng(0)
    proto = ir.to_proto(request.node)
    inputs, weights = [], []
    for index, (value, shape) in enumerate(zip(request.node.inputs, request.inputs, strict=True)):
        if value is None or shape is None:
            continue
        proto.input[index] = f"in{index}"
        if is_constant(value):
            values = random.standard_normal(shape).astype(np.float32) * 0.1
            weights.append(numpy_helper.from_array(values, f"in{index}"))
        else:
            inputs.append(helper.make_tensor_value_info(f"in{index}", TensorProto.FLOAT, shape))
    proto.output[0] = "made"
    _set_group(proto, request)
    nodes, last = [proto], "made"
    activation = _fused(request.node)
    if activation is not None:
        nodes.append(ir.to_proto(activation))
        nodes[-1].input[0], nodes[-1].output[0], last = "made", "shaped", "shaped"
        weights += [
            numpy_helper.from_array(held, str(v.name))
            for v in activation.inputs[1:]
            if v is not None and (held := array(v)) is not None
        ]
    result = helper.make_tensor_value_info(last, TensorProto.FLOAT, request.outputs[0])
    graph = helper.make_graph(nodes, "node", inputs, [result], weights)
    opset = [helper.make_opsetid("", OPSET)]
    return infer_shapes(Graph(ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))))


def _set_group(proto: onnx.NodeProto, request: NodeRequest) -> None:
    left, right = request.inputs[0], request.inputs[1]
    for attribute in proto.attribute:
        if attribute.name == "group" and left is not None and right is not None and attribute.i > 1:
            depthwise = request.node.op_type == "Conv" and right[1] > 0
            attribute.i = left[1] // right[1] if depthwise else attribute.i


def _rates(graph: Graph, ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds per byte by operator type; under the empty name those that the profile does not name.

    1. An operator that the profile names shares its time among its nodes.
    2. All other kernels (layout changes, fused operators) are shared by the nodes that the profile does not
       name, which they were made from.
    """
    sizes = other_bytes(graph)
    named = {op: _kernel_ms(op, ms) for op in sizes}
    rates = {op: time / sizes[op] for op, time in named.items() if time and sizes[op]}
    rest = sum(ms.values()) - sum(time for op, time in named.items() if op in rates)
    unnamed = sum(size for op, size in sizes.items() if op not in rates)
    return {**rates, "": max(0.0, rest) / unnamed if unnamed else 0.0}


def _kernel_ms(op: str, ms: Mapping[str, float]) -> float:
    names = (op, f"QLinear{op}", f"Nhwc{op}", f"Fused{op}", *(("Upsample",) if op == "Resize" else ()))
    return sum(ms.get(name, 0.0) for name in names)
