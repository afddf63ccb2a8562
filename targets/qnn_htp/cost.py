"""What a network costs while it is being pruned: the roofline of :mod:`.estimate`, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import onnx_ir as ir

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.measure.result import Measurement
from edgekit.prune.pricing import as_is, moved_bytes
from edgekit.quantize.plan import MAC_OPS
from edgekit.target import NodeRequest
from edgekit.targets.qnn_htp.estimate import estimate
from edgekit.targets.qnn_htp.layers import read_network
from edgekit.targets.qnn_htp.profiles import HtpProfile
from edgekit.targets.qnn_htp.work import work_of

_BIAS_BYTES = 4


@dataclass
class HtpCost:
    """A :class:`~edgekit.target.CostModel`; make one with :meth:`open`.

    Attributes:
        profile: The processor.
        item: Bytes of one element of an activation: 1 for a8w8, 2 for a16w8.
        notes: What the reader must know.
    """

    profile: HtpProfile
    item: int = 1
    notes: tuple[str, ...] = ()
    _rates: dict[str, float] = field(default_factory=dict)
    _fixed: float = 0.0

    @classmethod
    def open(cls, profile: HtpProfile, graph: Graph, kind: str, *, item: int = 1) -> HtpCost:
        """The cost model for pruned forms of ``graph``.

        Args:
            profile: The processor.
            graph: The network before pruning; captured, float.
            kind: ``int8``: what computes in float does not run on the processor.
            item: Bytes of one element of an activation.

        Raises:
            UsageError: ``kind`` is not ``int8``.
            ModelError: A tensor has no static shape.
        """
        if kind != "int8":
            raise UsageError("networks on HTP compute in integers only", where="cost_kind", valid=("int8",))
        note = (
            f"latency is a model-estimate from figures of {profile.soc}: it compares forms of one network, "
            "and a device takes longer"
        )
        cost = cls(profile, item, (note,))
        cost._calibrate(graph)
        return cost

    @property
    def parts(self) -> int:
        """Time jumps where a group of 32 channels ends, and asking costs nothing."""
        return 8

    @property
    def fixed_ms(self) -> float:
        return self._fixed

    def node_ms(self, requests: Sequence[NodeRequest]) -> list[float]:
        """See :class:`~edgekit.target.CostModel`; activations are taken to be in the VTCM."""
        return [self._ms(request) for request in requests]

    def byte_ms(self, node: ir.Node) -> float:
        """See :class:`~edgekit.target.CostModel`."""
        return 0.0 if node.op_type in MAC_OPS else self._rates.get(str(node.name), 0.0)

    def predict(self, graph: Graph) -> Measurement:
        """The whole network, with what is spilled."""
        return estimate(graph, self.profile, item=self.item).latency

    def _ms(self, request: NodeRequest) -> float:
        work = work_of(request, self.item)
        biases = sum(prod(shape) for shape in request.inputs[2:] if shape is not None)
        ddr = work.weights + _BIAS_BYTES * biases if request.node.op_type in MAC_OPS else 0
        cycles = max(
            work.matrix_macs / self.profile.mac_rate(self.item),
            work.vector_bytes / self.profile.vector_bytes_per_cycle,
            ddr / self.profile.ddr_bytes_per_cycle,
        )
        return self.profile.milliseconds(cycles)

    def _calibrate(self, graph: Graph) -> None:
        """Rates of the nodes that do not multiply, and what no node accounts for."""
        kernels = {layer.name for layer in read_network(graph).layers}
        total = 0.0
        for node in graph.nodes:
            if str(node.name) in kernels:
                time = self._ms(as_is(node))
                total += time
                if node.op_type not in MAC_OPS:
                    self._rates[str(node.name)] = time / max(1, moved_bytes(node))
        self._fixed = max(0.0, self.predict(graph).value - total)
