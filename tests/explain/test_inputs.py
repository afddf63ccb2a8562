"""Inputs of another scale, or with other colours, than those that a network was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.api import load
from edgekit.data.base import Sample
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.explain.inputs import candidates, find_mismatch, option_text
from edgekit.graph import Graph
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
SHARED = Path(__file__).parents[2].parent / "shared"

DEEP = """net (float[1,3,16,16] x) => (float[1,8,16,16] y) {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
    ra = Relu(a)
    b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(ra, w2, b2)
    rb = Relu(b)
    c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(rb, w3, b3)
    rc = Relu(c)
    y = Conv<kernel_shape=[1,1]>(rc, w4, b4)
}"""


def _images(count: int = 12) -> list[Array]:
    random = np.random.default_rng(2)
    return [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def trained() -> Any:
    """Makes a network whose channels are centred on the images as a preprocessing makes them."""

    def make(net: Any, how: Preprocess) -> Graph:
        random = np.random.default_rng(0)
        weights = {"w1": random.standard_normal((8, 3, 3, 3)), "w4": random.standard_normal((8, 8, 1, 1))}
        weights |= {n: random.standard_normal((8, 8, 3, 3)) for n in ("w2", "w3")}
        weights |= {f"b{i}": np.zeros(8) for i in range(1, 5)}
        feeds = [how.apply(image, (1, 3, 16, 16))[0] for image in _images()]
        for number, tensor in enumerate("abcy", 1):
            runner = open_runner(net(weights, DEEP), extra_outputs=[tensor])
            found = np.stack([runner.run({"x": x})[tensor] for x in feeds])
            spread = found.std(axis=(0, 1, 3, 4))
            weights[f"w{number}"] = weights[f"w{number}"] / spread[:, None, None, None]
            weights[f"b{number}"] = -found.mean(axis=(0, 1, 3, 4)) / spread
        graph: Graph = net(weights, DEEP)
        return graph

    return make


def _as(how: Preprocess) -> list[Sample]:
    return [Sample(str(i), {"x": how.apply(m, (1, 3, 16, 16))[0]}, None, m) for i, m in enumerate(_images())]


RIGHT = [
    Preprocess(resize="none"),
    Preprocess(resize="none", divide=1.0),
    Preprocess.parse("resize=none,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"),
]


@pytest.mark.parametrize("how", RIGHT)
def test_the_right_preprocessing_is_not_blamed(how: Preprocess, trained: Any, net: Any) -> None:
    assert find_mismatch(trained(net, how), _as(how), how, threads=1) is None


@pytest.mark.parametrize("how", RIGHT)
@pytest.mark.parametrize("given", RIGHT)
def test_another_scale_is_named(how: Preprocess, given: Preprocess, trained: Any, net: Any) -> None:
    if how == given:
        return
    found = find_mismatch(trained(net, how), _as(given), given, threads=1)

    assert found is not None
    assert found.candidate.preprocess == how
    assert Preprocess.parse(found.candidate.option) == how


def test_arrays_of_another_scale_are_named(trained: Any, net: Any) -> None:
    how = RIGHT[0]
    samples = [Sample(s.name, {"x": s.feeds["x"] * 255}) for s in _as(how)]

    found = find_mismatch(trained(net, how), samples, how, threads=1)

    assert found is not None
    assert found.candidate.label == "values divided by 255"


def test_nothing_is_said_of_too_few_samples_or_of_no_image(trained: Any, net: Any) -> None:
    how = RIGHT[0]
    graph = trained(net, how)

    assert find_mismatch(graph, _as(RIGHT[1])[:3], RIGHT[1], threads=1) is None
    tokens = net({"w": np.ones((4, 2))}, "t (float[1,4] x) => (float[1,2] y) { y = MatMul(x, w) }")
    assert candidates(tokens, [Sample("0", {"x": np.ones((1, 4), np.float32)})], how) == ([], None)


@pytest.mark.parametrize("text", ["color=bgr,divide=1", "mean=0.5,std=0.5,resize=stretch", "pad=0"])
def test_an_option_reads_back(text: str) -> None:
    how = Preprocess.parse(text)

    assert Preprocess.parse(option_text(how)) == how


@pytest.mark.parametrize(("color", "named"), [("rgb", True), ("bgr", False)])
def test_swapped_colours_on_a_real_detector(color: str, named: bool) -> None:
    model, images = SHARED / "models" / "yolox_nano.onnx", SHARED / "data" / "coco" / "calib"
    if not model.is_file():
        pytest.skip("the shared models are not here")
    given = Preprocess.parse(f"anchor=top-left,color={color},divide=1")
    graph = load(model)
    found = find_mismatch(graph, list(open_samples(images, graph.inputs, given, limit=96)), given)

    assert (found is not None) == named
    if found is not None:
        assert found.candidate.preprocess is not None
        assert found.candidate.preprocess.color == "bgr"
