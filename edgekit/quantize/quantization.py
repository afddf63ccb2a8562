"""A float graph with everything that its quantized form is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from edgekit.graph import Graph, array
from edgekit.passes.edit import add_constant, set_constant
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import Plan, name
from edgekit.quantize.qdq import insert_qdq, weight_axis
from edgekit.quantize.qparams import QParams
from edgekit.quantize.scheme import Scheme


@dataclass(frozen=True)
class Quantization:
    """A float graph and how it is quantized.

    Attributes:
        work: The float graph, with its channels and biases as they were quantized.
        plan: What is quantized.
        params: Parameters of every tensor in ``plan.tensors``.
        scheme: The target's number formats.
        scales: Scales of the weights by node name.
    """

    work: Graph
    plan: Plan
    params: Mapping[str, QParams]
    scheme: Scheme
    scales: Mapping[str, Array]

    def deployed(self) -> Graph:
        """The QDQ graph."""
        return insert_qdq(self.work, self.plan, self.params, self.scheme, self.scales)

    def with_codes(self, codes: Mapping[str, Array]) -> Self:
        """The same with weights that are exactly their codes: nearest rounding then gives these codes.

        Args:
            codes: Codes of weights by node name, for the scales of this quantization.
        """
        work = self.work.copy()
        initializers = work.model.graph.initializers
        for node in list(work.nodes):
            found = codes.get(name(node))
            if found is None:
                continue
            value = node.inputs[1]
            weight = array(value)
            if value is None or weight is None:
                raise ValueError(f"node '{node.name}' has no stored weights")
            axis = weight_axis(node, self.scheme, weight.ndim)
            scales = np.asarray(self.scales[name(node)])
            if axis is not None and scales.ndim:
                scales = scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
            exact = (found * scales).astype(weight.dtype)
            if len(value.uses()) > 1:
                own = add_constant(work.model.graph, f"{value.name}.{name(node)}", exact)
                node.replace_input_with(1, own)
            else:
                set_constant(initializers[str(value.name)], exact)
        return replace(self, work=work)
