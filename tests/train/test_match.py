"""What outputs are for, and how a student's distance from its teacher is measured."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.train.match import Match, OutputKind, guess_kinds


def ending_in(shape: list[int], op: str = "Identity", name: str = "y", size: int = 32) -> Graph:
    """An image network whose output has a shape, a name and a last operator."""
    listed = ",".join(map(str, shape))
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,3,{size},{size}] x, float[{listed}] z) => (float[{listed}] {name}) {{
        {name} = {op} (z)
    }}"""
    return Graph(ir.from_proto(onnx.parser.parse_model(text)))


@pytest.mark.parametrize(
    ("shape", "op", "name", "size", "kind"),
    [
        ([1, 3549, 85], "Identity", "y", 416, "detector"),
        ([1, 84, 3549], "Identity", "y", 416, "detector"),
        ([1, 21, 6], "Sigmoid", "y", 32, "detector"),
        ([1, 63, 7], "Identity", "y", 32, "detector"),  # three anchors a cell
        ([1, 20, 6], "Identity", "y", 32, "regression"),  # no set of strides has 20 cells
        ([1, 128], "Identity", "y", 32, "embedding"),
        ([1, 512, 1, 1], "Identity", "y", 32, "embedding"),
        ([1, 100], "Identity", "embedding", 32, "embedding"),
        ([1, 10], "Identity", "y", 32, "classes"),
        ([1, 1000], "Softmax", "y", 32, "classes"),
        ([1, 64], "Softmax", "y", 32, "classes"),
        ([1, 128], "Identity", "logits", 32, "classes"),
        ([1, 1], "Identity", "y", 32, "regression"),
        ([1, 4], "Identity", "boxes", 32, "regression"),
        ([1, 3, 32, 32], "Identity", "y", 32, "regression"),
    ],
)
def test_kinds_are_guessed(shape: list[int], op: str, name: str, size: int, kind: str) -> None:
    assert guess_kinds(ending_in(shape, op, name, size)) == {name: OutputKind(kind)}


def test_a_guess_is_noted_and_can_be_overridden() -> None:
    graph = ending_in([1, 128])
    assert "compared as embedding (guessed)" in Match(graph).notes[0]
    given = Match(graph, {"y": OutputKind.CLASSES})
    assert given.kinds == {"y": OutputKind.CLASSES}
    assert given.notes == ()


def test_kinds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="no floating output is called nobody"):
        Match(ending_in([1, 10]), {"nobody": OutputKind.CLASSES})
    with pytest.raises(UsageError, match=r"shape \[1, 10\] is not a detector's"):
        Match(ending_in([1, 10]), {"y": OutputKind.DETECTOR})


def test_outputs_of_whole_numbers_are_left_out() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,10] x) => (float[1,10] y, int64[1,1] best) { y = Relu (x) best = ArgMax <axis=1> (x) }"""
    match = Match(Graph(ir.from_proto(onnx.parser.parse_model(text))))
    assert list(match.kinds) == ["y"]
    assert "not compared: best" in match.notes[-1]


@pytest.mark.parametrize(
    ("shape", "op"), [([1, 128], "Identity"), ([1, 10], "Identity"), ([1, 10], "Softmax"),
                      ([1, 21, 7], "Sigmoid"), ([1, 6, 21], "Sigmoid"), ([1, 3, 8, 8], "Identity")]
)  # fmt: skip
def test_the_same_is_at_distance_zero_and_more_noise_is_further(shape: list[int], op: str) -> None:
    torch.manual_seed(0)
    match = Match(ending_in(shape, op))
    goal = torch.randn(4, *shape[1:])
    noise = torch.randn(4, *shape[1:])

    def finish(value: Tensor) -> Tensor:
        return {"Sigmoid": value.sigmoid(), "Softmax": value.softmax(-1)}.get(op, value)

    teacher = {"y": finish(goal)}
    near, far = ({"y": finish(goal + amount * noise)} for amount in (0.1, 0.5))
    assert match.distance(teacher, teacher) == 0
    assert 0 < match.distance(near, teacher) < match.distance(far, teacher)
    assert abs(float(match.loss(teacher, teacher))) < 1e-5
    assert 0 < float(match.loss(near, teacher)) < float(match.loss(far, teacher))


def test_features_are_vectors_with_a_gradient() -> None:
    match = Match(ending_in([1, 6, 21], "Sigmoid"))
    teacher = {"y": torch.rand(2, 6, 21)}
    student = {"y": torch.rand(2, 6, 21, requires_grad=True)}
    features = match.features(student, teacher)
    assert features.shape == (2, 21 * (4 + 2))
    features.square().sum().backward()  # type: ignore[no-untyped-call]
    assert student["y"].grad is not None
    assert torch.isfinite(student["y"].grad).all()


def test_both_orientations_of_a_detector_mean_the_same() -> None:
    torch.manual_seed(0)
    first, last = Match(ending_in([1, 21, 7]), objectness=False), Match(ending_in([1, 7, 21]))
    goal, guess = torch.rand(2, 21, 7), torch.rand(2, 21, 7)
    turned = [{"y": value.transpose(1, 2)} for value in (guess, goal)]
    assert float(first.loss({"y": guess}, {"y": goal})) == pytest.approx(float(last.loss(*turned)))


def test_small_logits_are_not_taken_for_probabilities() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,4] x, float[4,3] w, float[3] b) => (float[1,3] y) { y = Gemm (x, w, b) }"""
    match = Match(Graph(ir.from_proto(onnx.parser.parse_model(text))), temperature=1.0)
    goal, guess = torch.tensor([[0.2, 0.5, 0.9]]), torch.tensor([[0.9, 0.5, 0.2]])
    expected = torch.nn.functional.kl_div(guess.log_softmax(-1), goal.softmax(-1), reduction="sum")
    assert float(match.loss({"y": guess}, {"y": goal})) == pytest.approx(float(expected))
