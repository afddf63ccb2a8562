"""Keep a MatMul and its bias apart, so that ONNX Runtime finds the integer kernel.

    MatMul(dequantized x, dequantized W) + b

ONNX Runtime 1.32 first fuses the MatMul and a bias of rank 1 into a float Gemm (MatMulAddFusion) and then
looks for quantized MatMuls: the Gemm stays in float, slower than the float network. With the bias written as
``[1, 1, N]`` that fusion does not match and MatMulIntegerToFloat is used. The sum is the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, array
from edgekit.passes.edit import Names, add_constant


def lift_biases(graph: Graph) -> Graph:
    """Give the bias of every quantized MatMul with a result of rank 3 or more that many axes."""
    result = graph.copy()
    main = result.model.graph
    names = Names(main)
    lifted = 0
    for node in [n for n in main if n.op_type == "Add"]:
        for index, value in enumerate(node.inputs):
            bias, other = array(value), node.inputs[1 - index]
            if value is None or bias is None or bias.ndim != 1 or not _is_quantized_matmul(other):
                continue
            rank = len(other.shape or ()) if other is not None else 0
            if rank >= 3:
                shaped = np.reshape(bias, [1] * (rank - 1) + [-1])
                node.replace_input_with(
                    index, add_constant(main, names.fresh(f"{value.name}.lifted"), shaped)
                )
                if not value.uses():
                    main.initializers.pop(str(value.name), None)
                lifted += 1
    if not lifted:
        return graph
    return result.with_change(
        Change("lift_biases", f"{lifted} biases kept apart from their quantized MatMul")
    )


def _is_quantized_matmul(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "MatMul":
        return False
    sources = [v.producer() for v in producer.inputs if v is not None]
    return any(p is not None and p.op_type == "DequantizeLinear" for p in sources)
