"""The network: shapes, decoding, export, and what the committed weights can do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edgekit.models import yolo
from edgekit.models.yolo import card, data
from edgekit.models.yolo.architecture import Architecture, Detector
from edgekit.models.yolo.evaluate import Decoding, coco_score, detections, evaluate, torch_runner
from edgekit.models.yolo.glyphs import Split
from edgekit.models.yolo.scenes import make_scene

FOLDER = Path(yolo.__file__).parent


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return yolo.build()


def _image(index: int = 0) -> torch.Tensor:
    scene = make_scene(Split.VALIDATION, index, data.VALIDATION_SEED)
    return torch.from_numpy(scene.image.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def test_the_output_has_the_shape_of_yolov8(model: nn.Module) -> None:
    assert not model.training
    with torch.inference_mode():
        output = model(_image())
    assert output.shape == (1, 14, 32 * 32 + 16 * 16 + 8 * 8)
    assert output.dtype == torch.float32
    assert output[:, 2:4].min() >= 0
    assert output[:, 4:].min() >= 0
    assert output[:, 4:].max() <= 1


def test_the_size_is_what_it_claims(model: nn.Module) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    assert 1_000_000 < parameters < 3_000_000
    assert json.loads((FOLDER / "score.json").read_text())["parameters"] == parameters
    assert (FOLDER / "weights.safetensors").stat().st_size < 4_000_000


def test_a_box_decodes_to_where_its_distributions_point() -> None:
    model = Detector(Architecture(size=64))
    head = model.head
    cells = head.centres.shape[-1]
    logits = torch.full((1, 4, 16, cells), -30.0)
    for side, bin_ in enumerate((2, 1, 3, 5)):  # left, top, right, bottom, in strides
        logits[0, side, bin_] = 30.0
    sides = head.sides(logits.reshape(1, 64, cells))
    torch.testing.assert_close(sides[0, :, 0], torch.tensor([2.0, 1, 3, 5]))
    row, column, stride = 4, 3, 8  # the finest map is 8 cells wide
    cell = row * 8 + column
    assert (head.centres[0, :, cell] * stride).tolist() == [28.0, 36.0]
    assert head.strides[0, 0, [0, 63, 64, 79, 80, 83]].tolist() == [8, 8, 16, 16, 32, 32]


def test_detections_are_the_best_of_each_place_and_class() -> None:
    output = torch.zeros(14, 4)
    output[:4] = torch.tensor([[50.0, 51, 50, 200], [50, 50, 50, 90], [20, 20, 20, 10], [40, 40, 40, 30]])
    output[4 + 7, 0], output[4 + 7, 1] = 0.9, 0.8  # the same digit twice
    output[4 + 1, 2] = 0.6  # another class in the same place
    output[4 + 7, 3] = 0.5  # the same digit elsewhere
    found = detections(output, Decoding(score=0.1))
    assert found.labels.tolist() == [7, 1, 7]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6, 0.5]))
    assert found.boxes[0].tolist() == [40, 30, 60, 70]


def test_perfect_detections_score_one() -> None:
    truth = data.scene_annotations(2, data.MONITOR_SEED)
    found = [
        {**{k: box[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for box in truth["annotations"]
    ]
    score = coco_score(truth, found)
    assert score.map50 == pytest.approx(1)
    assert score.map50_95 == pytest.approx(1)
    assert coco_score(truth, []).map50 == 0


def test_the_export_runs_the_same_in_onnx_runtime(model: nn.Module) -> None:
    program = torch.onnx.export(
        model, (_image(),), dynamo=True, input_names=["images"], output_names=["output0"], verbose=False
    )
    assert program is not None
    proto = program.model_proto
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 256, 256]
    assert [d.dim_value for d in proto.graph.output[0].type.tensor_type.shape.dim] == [1, 14, 1344]
    names = {tensor.name for tensor in proto.graph.initializer}
    assert {name for name, p in model.named_parameters() if p.ndim > 1} <= names
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for index in range(2):
        image = _image(index)
        with torch.inference_mode():
            expected = model(image).numpy()
        found = session.run(["output0"], {"images": image.numpy()})[0]
        # Boxes are in pixels, up to 256; scores in 0..1.
        np.testing.assert_allclose(found[:, :4] / 256, expected[:, :4] / 256, atol=1e-4)
        np.testing.assert_allclose(found[:, 4:], expected[:, 4:], atol=1e-4)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"head.of.nobody": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"head\.of\.nobody"):
        yolo.build(tmp_path / "other.safetensors")


def test_the_committed_weights_read_digits(model: nn.Module) -> None:
    score = evaluate(torch_runner(model), 24, data.VALIDATION_SEED)
    assert score.map50 > 0.85
    assert score.map50_95 > 0.5


def test_the_readme_shows_the_measured_score() -> None:
    text = (FOLDER / "README.md").read_text()
    score = json.loads((FOLDER / "score.json").read_text())
    assert card.with_section(text, score) == text
    assert f"{score['map50']:.3f}" in text


def test_a_readme_without_a_place_for_the_score_is_refused() -> None:
    with pytest.raises(ValueError, match="no section"):
        card.with_section("# nothing", {})
