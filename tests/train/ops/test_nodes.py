"""Every kernel against all one-node tests of its operator that the onnx package ships."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from edgekit.graph import Graph
from edgekit.train.executor import Executor
from edgekit.train.ops.base import Call, kernel_for, supported_ops
from edgekit.train.ops.exceptions import NOT_PASSED, WITHOUT_NODE_TEST
from edgekit.train.tensors import from_array, to_array

Cases = dict[tuple[str, str], list[Any]]


@pytest.mark.parametrize(("domain", "op"), sorted(supported_ops()))
def test_a_kernel_passes_every_node_test_of_its_operator(domain: str, op: str, node_cases: Cases) -> None:
    mine = node_cases.get((domain, op), [])
    if not mine:
        assert (domain, op) in WITHOUT_NODE_TEST, f"{op} has neither a node test nor a reason"
        return
    failed = {}
    for case in mine:
        try:
            problems = run(case)
        # Whatever a kernel raises is its failure to pass, to be reported with the others of this operator.
        except Exception as error:
            problems = [f"{type(error).__name__}: {error}".split("\n")[0][:200]]
        if problems and case.name not in NOT_PASSED:
            failed[case.name] = problems
        if not problems and case.name in NOT_PASSED:
            failed[case.name] = ["passes, but is listed as one that cannot"]
    assert not failed, "\n".join(f"{name}: {problem}" for name, problem in failed.items())


def run(case: Any) -> list[str]:
    """What is wrong with the outputs; nothing if they are as expected."""
    executor = Executor(Graph(ir.from_proto(case.model))).eval()
    names = [i.name for i in case.model.graph.input]
    problems = []
    for inputs, expected in case.data_sets:
        feeds = {name: from_array(_array(value)) for name, value in zip(names, inputs, strict=True)}
        with torch.no_grad():
            found = executor(feeds)
        for spec, value in zip(case.model.graph.output, expected, strict=True):
            problems += _problems(_array(value), found[spec.name], case)
    return problems


def _array(value: Any) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _problems(expected: np.ndarray[Any, Any], found: torch.Tensor, case: Any) -> list[str]:
    wanted = from_array(expected)
    if found.dtype != wanted.dtype:
        return [f"element type {found.dtype} instead of {wanted.dtype}"]
    a, b = to_array(wanted), to_array(found)
    if a.shape != b.shape:
        return [f"shape {b.shape} instead of {a.shape}"]
    if a.dtype.kind != "f":
        return [] if np.array_equal(a, b) else [f"{np.count_nonzero(a != b)} of {a.size} integers differ"]
    if np.allclose(b, a, rtol=case.rtol, atol=case.atol, equal_nan=True):
        return []
    return [f"differs by {np.nanmax(np.abs(a.astype(float) - b.astype(float)), initial=0)}"]


def test_exceptions_are_real_and_have_reasons(node_cases: Cases) -> None:
    names = {case.name: op for (_, op), cases in node_cases.items() for case in cases}
    for test, (op, reason) in NOT_PASSED.items():
        assert names.get(test) == op
        assert len(reason) > 10
    for key, reason in WITHOUT_NODE_TEST.items():
        assert key in supported_ops()
        assert key not in node_cases, f"{key} has node tests"
        assert len(reason) > 10


def test_global_lp_pool_is_the_norm_of_each_plane() -> None:
    kernel = kernel_for("GlobalLpPool")
    assert kernel is not None
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for p in (1, 2, 3):
        found = kernel(Call("n", "GlobalLpPool", {"p": p}), x)
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, torch.linalg.vector_norm(x, p, (2, 3), keepdim=True))
