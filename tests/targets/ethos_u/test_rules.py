"""Every rule against Vela, on both sides: what it refuses leaves the NPU, what it lets through stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError, ToolError
from edgekit.graph import Graph
from edgekit.targets.ethos_u.process import VelaProcess
from edgekit.targets.ethos_u.profiles import NpuProfile, load_npu
from edgekit.targets.ethos_u.rules import OTHER, RULES, check, table
from edgekit.targets.ethos_u.vela import compile_model

Case = tuple[str, str, list[tuple[int, ...]], tuple[Any, ...], dict[str, Any]]
IMAGE = (1, 8, 16, 16)
EVEN = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def by(*factors: float) -> tuple[Any, ...]:
    return (None, np.array([1, 1, *factors], np.float32))


def conv(stride: int, kernel: int = 3, pad: int = 0, dilation: int = 1, group: int = 1) -> tuple[Any, ...]:
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2, "group": group}
    return "Conv", [(1, 8, 33, 33)], ((8, 8 // group, kernel, kernel),), attributes


def transposed(stride: int, kernel: int, pad: int = 0, more: int = 0) -> tuple[Any, ...]:
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "output_padding": [more] * 2}
    return "ConvTranspose", [(1, 8, 10, 10)], ((8, 8, kernel, kernel),), attributes


def pool(op: str, kernel: int, stride: int, pad: int = 0, size: int = 33) -> tuple[Any, ...]:
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    return op, [(1, 2, size, size)], (), attributes


def resize(mode: str, factors: tuple[float, ...], size: Any = (10, 10), **other: Any) -> tuple[Any, ...]:
    return "Resize", [(1, 8, *size)], by(*factors), {"mode": mode, **(other or EVEN)}


def resize_to(mode: str, size: tuple[int, int], **other: Any) -> tuple[Any, ...]:
    return "Resize", [(1, 8, 10, 10)], (None, None, ints(1, 8, *size)), {"mode": mode, **other}


HALF: dict[str, Any] = {"coordinate_transformation_mode": "half_pixel"}
SECOND_CHANNEL: tuple[Any, ...] = ("Slice", [IMAGE], (ints(0), ints(8), ints(1), ints(2)), {})
ACTIVATIONS = ("Sigmoid", "Tanh", "Relu", "Elu", "LeakyRelu", "HardSwish", "Gelu")
CORNERS: dict[str, Any] = {"coordinate_transformation_mode": "align_corners"}

#: Rule that is broken on U55 and U65, rule that is broken on U85 ("" for none), and the node.
CASES: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "conv stride 3": ("", "", conv(3, pad=1)),
    "conv stride 4": ("", "", conv(4)),
    "conv stride 4, padded": ("conv-stride", "", conv(4, 7, pad=1)),
    "conv stride 4, dilated": ("conv-stride", "", conv(4, dilation=2)),
    "conv stride 5, nothing to pad": ("", "", conv(5)),
    "conv dilated": ("", "", conv(1, pad=4, dilation=4)),
    "conv grouped": ("", "", conv(2, pad=1, group=2)),
    "conv large kernel": ("", "", conv(1, 33, pad=16)),
    "depthwise stride 3": ("", "", conv(3, pad=1, group=8)),
    "depthwise stride 4": ("conv-stride", "", conv(4, group=8)),
    "transposed stride 1": ("", "", transposed(1, 3, 1)),
    "transposed stride 2": ("", "", transposed(2, 2)),
    "transposed stride 2, kernel 4": ("", "", transposed(2, 4, 1)),
    "transposed stride 2, kernel 3, padded output": ("", "", transposed(2, 3, 1, 1)),
    "transposed stride 2, kernel 3": ("", "", transposed(2, 3, 1)),
    "transposed stride 3": ("transposed-stride", "", transposed(3, 3)),
    "transposed stride 4": ("transposed-stride", "", transposed(4, 4)),
    "max pool stride 2": ("", "", pool("MaxPool", 3, 2, 1)),
    "max pool 13": ("", "", pool("MaxPool", 13, 1, 6)),
    "max pool stride 4": ("", "", pool("MaxPool", 4, 4)),
    "max pool stride 4, padded": ("pool-stride", "", pool("MaxPool", 7, 4, 3)),
    "max pool 256": ("", "", pool("MaxPool", 256, 1, size=256)),
    "max pool 257": ("pool-kernel", "pool-kernel", pool("MaxPool", 257, 1, size=257)),
    "average pool 8": ("", "", pool("AveragePool", 7, 1, 3)),
    "average pool 9, padded": ("padded-average", "padded-average", pool("AveragePool", 9, 1, 4)),
    "average pool 33": ("", "", pool("AveragePool", 33, 1)),
    "average pool stride 4": ("", "", pool("AveragePool", 4, 4)),
    "average pool 257": ("pool-kernel", "pool-kernel", pool("AveragePool", 257, 1, size=257)),
    "nearest 2": ("", "", resize("nearest", (2, 2))),
    "nearest 3": ("resize-factor", "", resize("nearest", (3, 3))),
    "nearest 4": ("", "", resize("nearest", (4, 4))),
    "nearest 8": ("", "", resize("nearest", (8, 8))),
    "nearest 16": ("resize-factor", "", resize("nearest", (16, 16))),
    "nearest 2 x 4": ("resize-factor", "", resize("nearest", (2, 4))),
    "nearest 2 x 1": ("resize-factor", "", resize("nearest", (2, 1))),
    "nearest from one pixel": ("", "", resize("nearest", (7, 7), (1, 1))),
    "linear 2, half pixel": ("", "", resize("linear", (2, 2), **HALF)),
    "linear 4, half pixel": ("resize-factor", "", resize("linear", (4, 4), **HALF)),
    "linear 3, half pixel": ("resize-factor", "linear-factor", resize("linear", (3, 3), **HALF)),
    "linear 1.5": ("resize-factor", "linear-factor", resize("linear", (1.5, 1.5), **HALF)),
    "linear 0.5": ("resize-factor", "linear-factor", resize("linear", (0.5, 0.5), **HALF)),
    "linear 4, asymmetric": ("", "", resize("linear", (4, 4), coordinate_transformation_mode="asymmetric")),
    "linear to 19, aligned": ("", "", resize_to("linear", (19, 19), **CORNERS)),
    "linear to 20, aligned": ("resize-factor", "linear-factor", resize("linear", (2, 2), **CORNERS)),
    "mean of an image": ("", "", ("ReduceMean", [IMAGE], (ints(2, 3),), {})),
    "mean of rows": ("", "", ("ReduceMean", [IMAGE], (ints(2),), {})),
    "mean of channels": ("mean-depth", "mean-depth", ("ReduceMean", [IMAGE], (ints(1),), {})),
    "mean of tokens": ("", "", ("ReduceMean", [(1, 16, 24)], (ints(2),), {})),
    "mean of 4096": ("", "", ("ReduceMean", [(1, 4096, 4)], (ints(1),), {})),
    "mean of 4097": ("mean-axis", "mean-axis", ("ReduceMean", [(1, 4097, 4)], (ints(1),), {})),
    "global average": ("", "", ("GlobalAveragePool", [IMAGE], (), {})),
    "sum of channels": ("", "", ("ReduceSum", [IMAGE], (ints(1),), {})),
    "max of channels": ("", "", ("ReduceMax", [IMAGE], (ints(1),), {})),
    "softmax of tokens": ("", "", ("Softmax", [(1, 64, 32)], (), {})),
    "softmax at 65536": ("", "", ("Softmax", [(1, 65536, 4)], (), {})),
    "softmax at 65537": ("softmax-size", "softmax-size", ("Softmax", [(1, 65537, 4)], (), {})),
    "two operands": ("", "", ("MatMul", [(1, 8, 16), (1, 16, 8)], (), {})),
    "two operands of 65537": ("matmul-size", "", ("MatMul", [(1, 2, 65537), (1, 65537, 8)], (), {})),
    "dense with 65536 inputs": ("", "", ("MatMul", [(1, 1, 65536)], ((65536, 8),), {})),
    "dense with 65537 inputs": ("dense-size", "dense-size", ("MatMul", [(1, 1, 65537)], ((65537, 8),), {})),
    "five axes turned": ("", "", ("Transpose", [(2, 20, 2, 20, 3)], (), {"perm": [0, 3, 2, 1, 4]})),
    "an image turned": ("", "", ("Transpose", [(1, 8, 300, 300)], (), {"perm": [0, 1, 3, 2]})),
    "divided by a constant": ("", "", ("Div", [IMAGE], (np.array([2.0], np.float32),), {})),
    "divided": ("div", "", ("Div", [IMAGE, IMAGE], (), {})),
    "cubed": ("pow", "pow", ("Pow", [IMAGE], (np.array(3.0, np.float32),), {})),
    "sine": ("other", "other", ("Sin", [IMAGE], (), {})),
    "floored": ("other", "other", ("Floor", [IMAGE], (), {})),
    "log of softmax": ("other", "other", ("LogSoftmax", [(1, 64, 32)], (), {})),
    "normalized": ("other", "other", ("LpNormalization", [(1, 64, 32)], (), {})),
    "squared": ("", "", ("Pow", [IMAGE], (np.array(2.0, np.float32),), {})),
    "depth to space": ("", "", ("DepthToSpace", [IMAGE], (), {"blocksize": 2})),
    "space to depth": ("", "", ("SpaceToDepth", [IMAGE], (), {"blocksize": 2})),
    "expanded": ("", "", ("Expand", [(1, 1, 8)], (ints(1, 4, 8),), {})),
    "neighbours": ("", "", ("Gather", [(1, 16, 8)], (ints(3, 4, 5),), {"axis": 1})),
    "scattered": ("gather", "gather-axis", ("Gather", [(1, 16, 8)], (ints(3, 1),), {"axis": 1})),
    "every second row": ("", "", ("Slice", [IMAGE], (ints(0), ints(16), ints(2), ints(2)), {})),
    "every second channel": ("slice-step", "slice-step", SECOND_CHANNEL),
    **{op: ("", "", (op, [IMAGE], (), {})) for op in ACTIVATIONS},
    **{op: ("", "", (op, [IMAGE, IMAGE], (), {})) for op in ("Add", "Sub", "Mul", "Max", "Min")},
    "joined": ("", "", ("Concat", [IMAGE, IMAGE], (), {"axis": 1})),
    "padded": ("", "", ("Pad", [IMAGE], (ints(0, 0, 1, 1, 0, 0, 1, 1),), {})),
}  # fmt: skip


@pytest.mark.parametrize("profile", ["u55-128", "u65-512", "u85-256"])
@pytest.mark.parametrize("name", CASES)
def test_a_rule_says_what_vela_does(
    name: str,
    profile: str,
    around: Callable[..., Graph],
    tflite: Callable[[Graph], bytes],
    vela: VelaProcess,
) -> None:
    small, large, (op, shapes, constants, attributes) = CASES[name]
    expected = large if profile.startswith("u85") else small
    graph, npu = around(op, shapes, constants, **attributes), load_npu(profile)
    found = check(graph, npu)
    assert [finding.node for finding in found] == (["node"] if expected else [])
    assert [finding.rule for finding in found] == [r.text for r in (*RULES, OTHER) if r.name == expected]
    assert found == () or found[0].remedy
    assert _left(tflite, graph, npu, vela) == bool(expected)


def _left(tflite: Callable[[Graph], bytes], graph: Graph, npu: NpuProfile, vela: VelaProcess) -> bool:
    """Whether anything is not on the NPU.

    Vela gives up on some nodes instead of leaving them, and TFLite has no counterpart of others.
    """
    try:
        result = compile_model(tflite(graph), npu, process=vela, keep=False)
    except (ModelError, ToolError):
        return True
    return bool(result.cpu_ops)


def test_every_rule_has_a_name_of_its_own_and_is_in_the_table() -> None:
    every = (*RULES, OTHER)
    assert len({rule.name for rule in every}) == len(every)
    lines = table().splitlines()
    assert len(lines) == len(every) + 2
    for rule, line in zip(every, lines[2:], strict=True):
        assert line.count("|") == 5
        assert rule.remedy in line
        assert rule.ops[0] in line


def test_every_rule_is_broken_by_a_case() -> None:
    broken = {name for case in CASES.values() for name in case[:2] if name}
    assert broken == {rule.name for rule in (*RULES, OTHER)}


def test_what_follows_the_last_layer_with_weights_is_not_looked_at(around: Callable[..., Graph]) -> None:
    graph = around("Sin", [(1, 8, 16, 16)]).copy()
    last = list(graph.nodes)[-1]
    made = last.inputs[0]
    assert made is not None
    graph.model.graph.outputs[0] = made
    graph.model.graph.remove(last, safe=True)
    assert check(graph, load_npu("u55-256")) == ()
