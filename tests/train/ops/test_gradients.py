"""Gradients of every kernel against differences, in float64, on the inputs' shapes of the ONNX node tests."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from edgekit.graph import Graph
from edgekit.train.executor import Executor
from edgekit.train.ops.base import supported_ops
from edgekit.train.ops.exceptions import WITHOUT_NODE_TEST
from edgekit.train.tensors import from_array

Cases = dict[tuple[str, str], list[Any]]

#: Operators without a floating output that depends on a floating input.
WITHOUT_GRADIENT = frozenset(
    [
        "And",
        "ArgMax",
        "ArgMin",
        "BitCast",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Constant",
        "ConstantOfShape",
        "Equal",
        "EyeLike",
        "Greater",
        "GreaterOrEqual",
        "Hardmax",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "MatMulInteger",
        "NonZero",
        "Not",
        "Or",
        "Shape",
        "Size",
        "QuantizeLinear",
        "Range",
        "Xor",
    ]
)
#: Inputs that say how to compute: they keep the value that the test case gives.
KEPT = {
    "BatchNormalization": {3, 4},
    "CastLike": {1},
    "Clip": {1, 2},
    "Dropout": {1},
    "OneHot": {1},
    "Pad": {2},
    "Range": {0, 1, 2},
    "Resize": {1, 2},
    "Upsample": {1},
}
#: Where the inputs have to lie; otherwise they are normally distributed.
RANGE = {
    "Acos": (-0.9, 0.9),
    "Acosh": (1.1, 3.0),
    "Asin": (-0.9, 0.9),
    "Atanh": (-0.9, 0.9),
    "Div": (0.5, 2.0),
    "Log": (0.1, 2.0),
    "Pow": (0.5, 2.0),
    "Reciprocal": (0.5, 2.0),
    "ReduceLogSum": (0.1, 2.0),
    "Sqrt": (0.1, 2.0),
    "Tan": (-1.0, 1.0),
}
#: Operators whose node tests have integers only, though they take floats as well.
AS_FLOAT = {"Trilu"}
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE}
#: So many of an operator's smallest test cases are checked.
CASES = 3


@pytest.mark.parametrize(("domain", "op"), sorted(supported_ops()))
def test_the_gradient_is_that_of_the_values(domain: str, op: str, node_cases: Cases) -> None:
    if (domain, op) in WITHOUT_NODE_TEST:
        pytest.skip(WITHOUT_NODE_TEST[domain, op])
    checked = 0
    for case in sorted(node_cases[domain, op], key=_elements):
        checked += check(case, op)
        if checked == CASES:
            break
    assert bool(checked) is (op not in WITHOUT_GRADIENT), checked


def _elements(case: Any) -> int:
    return sum(int(np.size(_array(value))) for value in case.data_sets[0][0])


def check(case: Any, op: str) -> bool:
    """Check all floating inputs of a test case; False where it has none with elements, or no such output."""
    inputs = case.data_sets[0][0]
    specs = list(case.model.graph.input)
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    fixed: dict[str, Tensor] = {}
    free: dict[str, Tensor] = {}
    for i, (spec, value) in enumerate(zip(specs, inputs, strict=True)):
        kind = spec.type.tensor_type.elem_type
        content = from_array(_array(value))
        if kind not in FLOATS and not (op in AS_FLOAT and i == 0):
            fixed[spec.name] = content
        elif i in KEPT.get(op, ()):
            fixed[spec.name] = content.double()
        else:
            low, high = RANGE.get(op, (0.0, 0.0))
            drawn = rng.uniform(low, high, content.shape) if low < high else rng.normal(size=content.shape)
            free[spec.name] = torch.from_numpy(np.asarray(drawn)).requires_grad_()
    types = {o.type.tensor_type.elem_type for o in case.model.graph.output}
    if not (types & FLOATS or op in AS_FLOAT):
        return False
    if not free or any(t.numel() == 0 for t in free.values()):
        return False
    executor = Executor(Graph(ir.from_proto(case.model))).eval().double()
    names = list(free)

    def compute(*values: Tensor) -> tuple[Tensor, ...]:
        found = executor({**fixed, **dict(zip(names, values, strict=True))})
        return tuple(t for t in found.values() if t.dtype == torch.float64)

    if not any(t.requires_grad for t in compute(*free.values())):
        return False
    return bool(torch.autograd.gradcheck(compute, tuple(free.values()), fast_mode=True))


def _array(value: Any) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
