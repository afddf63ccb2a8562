"""What ONNX's node tests leave open: ONNX Runtime's own operators, older opsets, gradients at hard places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from edgekit.train.ops.base import Call, kernel_for

Arrays = Sequence[np.ndarray[Any, Any] | None]


def by_runtime(
    op: str,
    inputs: Arrays,
    domain: str = "",
    opset: int = 17,
    outputs: Sequence[str] = ("y0",),
    **attributes: Any,
) -> list[Any]:
    """Outputs of a model of one node in ONNX Runtime; "" stands for an output that is left out."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, list(outputs), domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, inputs, strict=True)
            if x is not None
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name],
    )
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {n: x for n, x in zip(names, inputs, strict=True) if x is not None}))


def by_kernel(
    op: str,
    inputs: Sequence[Tensor | None],
    domain: str = "",
    opset: int = 17,
    outputs: int = 1,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    kernel = kernel_for(op, domain)
    assert kernel is not None
    call = Call(op, op, attributes, opset, outputs=outputs)
    result = kernel(call, *inputs)
    return result if isinstance(result, tuple) else (result,)


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


def tensors(arrays: Arrays) -> list[Tensor | None]:
    return [None if x is None else torch.from_numpy(x) for x in arrays]


X, SKIP = (2, 3, 8), (2, 3, 8)


@pytest.mark.parametrize(
    ("op", "domain", "inputs", "attributes"),
    [
        ("Gelu", "com.microsoft", draw(X), {}),
        ("BiasGelu", "com.microsoft", draw(X, (8,)), {}),
        ("FastGelu", "com.microsoft", draw(X), {}),
        ("FastGelu", "com.microsoft", draw(X, (8,)), {}),
        ("QuickGelu", "com.microsoft", draw(X), {}),
        ("QuickGelu", "com.microsoft", draw(X), {"alpha": 0.7}),
        ("SimplifiedLayerNormalization", "", draw(X, (8,)), {"epsilon": 1e-3}),
        ("SkipLayerNormalization", "com.microsoft", draw(X, SKIP, (8,)), {}),
        ("SkipLayerNormalization", "com.microsoft", draw(X, SKIP, (8,), (8,), (8,)), {"epsilon": 1e-3}),
        ("SkipSimplifiedLayerNormalization", "com.microsoft", draw(X, SKIP, (8,), (8,)), {"epsilon": 1e-3}),
    ],
)
def test_operators_of_onnx_runtime(op: str, domain: str, inputs: Arrays, attributes: dict[str, Any]) -> None:
    expected = by_runtime(op, inputs, domain, **attributes)
    found = by_kernel(op, tensors(inputs), domain, **attributes)
    np.testing.assert_allclose(found[0].numpy(), expected[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_skip_normalization_hands_out_the_sum(op: str) -> None:
    shapes = [X, SKIP, (8,)] + ([(8,)] if op == "SkipLayerNormalization" else [])
    inputs: Arrays = draw(*shapes)
    expected = by_runtime(op, inputs, "com.microsoft", outputs=("y0", "", "", "y3"), epsilon=1e-5)
    found = by_kernel(op, tensors(inputs), "com.microsoft", outputs=4, epsilon=1e-5)
    np.testing.assert_allclose(found[0].numpy(), expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[3].numpy(), expected[1], rtol=1e-6)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(
    ("opset", "attributes"), [(11, {}), (11, {"axis": 0}), (11, {"axis": 2}), (11, {"axis": -2}), (13, {})]
)
def test_softmax_flattens_before_opset_13(op: str, opset: int, attributes: dict[str, Any]) -> None:
    inputs = draw((2, 3, 4))
    expected = by_runtime(op, inputs, opset=opset, **attributes)
    found = by_kernel(op, tensors(inputs), opset=opset, **attributes)
    np.testing.assert_allclose(found[0].numpy(), expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slope", [(1,), (3, 1, 1), (1, 3, 1, 1), (5,), (4, 1), (3, 4, 5), (1, 1, 1)])
def test_prelu_broadcasts_every_shape_of_slopes(slope: tuple[int, ...]) -> None:
    inputs = draw((2, 3, 4, 5), slope)
    expected = by_runtime("PRelu", inputs)
    np.testing.assert_allclose(by_kernel("PRelu", tensors(inputs))[0].numpy(), expected[0], rtol=1e-6)


@pytest.mark.parametrize(
    "op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp", "ReduceProd"]
)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_axes_as_attribute_and_as_input_agree(op: str, keepdims: int) -> None:
    x = torch.from_numpy(draw((2, 3, 4))[0])
    old = by_kernel(op, [x], opset=11, axes=[-1, 0], keepdims=keepdims)[0]
    new = by_kernel(op, [x, torch.tensor([2, -3])], opset=18, keepdims=keepdims)[0]
    assert old.shape == ((1, 3, 1) if keepdims else (3,))
    torch.testing.assert_close(old, new)


def attend(inputs: Sequence[Tensor | None], outputs: int = 1, **attributes: Any) -> tuple[Tensor, ...]:
    return by_kernel("Attention", inputs, opset=25, outputs=outputs, **attributes)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("heads", [2, 4])
def test_fused_and_plain_attention_agree(causal: int, heads: int) -> None:
    q, k, v = (torch.from_numpy(x) for x in draw((2, 4, 5, 8), (2, heads, 6, 8), (2, heads, 6, 8)))
    fused = attend([q, k, v], is_causal=causal, scale=0.3)[0]
    plain = attend([q, k, v], outputs=4, is_causal=causal, scale=0.3)  # the fourth output needs the plain way
    torch.testing.assert_close(fused, plain[0], rtol=1e-4, atol=1e-5)
    assert plain[3].shape == (2, 4, 5, 6)


def test_a_query_without_any_key_gives_zeros_and_a_finite_gradient() -> None:
    q, k, v = (torch.from_numpy(x).double().requires_grad_() for x in draw(*[(1, 2, 3, 4)] * 3))
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    y = attend([q, k, v, mask])[0]
    assert torch.count_nonzero(y[:, :, 1]) == 0
    assert torch.autograd.gradcheck(lambda *x: attend([*x, mask])[0], (q, k, v))


@pytest.mark.parametrize("op", ["ReduceL2", "LpNormalization"])
def test_the_norm_of_zeros_has_a_finite_gradient(op: str) -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(by_kernel(op, [x], opset=13, axis=-1)[0].sum(), x)
    assert bool(gradient.isfinite().all())


def test_a_constant_square_has_a_gradient_below_zero() -> None:
    x = torch.tensor([-2.0, 3.0], requires_grad=True)
    kernel = kernel_for("Pow")
    assert kernel is not None
    y = kernel(Call("p", "Pow", constants={1: np.array(2.0, np.float32)}), x, torch.tensor(2.0))
    assert isinstance(y, Tensor)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [-4.0, 6.0]


def test_topk_puts_the_first_of_equals_first() -> None:
    values, indices = by_kernel("TopK", [torch.ones(1, 2000), torch.tensor([5])], outputs=2)
    assert indices.tolist() == [[0, 1, 2, 3, 4]]
    assert values.tolist() == [[1.0] * 5]


def test_indices_may_be_a_constant_alone() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    kernel = kernel_for("Gather")
    assert kernel is not None
    y = kernel(Call("g", "Gather", {"axis": 1}, constants={1: np.array([[-1, 0]])}), x, None)
    assert isinstance(y, Tensor)
    assert y.tolist() == [[[3.0, 0.0]], [[7.0, 4.0]], [[11.0, 8.0]]]


def test_unsigned_integers_wrap_round() -> None:
    a, b = torch.tensor([1, 40000], dtype=torch.uint16), torch.tensor([2, 40000], dtype=torch.uint16)
    assert by_kernel("Sub", [a, b])[0].tolist() == [65535, 0]
    assert by_kernel("Add", [a, b])[0].dtype == torch.uint16
    assert by_kernel("Greater", [a, b])[0].tolist() == [False, False]
