"""Building blocks of well-known networks: what moves data, what agrees, and what an NPU keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import edgekit
from edgekit.graph import Graph
from edgekit.registry import load_target
from edgekit.tflite.lower.lower import AVOIDABLE, lower
from edgekit.tflite.prepare import prepare
from edgekit.tflite.split import split

pytest.importorskip("ai_edge_litert")


def network(n: Any, output: str) -> Graph:
    graph: Graph = n.graph(output)
    return graph


def relu(n: Any, x: str) -> str:
    return str(n.op("Relu", x))


def silu(n: Any, x: str) -> str:
    return str(n.op("Mul", x, n.op("Sigmoid", x)))


def hard_swish(n: Any, x: str) -> str:
    return str(n.op("Mul", x, n.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)))


def conv(n: Any, x: str, inner: int, outer: int, kernel: int = 1, stride: int = 1, group: int = 1) -> str:
    pads, strides = [kernel // 2] * 4, [stride] * 2
    return str(n.conv(x, inner, outer, (kernel, kernel), pads=pads, strides=strides, group=group))


def shuffled(n: Any, x: str, c: int, h: int, w: int, groups: int) -> str:
    x = n.op("Reshape", x, n.ints(1, groups, c // groups, h, w))
    x = n.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return str(n.op("Reshape", x, n.ints(1, c, h, w)))


def shuffle_by_groups(n: Any) -> Graph:
    """Two units of ShuffleNet (Zhang et al. 2018, arXiv:1707.01083)."""
    x = relu(n, conv(n, n.input(1, 3, 8, 8), 3, 24, 3))
    for _ in range(2):
        y = shuffled(n, relu(n, conv(n, x, 24, 24, group=4)), 24, 8, 8, 4)
        y = conv(n, conv(n, y, 24, 24, 3, group=24), 24, 24, group=4)
        x = relu(n, n.op("Add", x, y))
    return network(n, conv(n, x, 24, 8))


def shuffle_by_halves(n: Any) -> Graph:
    """A downsampling unit and two others of ShuffleNet V2 (Ma et al. 2018, arXiv:1807.11164)."""
    x = relu(n, conv(n, n.input(1, 3, 16, 16), 3, 24, 3, 2))
    a = relu(n, conv(n, conv(n, x, 24, 24, 3, 2, 24), 24, 24))
    b = relu(n, conv(n, conv(n, relu(n, conv(n, x, 24, 24)), 24, 24, 3, 2, 24), 24, 24))
    for _ in range(2):
        x = shuffled(n, n.op("Concat", a, b, axis=1), 48, 4, 4, 2)
        a, b = n.op("Split", x, n=2, axis=1, num_outputs=2)
        b = relu(n, conv(n, conv(n, relu(n, conv(n, b, 24, 24)), 24, 24, 3, 1, 24), 24, 24))
    x = shuffled(n, n.op("Concat", a, b, axis=1), 48, 4, 4, 2)
    x = n.op("ReduceMean", relu(n, conv(n, x, 48, 64)), n.ints(2, 3), keepdims=0)
    weight, bias = n.rng.normal(0, 0.2, (64, 10)), n.rng.normal(0, 0.2, 10)
    return network(n, n.op("Gemm", x, n.const(weight), n.const(bias)))


def focus(n: Any) -> Graph:
    """The pixels of 2 x 2 blocks as channels, cut out by steps, as YOLOv5 and YOLOX begin."""
    x, far, axes, steps = n.input(1, 3, 16, 16), n.ints(99, 99), n.ints(2, 3), n.ints(2, 2)
    parts = [n.op("Slice", x, n.ints(*s), far, axes, steps) for s in ((0, 0), (1, 0), (0, 1), (1, 1))]
    x = conv(n, n.op("Concat", *parts, axis=1), 12, 16, 3)
    return network(n, conv(n, relu(n, x), 16, 8))


def pixel_shuffle(n: Any, mode: str = "CRD", slopes: bool = False) -> Graph:
    """The head of a super-resolution network (Shi et al. 2016, arXiv:1609.05158)."""
    x = conv(n, relu(n, conv(n, n.input(1, 3, 8, 8), 3, 16, 3)), 16, 48, 3)
    if slopes:
        x = n.op("PRelu", x, n.const(n.rng.uniform(0, 0.5, (48, 1, 1))))
    return network(n, conv(n, n.op("DepthToSpace", x, blocksize=2, mode=mode), 12, 8, 3))


def pixel_shuffle_in_pieces(n: Any) -> Graph:
    x = n.op("Reshape", conv(n, n.input(1, 3, 8, 8), 3, 32, 3), n.ints(1, 8, 2, 2, 8, 8))
    x = n.op("Reshape", n.op("Transpose", x, perm=[0, 1, 4, 2, 5, 3]), n.ints(1, 8, 16, 16))
    return network(n, conv(n, x, 8, 8, 3))


def pixel_unshuffle(n: Any) -> Graph:
    x = relu(n, conv(n, n.input(1, 3, 8, 8), 3, 8, 3))
    return network(n, conv(n, n.op("SpaceToDepth", x, blocksize=2), 32, 8, 3))


def grouped(n: Any) -> Graph:
    x = relu(n, conv(n, n.input(1, 3, 8, 8), 3, 16, 3))
    x = relu(n, conv(n, relu(n, conv(n, x, 16, 32, 3, 1, 4)), 32, 16, 3, 2, 2))
    return network(n, conv(n, x, 16, 8))


def upsampling(n: Any, kernel: int, pad: int, more: int = 0) -> Graph:
    x = relu(n, conv(n, n.input(1, 3, 8, 8), 3, 16, 3))
    weight, bias = n.rng.normal(0, 0.1, (16, 12, kernel, kernel)), n.rng.normal(0, 0.1, 12)
    sizes = {"strides": [2, 2], "pads": [pad] * 4, "output_padding": [more] * 2}
    x = n.op("ConvTranspose", x, n.const(weight), n.const(bias), **sizes)
    return network(n, conv(n, relu(n, x), 12, 8))


def squeeze_and_excite(n: Any) -> Graph:
    """Two blocks of MobileNetV3 (Howard et al. 2019, arXiv:1905.02244)."""
    x = hard_swish(n, conv(n, n.input(1, 3, 16, 16), 3, 16, 3, 2))
    for _ in range(2):
        y = hard_swish(n, conv(n, hard_swish(n, conv(n, x, 16, 32)), 32, 32, 5, 1, 32))
        gate = conv(n, relu(n, conv(n, n.op("GlobalAveragePool", y), 32, 8)), 8, 32)
        gate = n.op("HardSigmoid", gate, alpha=1 / 6, beta=0.5)
        x = n.op("Add", x, conv(n, n.op("Mul", y, gate), 32, 16))
    return network(n, conv(n, hard_swish(n, x), 16, 8))


def c2f(n: Any) -> Graph:
    """The split and joined bottlenecks of YOLOv8."""
    x = silu(n, conv(n, n.input(1, 3, 16, 16), 3, 16, 3, 2))
    a, b = n.op("Split", silu(n, conv(n, x, 16, 16)), n.ints(8, 8), n=2, axis=1)
    parts = [a, b]
    for _ in range(2):
        b = n.op("Add", b, silu(n, conv(n, silu(n, conv(n, b, 8, 8, 3)), 8, 8, 3)))
        parts.append(b)
    x = silu(n, conv(n, n.op("Concat", *parts, axis=1), 32, 16))
    return network(n, conv(n, x, 16, 8))


def slopes(n: Any) -> Graph:
    x, inner = n.input(1, 3, 8, 8), 3
    for _ in range(2):
        x = n.op("PRelu", conv(n, x, inner, 16, 3), n.const(n.rng.uniform(0, 0.5, (16, 1, 1))))
        inner = 16
    return network(n, conv(n, x, 16, 8))


#: Unit; TRANSPOSEs that stay; those where the NPU's substitutes are used; steps from ONNX Runtime.
UNITS: dict[str, tuple[Callable[[Any], Graph], int, int, int]] = {
    # Grouped convolutions take their channels in groups, so a shuffle between two of them has to happen.
    "shuffle by groups": (shuffle_by_groups, 2, 2, 2),
    # Halves of shuffled channels are no run of memory.
    "shuffle by halves": (shuffle_by_halves, 2, 2, 2),
    "focus": (focus, 0, 0, 2),
    "pixel shuffle": (pixel_shuffle, 0, 1, 2),
    "pixel shuffle, DCR": (lambda n: pixel_shuffle(n, "DCR"), 0, 1, 2),
    "pixel shuffle behind slopes": (lambda n: pixel_shuffle(n, slopes=True), 0, 1, 2),
    # The pixels have to change places.
    "pixel shuffle in pieces": (pixel_shuffle_in_pieces, 1, 1, 2),
    "pixel unshuffle": (pixel_unshuffle, 0, 1, 2),
    "grouped": (grouped, 0, 0, 2),
    "upsampling, kernel 2": (lambda n: upsampling(n, 2, 0), 0, 0, 2),
    "upsampling, kernel 3": (lambda n: upsampling(n, 3, 1), 0, 0, 2),
    "upsampling, kernel 3, to twice the size": (lambda n: upsampling(n, 3, 1, 1), 0, 0, 2),
    "upsampling, kernel 4": (lambda n: upsampling(n, 4, 1), 0, 0, 2),
    "squeeze and excite": (squeeze_and_excite, 0, 0, 2),
    "split and joined bottlenecks": (c2f, 0, 0, 3),
    "slopes": (slopes, 0, 0, 2),
}


@pytest.fixture(scope="module")
def npu() -> Iterator[Callable[[bytes], list[str]]]:
    """The operators of a .tflite that an Ethos-U55 leaves to the CPU."""
    pytest.importorskip("ethosu")
    from edgekit.targets.ethos_u.process import VelaProcess
    from edgekit.targets.ethos_u.profiles import load_npu
    from edgekit.targets.ethos_u.vela import compile_model

    with VelaProcess() as process:

        def left(data: bytes) -> list[str]:
            result = compile_model(data, load_npu("u55-256"), process=process, keep=False)
            return [op.op for op in result.cpu_ops]

        yield left


def unit(name: str, net: Any, int8: Any) -> Graph:
    graph: Graph = int8(prepare(UNITS[name][0](net(1))), scheme=load_target("ethos-u:u55-256").scheme)
    return graph


@pytest.mark.parametrize("name", UNITS)
def test_units_agree_and_move_what_they_must(name: str, net: Any, int8: Any, agree: Any) -> None:
    graph = unit(name, net, int8)
    _, transposes, substituted, steps = UNITS[name]
    found = agree(graph)
    assert found.steps <= steps
    assert found.counts.get("TRANSPOSE", 0) == transposes
    assert [n.op for n in found.lowered.notes] == ["TRANSPOSE"] * transposes
    assert "RELU" not in found.counts
    other = agree(graph, avoid=AVOIDABLE)
    assert other.steps <= steps
    assert other.counts.get("TRANSPOSE", 0) == substituted
    assert not other.counts.keys() & {"DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "RELU"}


@pytest.mark.parametrize("name", UNITS)
def test_with_what_it_runs_badly_avoided_an_npu_keeps_all_of_it(
    name: str, net: Any, int8: Any, npu: Any
) -> None:
    from edgekit.tflite.write import write_model

    body = split(unit(name, net, int8)).body
    assert npu(write_model(lower(body, avoid=AVOIDABLE).model)) == []


def test_repeating_without_broadcast_to(net: Any, agree: Any) -> None:
    n = net(4)
    x = n.op("Expand", n.conv(n.input(1, 4, 3, 1), 4, 4, (1, 1)), n.ints(1, 4, 3, 5))
    graph = n.graph(n.op("MaxPool", x, kernel_shape=[2, 2]))
    assert agree(graph).counts["BROADCAST_TO"] == 1
    found = agree(graph, avoid={"BROADCAST_TO"})
    assert found.steps < 1e-5
    assert (found.counts["TILE"], "BROADCAST_TO" in found.counts) == (1, False)


@pytest.mark.parametrize("times", [(1, 2, 3, 1), (1, 1, 1, 4), (1, 1, 1, 1)])
def test_tiles(times: tuple[int, ...], net: Any, int8: Any, agree: Any) -> None:
    n = net(4)
    x = n.op("Tile", n.conv(n.input(1, 4, 3, 5), 4, 6, (1, 1)), n.ints(*times))
    graph = n.graph(n.conv(x, 6 * times[1], 4, (1, 1)))
    found = agree(int8(graph, scheme=load_target("ethos-u:u55-256").scheme))
    assert found.steps <= 1
    assert found.counts.get("TILE", 0) == (max(times) > 1)
    assert not found.lowered.notes


def test_a_padding_beyond_the_kernel_s_dimensions_is_refused(net: Any) -> None:
    n = net(0)
    x = n.op("Reshape", n.conv(n.input(1, 4, 2, 2), 4, 16, (1, 1)), n.ints(2, 2, 2, 2, 2, 2))
    x = n.op("Transpose", x, perm=[5, 3, 1, 4, 2, 0])
    graph = n.graph(n.op("Pad", x, n.ints(*[1] * 12)))
    with pytest.raises(edgekit.EdgekitError, match=r"Pad .*needs a PAD with 6 dimensions, LiteRT's takes 5"):
        lower(graph)


def test_a_residual_classifier(int8: Any, npu: Any) -> None:
    import numpy as np

    from edgekit.tflite.interpreter import Kernels, LiteRt
    from edgekit.tflite.reference.run import Reference
    from edgekit.tflite.write import write_model

    graph = prepare(edgekit.load("edgekit.models.resnet:build", {"images": (1, 3, 32, 32)}))
    models = [
        lower(split(int8(graph, scheme=load_target(target).scheme)).body)
        for target in ("litert:host-1t", "ethos-u:u55-256", "tflm")
    ]
    # One network for all three: 2 PADs for strides of 2 with a padding that is not TFLite's.
    assert {tuple(m.model.counts().items()) for m in models} == {tuple(models[0].model.counts().items())}
    counts = models[0].model.counts()
    assert counts == {"CONV_2D": 57, "ADD": 27, "PAD": 2, "FULLY_CONNECTED": 1, "MEAN": 1, "RESHAPE": 1}
    assert not models[0].notes
    data = write_model(models[0].model)
    codes = {"images": np.random.default_rng(0).integers(-128, 128, (1, 32, 32, 3)).astype(np.int8)}
    found = Reference(models[0].model).run(codes)["linear"]
    np.testing.assert_array_equal(found, LiteRt(data, Kernels.REFERENCE).run(codes)["linear"])
    assert npu(data) == []
