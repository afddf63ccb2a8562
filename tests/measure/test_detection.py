import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import Samples, open_samples
from edgekit.errors import DataError
from edgekit.graph import TensorSpec
from edgekit.measure.decode import Detections, decoder
from edgekit.measure.detection import detect, evaluate_detection
from edgekit.session import OrtRunner, open_runner

SHARED = Path(__file__).parents[2].parent / "shared"
#: For each image, its boxes as (x, y, width, height) and class.
Boxes = Sequence[Sequence[tuple[tuple[float, ...], int]]]
INPUT = (TensorSpec("x", (1, 3, 64, 64), np.dtype(np.float32)),)
YOLOX = Preprocess.parse("resize=letterbox,anchor=top-left,pad=114,color=bgr,divide=1")


class Planted:
    """A runner and decoder in one: answers image i (told by its first pixel) with planted boxes."""

    name = "planted"

    def __init__(self, answers: list[Detections]) -> None:
        self.answers = answers
        self.runs = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs += 1
        return {"index": feeds["x"][0, 0, :1, 0]}

    def __call__(self, outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> Detections:
        return self.answers[round(float(outputs["index"][0]) * 255)]


class Silent:
    """A runner without outputs."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {}


def image(index: int) -> np.ndarray:
    return np.full((64, 64, 3), index, np.uint8)


def coco(boxes: Boxes, first_category: int = 0) -> dict[str, Any]:
    """Annotations of images "0.png", "1.png" …, boxes as ((x, y, width, height), class)."""
    flat = [(i, box, kind) for i, entries in enumerate(boxes) for box, kind in entries]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(len(boxes))],
        "annotations": [
            {"id": n, "image_id": i, "category_id": first_category + 2 * kind, "bbox": list(box)}
            for n, (i, box, kind) in enumerate(flat)
        ],
        # Gaps between the ids, and no order: class k is the k-th lowest id all the same.
        "categories": [{"id": first_category + 2 * k, "name": f"kind{k}"} for k in (2, 0, 1)],
    }


def answers(boxes: Boxes, score: float = 0.9) -> list[Detections]:
    made = []
    for entries in boxes:
        corners = np.array([(x, y, x + w, y + h) for (x, y, w, h), _ in entries], np.float32).reshape(-1, 4)
        kinds = np.array([kind for _, kind in entries], np.int64)
        made.append(Detections(corners, np.full(len(kinds), score, np.float32), kinds, 3))
    return made


def samples_of(count: int) -> Samples:
    return open_samples(lambda: [(f"{i}.png", image(i)) for i in range(count)], INPUT, Preprocess())


BOXES: Boxes = [
    [((5, 6, 20, 30), 0), ((40, 40, 10, 10), 1)],
    [],
    [((1, 2, 30, 30), 0), ((30, 30, 30, 30), 2), ((0, 50, 12, 12), 2)],
]

box = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(4, 15), st.integers(4, 15))
spot = st.tuples(st.integers(0, 3), st.integers(0, 2))
planted = st.lists(st.dictionaries(spot, box, max_size=4), min_size=1, max_size=4)


@given(planted, st.sampled_from([0, 1, 7]))
@settings(max_examples=25, deadline=None)
def test_perfect_detections_score_one(
    cells: list[dict[tuple[int, int], tuple[int, ...]]], first: int
) -> None:
    # Each (place, class) at most once, at places far apart.
    boxes: Boxes = [
        [((16 * place + x / 4, y, w / 2, h), kind) for (place, kind), (x, y, w, h) in entry.items()]
        for entry in cells
    ]
    runner = Planted(answers(boxes))
    if not any(boxes):
        with pytest.raises(DataError, match="no annotated boxes"):
            evaluate_detection(runner, samples_of(len(boxes)), coco(boxes, first), runner)
        return
    result = evaluate_detection(runner, samples_of(len(boxes)), coco(boxes, first), runner)
    assert (result.map, result.map50) == pytest.approx((1, 1))
    assert (result.images, result.boxes) == (len(boxes), sum(map(len, boxes)))
    assert set(result.per_class) == {f"kind{kind}" for entry in boxes for _, kind in entry}


def test_a_known_precision() -> None:
    # One box of two is found, and a false one scores above it: the precision is 1/2 up to a recall of 1/2;
    # 51 of the 101 recall points lie there.
    boxes = [[((5, 5, 20, 20), 0)], [((5, 5, 20, 20), 0)]]
    wrong = answers([[((40, 40, 10, 10), 0)]], score=0.95)[0]
    runner = Planted([wrong, answers(boxes)[1]])
    result = evaluate_detection(runner, samples_of(2), coco(boxes), runner)
    assert result.map == result.map50 == pytest.approx(0.5 * 51 / 101)
    assert result.per_class == {"kind0": pytest.approx(0.5 * 51 / 101)}


def test_map_and_map50_differ_as_the_overlap_says() -> None:
    # 10 x 10 against 10 x 8: IoU 0.8, a match at 0.50 to 0.80, 7 of the 10 thresholds.
    boxes = [[((5, 5, 10, 10), 0)]]
    runner = Planted(answers([[((5, 5, 10, 8), 0)]]))
    result = evaluate_detection(runner, samples_of(1), coco(boxes), runner)
    assert result.map50 == pytest.approx(1)
    assert result.map == pytest.approx(0.7)


def test_no_detections_score_zero() -> None:
    runner = Planted(answers([[] for _ in BOXES]))
    result = evaluate_detection(runner, samples_of(3), coco(BOXES), runner)
    assert (result.map, result.map50) == (0, 0)
    assert result.per_class == {"kind0": 0, "kind1": 0, "kind2": 0}


def test_standard_output_and_the_callers_annotations_stay_clean(capsys: pytest.CaptureFixture[str]) -> None:
    annotations = coco(BOXES)
    before = copy.deepcopy(annotations)
    runner = Planted(answers(BOXES))
    evaluate_detection(runner, samples_of(3), annotations, runner)
    assert capsys.readouterr().out == ""
    assert annotations == before


def test_keep_and_progress_and_measurements() -> None:
    runner = Planted(answers(BOXES))
    seen: list[tuple[int, int | None]] = []
    result = evaluate_detection(
        runner,
        samples_of(3),
        coco(BOXES),
        runner,
        keep=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [sample.name for sample, _ in result.kept] == ["0.png", "1.png"]
    assert len(result.kept[0][1]) == 2
    assert seen == [(1, None), (2, None), (3, None)]
    assert result.measurements()["mAP"].value == result.map
    assert 0 < result.network_seconds <= result.seconds
    assert result.names == ("kind0", "kind1", "kind2")


def test_only_annotated_images_are_run_and_counted() -> None:
    runner = Planted([*answers(BOXES), *answers(BOXES)])
    result = evaluate_detection(runner, samples_of(5), coco(BOXES), runner)
    assert (result.images, runner.runs) == (3, 3)
    assert result.unannotated == ("3.png", "4.png")
    assert "2 images are not annotated" in result.notes[0]
    other = {**coco(BOXES), "images": [{"id": 9, "file_name": "9.jpg"}], "annotations": []}
    with pytest.raises(DataError, match=r"none of the 2 samples is annotated.*called 0\.png, 1\.png.*9\.jpg"):
        evaluate_detection(runner, samples_of(2), other, runner)


def test_images_are_matched_by_path_then_name_then_id_then_order(tmp_path: Path) -> None:
    runner = Planted(answers(BOXES))
    annotations = coco(BOXES)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for i, folder in enumerate("aba"):
        Image.fromarray(image(i)).save(tmp_path / folder / f"{i}.png")
    samples = open_samples(tmp_path, INPUT, Preprocess())
    by_name = evaluate_detection(runner, samples, annotations, runner)
    annotations["images"] = [{"id": i, "file_name": f"{'aba'[i]}/{i}.png"} for i in range(3)]
    by_path = evaluate_detection(runner, samples, annotations, runner)
    by_order = evaluate_detection(
        runner, open_samples(lambda: [image(i) for i in range(3)], INPUT, Preprocess()), annotations, runner
    )
    named = open_samples(lambda: [(str(i + 50), image(i)) for i in (2, 0, 1)], INPUT, Preprocess())
    for entry in annotations["images"]:
        entry["id"] += 50
    for entry in annotations["annotations"]:
        entry["image_id"] += 50
    by_id = evaluate_detection(runner, named, annotations, runner)
    annotations["images"] = [{"id": i + 50, "file_name": f"{i}.jpg"} for i in range(3)]
    by_stem = evaluate_detection(runner, samples, annotations, runner)
    assert [r.map for r in (by_name, by_path, by_order, by_id, by_stem)] == [pytest.approx(1)] * 5
    annotations["images"] = [{"id": i, "file_name": f"{'xyz'[i]}/0.png"} for i in range(3)]
    with pytest.raises(DataError, match=r"several images are called '0\.png'"):
        evaluate_detection(runner, samples, annotations, runner)


def test_more_classes_than_categories_is_an_error() -> None:
    annotations = coco([BOXES[0]])
    annotations["categories"] = annotations["categories"][1:]
    runner = Planted(answers([BOXES[0]]))
    with pytest.raises(DataError, match="the network has 3 classes, the annotations have 2 categories"):
        evaluate_detection(runner, samples_of(1), annotations, runner)


def test_broken_outputs_and_other_sizes_are_noted() -> None:
    runner = Planted(answers(BOXES))
    annotations = coco(BOXES)
    annotations["images"][0]["width"] = 65

    class Broken(Planted):
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {**super().run(feeds), "other": np.array([np.nan])}

    notes = evaluate_detection(Broken(runner.answers), samples_of(3), annotations, runner).notes
    assert any("NaN or infinite values for 3 images" in note for note in notes)
    assert any("1 images differ in size" in note for note in notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "has no list 'images'"),
        ({"categories": [{"name": "x"}]}, "an entry of 'categories' lacks id"),
        ({"annotations": [{"image_id": 0, "category_id": 0}]}, "lacks bbox"),
        ({"annotations": [{"image_id": 0, "category_id": 9, "bbox": [0, 0, 1, 1]}]}, "category 9"),
        ({"annotations": [{"image_id": 0, "category_id": 0, "bbox": [0, 0, 1]}]}, "x, y, width, height"),
        ({"annotations": [{"image_id": 0, "category_id": 0, "bbox": None}]}, "a bbox is None"),
    ],
)
def test_annotations_are_checked(change: dict[str, Any], message: str) -> None:
    runner = Planted(answers(BOXES))
    with pytest.raises(DataError, match=message):
        evaluate_detection(runner, samples_of(3), {**coco(BOXES), **change}, runner)


def test_annotations_come_from_a_file_or_a_function(tmp_path: Path) -> None:
    runner = Planted(answers(BOXES))
    (tmp_path / "a.json").write_text(json.dumps(coco(BOXES)))
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text("[]")
    assert evaluate_detection(runner, samples_of(3), tmp_path / "a.json", runner).map == pytest.approx(1)
    assert evaluate_detection(runner, samples_of(3), "a.json", runner, folder=tmp_path).map == pytest.approx(
        1
    )
    assert evaluate_detection(runner, samples_of(3), lambda: coco(BOXES), runner).map == pytest.approx(1)
    for name, message in (("absent", "cannot be read"), ("b", "is not JSON"), ("c", "holds a list")):
        with pytest.raises(DataError, match=message):
            evaluate_detection(runner, samples_of(3), tmp_path / f"{name}.json", runner)


def test_detect_maps_back_to_image_pixels_and_clips() -> None:
    runner = Planted([Detections(np.array([[0, 0, 64, 64]], np.float32), np.ones(1), np.zeros(1, int))])
    wide = open_samples([np.zeros((50, 200, 3), np.uint8)], INPUT, Preprocess(pad=0))
    (sample,) = wide
    np.testing.assert_allclose(detect(runner, sample, runner).boxes, [[0, 0, 200, 50]])
    (flat,) = open_samples([np.zeros((3, 64, 64))], INPUT, Preprocess())
    np.testing.assert_allclose(detect(runner, flat, runner).boxes, [[0, 0, 64, 64]])
    (tokens,) = open_samples([np.zeros(4)], (TensorSpec("x", (1, 4), np.dtype(np.float32)),), Preprocess())
    with pytest.raises(DataError, match="no input is an image"):
        detect(Silent(), tokens, runner)


def yolox() -> tuple[OrtRunner, tuple[TensorSpec, ...]]:
    model = SHARED / "models" / "yolox_nano.onnx"
    if not model.is_file() or not (SHARED / "data" / "coco" / "val.json").is_file():
        pytest.skip("the real model and images are not there")
    runner = open_runner(model, threads=1)
    return runner, (TensorSpec(runner.input_names[0], (1, 3, 416, 416), np.dtype(np.float32)),)


def test_a_real_detector_reaches_its_map_only_with_its_own_preprocessing() -> None:
    runner, inputs = yolox()
    annotations = SHARED / "data" / "coco" / "val.json"
    figures = {}
    for label, preprocess in (("right", YOLOX), ("wrong", Preprocess())):
        samples = open_samples(SHARED / "data" / "coco" / "val", inputs, preprocess, limit=12)
        result = evaluate_detection(runner, samples, annotations, decoder("yolox"))
        assert (result.images, result.notes) == (12, ())
        figures[label] = result.map
    assert 0.34 < figures["right"] < 0.46
    assert figures["wrong"] < 0.05
