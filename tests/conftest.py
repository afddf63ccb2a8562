"""A small network and small photographs, for tests of the whole line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

# Torch's threads wait for each other in busy loops: on cores that others use, one thread is ten times faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples every time: a test that fails says something about the change at hand.
settings.register_profile("edgekit", derandomize=True, deadline=None, database=None)
settings.load_profile("edgekit")

SIZE = 32
#: Cells of an input of 32 x 32 at strides 8, 16 and 32.
CELLS = 21


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.onnx``, ``photos/``, ``boxes.json`` and ``recipe.toml``; not to be changed."""
    folder = tmp_path_factory.mktemp("material")
    make_photos(folder / "photos", 12)
    onnx.save(small_detector(), folder / "net.onnx")
    (folder / "boxes.json").write_text(json.dumps(coco_boxes(folder / "photos")))
    (folder / "recipe.toml").write_text(
        """
        [model]
        source = "net.onnx"
        [data]
        calibrate = "photos"
        preprocess = { resize = "stretch" }
        [evaluate]
        task = "detection"
        images = "photos"
        annotations = "boxes.json"
        decode = "yolov8"
        [quantize]
        calibrator = "minmax"
        [deploy]
        targets = ["ort-cpu:host-1t"]
        """
    )
    return folder


def small_detector(**changed: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """Two convolutions and a matrix product; output ``[1, 4 + 2, 21]`` as the yolov8 decoder reads it."""
    rng = np.random.default_rng(0)
    scale = np.ones((1, 6, 1), np.float32)
    scale[:, :4] = SIZE
    weights: dict[str, np.ndarray[Any, Any]] = {
        "w1": rng.normal(size=(8, 3, 3, 3)).astype(np.float32) / 3,
        "b1": rng.normal(size=8).astype(np.float32) / 10,
        "w2": rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 6,
        "w3": rng.normal(size=(8, 6 * CELLS)).astype(np.float32),
        "b3": rng.normal(size=6 * CELLS).astype(np.float32),
        "shape": np.array([1, 6, CELLS], np.int64),
        "scale": scale,
        **changed,
    }
    nodes = [
        helper.make_node(
            "Conv", ["images", "w1", "b1"], ["c1"], name="first", strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], name="dense"),
        helper.make_node("Sigmoid", ["g"], ["s"], name="sigmoid"),
        helper.make_node("Reshape", ["s", "shape"], ["cells"], name="cells"),
        helper.make_node("Mul", ["cells", "scale"], ["found"], name="boxes"),
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, [1, 6, CELLS])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", [image], [found], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_photos(folder: Path, count: int) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")


def coco_boxes(photos: Path) -> dict[str, Any]:
    names = sorted(path.name for path in photos.iterdir())
    boxes = [
        {
            "id": i + 1,
            "image_id": i,
            "category_id": i % 2,
            "bbox": [5 + i, 4, 20, 15],
            "area": 300,
            "iscrowd": 0,
        }
        for i in range(len(names))
    ]
    return {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 24} for i, name in enumerate(names)],
        "annotations": boxes,
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
