"""The networks of one operator that the rules of this target are proven on; see :mod:`.single`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Stored = np.ndarray[Any, Any]
IMAGE: Shape = (1, 8, 12, 16)
TOKENS: Shape = (1, 10, 16)
SIGNAL: Shape = (1, 8, 24)
VOLUME: Shape = (1, 4, 6, 8, 8)
FIVE: Shape = (1, 2, 3, 4, 5)
SIX: Shape = (1, 2, 2, 3, 4, 5)
_PADDED: dict[str, Any] = {"pads": [1, 1, 1, 1]}


@dataclass(frozen=True, eq=False)
class Case:
    """One operator with its attributes and shapes.

    Attributes:
        name: Unique, in words; it begins with the operator.
        op: ONNX operator.
        shapes: Shape of every computed input.
        constants: What the stored inputs hold: an array, a shape (filled at random) or None for one that is
            left out. They follow the computed ones, unless ``order`` says otherwise.
        attributes: Of the node.
        low: Smallest value of the inputs.
        high: Largest value of the inputs.
        order: Position of every input, computed ones first; in order where it is empty.
        then: An activation behind the node and its bounds.
        outputs: Number of outputs.
        kinds: NumPy type of computed inputs that are no float32, by their number.
        apart: Whether inputs and output keep scales of their own although the op only moves values.
        between: Whether it stands between two Abs: ONNX Runtime moves some Transposes out of a graph that
            holds nothing else, which HTP then refuses.
    """

    name: str
    op: str
    shapes: tuple[Shape, ...] = (IMAGE,)
    constants: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    low: float = -3.0
    high: float = 3.0
    order: tuple[int, ...] = ()
    then: tuple[Any, ...] = ()
    outputs: int = 1
    kinds: dict[int, str] = field(default_factory=dict)
    apart: bool = False
    between: bool = False


_OWN = ("low", "high", "order", "then", "outputs", "kinds", "apart", "between")


def _case(op: str, what: str = "", shapes: Any = (IMAGE,), constants: Any = (), **given: Any) -> Case:
    own = {key: given.pop(key) for key in _OWN if key in given}
    return Case(f"{op}: {what}" if what else op, op, tuple(shapes), tuple(constants), given, **own)


def _ints(*values: int) -> Stored:
    return np.array(values, np.int64)


def _by(*factors: float) -> tuple[None, Stored]:
    return None, np.array([1, 1, *factors], np.float32)


def all_cases() -> tuple[Case, ...]:
    """Every case; names are unique."""
    parts = (_convolutions, _products, _pools, _activations, _norms, _reductions, _arithmetic, _logic)
    more = (_joins, _lookups, _pads, _resizes, _shapes, _others)
    return tuple(case for part in (*parts, *more) for case in part())


def _convolutions() -> Iterator[Case]:
    w, b, each = (8, 8, 3, 3), (8,), (8, 1, 3, 3)
    dense, depthwise = {"constants": [w, b], **_PADDED}, {"constants": [each, b], "group": 8, **_PADDED}
    yield _case("Conv", "1x1", constants=[(8, 8, 1, 1), b])
    yield _case("Conv", "3x3", **dense)
    yield _case("Conv", "without bias", constants=[w], **_PADDED)
    yield _case("Conv", "stride 2", constants=[(16, 8, 3, 3), (16,)], strides=[2, 2], **_PADDED)
    yield _case("Conv", "dilated", constants=[w, b], pads=[2] * 4, dilations=[2, 2])
    yield _case("Conv", "auto_pad SAME_UPPER", constants=[w, b], auto_pad="SAME_UPPER", strides=[2, 2])
    yield _case("Conv", "11x11", constants=[(8, 8, 11, 11), b], pads=[5] * 4)
    yield _case("Conv", "depthwise", **depthwise)
    yield _case("Conv", "depthwise, two per channel", constants=[(16, 1, 3, 3), (16,)], group=8, **_PADDED)
    yield _case("Conv", "grouped", constants=[(8, 4, 3, 3), b], group=2, **_PADDED)
    yield _case("Conv", "1-D", [SIGNAL], [(8, 8, 3), b], pads=[1, 1])
    yield _case("Conv", "3-D", [VOLUME], [(8, 4, 3, 3, 3), b], pads=[1] * 6)
    yield _case("Conv", "computed weights", [IMAGE, w], **_PADDED)
    yield _case("Conv", "with Relu", then=("Relu",), **dense)
    yield _case("Conv", "with Clip 0..6", then=("Clip", 0.0, 6.0), low=-9.0, high=9.0, **dense)
    up = {"strides": [2, 2]}
    yield _case("ConvTranspose", "2x2", constants=[(8, 6, 2, 2), (6,)], **up)
    odd = {"output_padding": [1, 1], **_PADDED, **up}
    yield _case("ConvTranspose", "3x3, output_padding", constants=[(8, 6, 3, 3), (6,)], **odd)
    yield _case("ConvTranspose", "without bias", constants=[(8, 6, 3, 3)], **_PADDED, **up)
    yield _case("ConvTranspose", "depthwise", constants=[(8, 1, 4, 4)], group=8, **_PADDED, **up)
    yield _case("ConvTranspose", "grouped", constants=[(8, 4, 2, 2)], group=2, **up)
    yield _case("ConvTranspose", "dilated", constants=[(8, 6, 3, 3), (6,)], dilations=[2, 2])
    yield _case("ConvTranspose", "1-D", [SIGNAL], [(8, 6, 2), (6,)], strides=[2])
    yield _case("ConvTranspose", "3-D", [VOLUME], [(4, 6, 2, 2, 2), (6,)], strides=[2] * 3)
    yield _case("ConvTranspose", "with Relu", constants=[(8, 6, 2, 2), (6,)], then=("Relu",), **up)


def _products() -> Iterator[Case]:
    rows, w, b = [(4, 16)], (12, 16), (12,)
    yield _case("Gemm", "", rows, [(16, 12), b])
    yield _case("Gemm", "transB", rows, [w, b], transB=1)
    yield _case("Gemm", "without bias", rows, [w], transB=1)
    yield _case("Gemm", "with Relu", rows, [w, b], transB=1, then=("Relu",))
    yield _case("Gemm", "with Clip 0..6", rows, [w, b], transB=1, then=("Clip", 0.0, 6.0), low=-9.0, high=9.0)
    yield _case("Gemm", "alpha 0.5", rows, [w, b], transB=1, alpha=0.5)
    yield _case("Gemm", "beta 0.5", rows, [w, b], transB=1, beta=0.5)
    yield _case("Gemm", "transA", [(16, 4)], [w, b], transA=1, transB=1)
    yield _case("Gemm", "computed weights", [(4, 16), w], transB=1)
    yield _case("Gemm", "computed bias", [(4, 16), b], [w], order=(0, 2, 1), transB=1)
    yield _case("MatMul", "stored weights", [TOKENS], [(16, 12)])
    yield _case("MatMul", "stored weights, 4-D", [(1, 3, 10, 16)], [(16, 12)])
    yield _case("MatMul", "stored weights, 5-D", [(1, 2, 3, 10, 16)], [(16, 12)])
    yield _case("MatMul", "stored weights of their own for each head", [(1, 3, 10, 16)], [(1, 3, 16, 12)])
    yield _case("MatMul", "stored first factor", [(1, 16, 12)], [(1, 10, 16)], order=(1, 0))
    yield _case("MatMul", "stored vector", [(10, 16)], [(16,)])
    yield _case("MatMul", "with Relu", [TOKENS], [(16, 12)], then=("Relu",))
    yield _case("MatMul", "with a stored vector added", [TOKENS], [(16, 12)], then=("Add", b))
    yield _case("MatMul", "two computed", [(1, 3, 10, 16), (1, 3, 16, 10)])
    yield _case("MatMul", "two computed, broadcast", [(1, 3, 10, 16), (1, 1, 16, 10)])
    yield _case("MatMul", "two computed, 5-D", [(1, 2, 3, 10, 16), (1, 2, 3, 16, 10)])
    yield _case("Einsum", "bij,bjk->bik", [(1, 5, 4), (1, 4, 6)], equation="bij,bjk->bik")
    yield _case("Einsum", "bhid,bhjd->bhij", [(1, 2, 5, 4), (1, 2, 6, 4)], equation="bhid,bhjd->bhij")
    yield _case("Einsum", "ij,j->i", [(4, 5), (5,)], equation="ij,j->i")


def _pools() -> Iterator[Case]:
    three: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2]}
    two: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    for op in ("MaxPool", "AveragePool"):
        yield _case(op, "2x2", **two)
        yield _case(op, "3x3, padded", **three, **_PADDED)
        yield _case(op, "ceil_mode, a window beyond the edge", [(1, 8, 11, 15)], ceil_mode=1, **two)
        yield _case(op, "ceil_mode, nothing beyond", ceil_mode=1, **two)
        yield _case(op, "dilated", kernel_shape=[3, 3], pads=[2] * 4, dilations=[2, 2])
        yield _case(op, "1-D", [SIGNAL], kernel_shape=[3], strides=[2], pads=[1, 1])
        yield _case(op, "3-D", [VOLUME], kernel_shape=[2] * 3, strides=[2] * 3)
    yield _case("AveragePool", "count_include_pad", count_include_pad=1, **three, **_PADDED)
    yield _case("MaxPool", "with indices", outputs=2, **two)
    yield _case("MaxPool", "scales of its own", apart=True, **two)
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield _case(op)
        yield _case(op, "1-D", [SIGNAL])
        yield _case(op, "3-D", [VOLUME])
    yield _case("LpPool", "2x2", **two)
    yield _case("RoiAlign", "", [IMAGE], [np.array([[0, 0, 8, 8]], np.float32), _ints(0)], output_height=3)


def _activations() -> Iterator[Case]:
    plain = ("Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "LeakyRelu", "Gelu", "Softplus")
    for op in (*plain, "Celu", "Selu", "ThresholdedRelu", "Softsign", "Mish", "Erf", "Shrink"):
        yield _case(op)
    for op in ("Exp", "Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Atan", "Identity"):
        yield _case(op)
    for op in ("Sinh", "Cosh", "Asinh"):
        yield _case(op, low=-2, high=2)
    for op in ("Asin", "Acos", "Atanh", "Tan"):
        yield _case(op, low=-0.9, high=0.9)
    yield _case("Acosh", low=1.1, high=4)
    yield _case("Sigmoid", "6-D", [SIX])
    yield _case("Softplus", "5-D", [FIVE])
    yield _case("Gelu", "tanh", approximate="tanh")
    yield _case("HardSigmoid", "alpha 1/6", alpha=1 / 6, beta=0.5)
    yield _case("Log", low=0.25, high=4)
    yield _case("Sqrt", low=0.25, high=4)
    yield _case("Reciprocal", low=1, high=100)
    for low, high in ((0, 6), (-1, 1)):
        yield _case("Clip", f"{low}..{high}", constants=[np.float32(low), np.float32(high)], high=8)
    yield _case("Clip", "upper bound only", constants=[None, np.float32(1)])
    yield _case("PRelu", "a slope for each channel", constants=[(8, 1, 1)])
    yield _case("PRelu", "one slope", constants=[(1, 1, 1)])
    for op in ("Softmax", "LogSoftmax"):
        yield _case(op, "last axis", [TOKENS], axis=-1)
        yield _case(op, "channels", axis=1)
        yield _case(op, "5-D", [FIVE], axis=-1)
    yield _case("Hardmax", "", [(4, 10)])


def _norms() -> Iterator[Case]:
    both = [(16,), (16,)]
    yield _case("LayerNormalization", "", [TOKENS], both)
    yield _case("LayerNormalization", "without bias", [TOKENS], [(16,)])
    yield _case("LayerNormalization", "4-D", constants=both)
    yield _case("LayerNormalization", "5-D", [FIVE], [(5,), (5,)])
    yield _case("LayerNormalization", "two axes", [TOKENS], [(10, 16), (10, 16)], axis=1)
    yield _case("InstanceNormalization", constants=[(8,), (8,)])
    yield _case("InstanceNormalization", "1-D", [SIGNAL], [(8,), (8,)])
    yield _case("GroupNormalization", constants=[(8,), (8,)], num_groups=2)
    yield _case("BatchNormalization", constants=[(8,), (8,), (8,), np.full(8, 0.5, np.float32)])
    yield _case("LpNormalization", "last axis", [TOKENS], axis=-1)
    yield _case("LpNormalization", "channels", axis=1)
    yield _case("LpNormalization", "p 1", axis=-1, p=1)
    yield _case("MeanVarianceNormalization", axes=[0, 2, 3])
    yield _case("LRN", size=3)


def _reductions() -> Iterator[Case]:
    area = [_ints(2, 3)]
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
        yield _case(op, "rows and columns", constants=area)
        yield _case(op, "last axis, dropped", [TOKENS], [_ints(-1)], keepdims=0)
        yield _case(op, "all axes", [TOKENS], keepdims=0)
    for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"):
        yield _case(op, constants=area)
    for op in ("ReduceProd", "ReduceLogSum"):
        yield _case(op, constants=area, low=0.5, high=1.5)
    for op in ("ArgMax", "ArgMin"):
        yield _case(op, "channels", axis=1)
        yield _case(op, "last axis, dropped", [TOKENS], axis=-1, keepdims=0)
        yield _case(op, "select_last_index", axis=1, select_last_index=1)
    yield _case("CumSum", "", [TOKENS], [np.int64(1)])
    yield _case("CumSum", "exclusive", [TOKENS], [np.int64(1)], exclusive=1)
    yield _case("CumSum", "reverse", [TOKENS], [np.int64(1)], reverse=1)
    yield _case("TopK", "", [(1, 40)], [_ints(5)], outputs=2)


def _arithmetic() -> Iterator[Case]:
    each = np.linspace(0.5, 2, 8, dtype=np.float32).reshape(1, 8, 1, 1)
    for op in ("Add", "Sub", "Mul", "Div"):
        k: dict[str, Any] = {"low": 0.5} if op == "Div" else {}
        yield _case(op, "two computed", [IMAGE, IMAGE], **k)
        yield _case(op, "stored for each channel", [IMAGE], [each], **k)
        yield _case(op, "stored first", [IMAGE], [np.float32(1.5)], order=(1, 0), **k)
        yield _case(op, "5-D, broadcast", [FIVE, (1, 2, 1, 4, 1)], **k)
        yield _case(op, "with Relu", [IMAGE, IMAGE], then=("Relu",), **k)
    yield _case("Add", "with Clip 0..6", [IMAGE, IMAGE], then=("Clip", 0.0, 6.0), low=-9.0, high=9.0)
    yield _case("Add", "6-D", [SIX] * 2)
    yield _case("Mul", "with Clip -1..1", [IMAGE] * 2, low=-1.2, high=1.2, then=("Clip", -1.0, 1.0))
    for op in ("Min", "Max"):
        yield _case(op, "two computed", [IMAGE, IMAGE])
        yield _case(op, "stored", [IMAGE], [np.float32(0.5)])
        yield _case(op, "three", [IMAGE] * 3)
    for exponent in (2.0, 3.0):
        yield _case("Pow", f"{exponent:g}", constants=[np.float32(exponent)])
    yield _case("Pow", "2, an integer", constants=[np.int64(2)])
    yield _case("Mod", "", [IMAGE, IMAGE], low=0.5, fmod=1)
    yield _case("Sum", "", [IMAGE] * 2)
    yield _case("Mean", "", [IMAGE] * 2)


def _logic() -> Iterator[Case]:
    for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"):
        yield _case(op, "", [IMAGE, IMAGE])
    yield _case("Greater", "stored", [IMAGE], [np.float32(0.5)])
    yield _case("Where", "", [IMAGE] * 3, kinds={0: "bool"})
    mask = np.arange(12 * 16).reshape(1, 1, 12, 16) % 3 == 0
    yield _case("Where", "stored mask", [IMAGE, IMAGE], [mask], order=(1, 2, 0))
    yield _case("And", "", [IMAGE, IMAGE], kinds={0: "bool", 1: "bool"})
    yield _case("Not", "", [IMAGE], kinds={0: "bool"})
    yield _case("Cast", "float to float", to=1)
    yield _case("Cast", "float to int64", to=7)
    yield _case("IsNaN")


def _joins() -> Iterator[Case]:
    yield _case("Concat", "channels", [IMAGE, IMAGE], axis=1)
    yield _case("Concat", "scales of their own", [IMAGE, IMAGE], axis=1, apart=True)
    yield _case("Concat", "three, last axis", [IMAGE] * 3, axis=-1)
    yield _case("Concat", "stored", [TOKENS], [(1, 1, 16)], order=(1, 0), axis=1)
    yield _case("Split", "uneven", constants=[_ints(2, 3, 3)], axis=1, outputs=3)
    yield _case("Split", "num_outputs", axis=1, outputs=2, num_outputs=2)
    yield _case("Slice", "width", constants=[_ints(2), _ints(10), _ints(3)])
    yield _case("Slice", "channels, to the end", constants=[_ints(2), _ints(2**63 - 1), _ints(1)])
    yield _case("Slice", "step 2", constants=[_ints(0, 0), _ints(12, 16), _ints(2, 3), _ints(2, 2)])
    yield _case("Slice", "reversed", constants=[_ints(-1), _ints(-100), _ints(3), _ints(-1)])


def _lookups() -> Iterator[Case]:
    yield _case("Gather", "one", [TOKENS], [np.int64(-1)], axis=1)
    yield _case("Gather", "channels", constants=[_ints(3, 1, 4)], axis=1)
    yield _case("Gather", "scales of its own", constants=[_ints(3, 1, 4)], axis=1, apart=True)
    yield _case("Gather", "computed index", [TOKENS, (4,)], axis=1, kinds={1: "int64"})
    yield _case("Gather", "stored table", [(1, 6)], [(20, 16)], order=(1, 0), kinds={0: "int64"})
    rows = np.broadcast_to(_ints(0, 2, 4).reshape(1, 3, 1), (1, 3, 16)).copy()
    yield _case("GatherElements", "", [TOKENS], [rows], axis=1)
    yield _case("GatherND", "", [(1, 6, 8)], [np.array([[0, 1], [0, 3]])])
    written: dict[str, Any] = {"order": (0, 2, 1), "axis": 1}
    yield _case("ScatterElements", "", [TOKENS, (1, 3, 16)], [rows], **written)
    yield _case("ScatterElements", "scales of their own", [TOKENS, (1, 3, 16)], [rows], apart=True, **written)
    for way in ("add", "max", "mul"):
        yield _case("ScatterElements", way, [TOKENS, (1, 3, 16)], [rows], reduction=way, **written)
    yield _case("ScatterND", "", [TOKENS, (2, 16)], [np.array([[0, 1], [0, 3]])], order=(0, 2, 1))
    points = [IMAGE, (1, 6, 7, 2)]
    for mode, padding in (
        ("linear", "zeros"),
        ("linear", "border"),
        ("nearest", "zeros"),
        ("cubic", "zeros"),
    ):
        given = {"mode": mode, "padding_mode": padding, "low": -1.2, "high": 1.2}
        yield _case("GridSample", f"{mode}, {padding}", points, **given)


def _pads() -> Iterator[Case]:
    around = _ints(0, 0, 1, 1, 0, 0, 1, 1)
    yield _case("Pad", "constant 1.5", constants=[around, np.float32(1.5)])
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield _case("Pad", mode, constants=[around], mode=mode)
    yield _case("Pad", "channels", constants=[_ints(0, 2, 0, 0, 0, 2, 0, 0)])
    yield _case("Pad", "negative", constants=[-around])


def _resizes() -> Iterator[Case]:
    def nearest(coordinates: str, rounding: str, factor: float) -> Case:
        given = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
        return _case(
            "Resize",
            f"nearest x {factor:g}, {coordinates}, {rounding}",
            constants=_by(factor, factor),
            **given,
        )

    for factor in (0.5, 1.5, 2):
        yield nearest("asymmetric", "floor", factor)
    for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        yield nearest(coordinates, "round_prefer_floor", 2)
        yield nearest(coordinates, "round_prefer_floor", 1.5)
        yield nearest(coordinates, "round_prefer_ceil", 1.5)
        yield nearest(coordinates, "floor", 2)
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "ceil"):
        yield nearest("asymmetric", rounding, 2)
    for coordinates in ("half_pixel", "asymmetric", "align_corners"):
        for factor in (0.5, 2.5):
            given = {"mode": "linear", "coordinate_transformation_mode": coordinates}
            yield _case(
                "Resize", f"linear x {factor:g}, {coordinates}", constants=_by(factor, factor), **given
            )
    yield _case("Resize", "linear x 0.3", constants=_by(0.3, 0.3), mode="linear")
    yield _case("Resize", "linear to 19 x 27", constants=[None, None, _ints(1, 8, 19, 27)], mode="linear")
    yield _case("Resize", "linear, antialias", constants=_by(0.5, 0.5), mode="linear", antialias=1)
    yield _case("Resize", "cubic x 2", constants=_by(2, 2), mode="cubic")
    even = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    yield _case("Resize", "1-D, nearest x 2", [SIGNAL], _by(2), **even)
    yield _case("Resize", "3-D, nearest x 2", [VOLUME], _by(2, 2, 2), **even)
    yield _case("Resize", "channels", constants=[None, np.array([1, 2, 1, 1], np.float32)], **even)


def _shapes() -> Iterator[Case]:
    for mode in ("DCR", "CRD"):
        yield _case("DepthToSpace", mode, blocksize=2, mode=mode)
    yield _case("SpaceToDepth", blocksize=2)
    yield _case("Tile", constants=[_ints(1, 1, 2, 3)])
    yield _case("Expand", "", [(1, 8, 1, 1)], [_ints(1, 8, 12, 16)])
    yield _case("Expand", "another axis", [(8, 1)], [_ints(1, 8, 16)])
    yield _case("Reshape", "4-D to 3-D", constants=[_ints(0, 0, -1)])
    yield _case("Reshape", "4-D to 5-D", constants=[_ints(1, 2, 4, 12, 16)])
    yield _case("Reshape", "4-D to 6-D", constants=[_ints(1, 2, 4, 3, 4, 16)])
    for shape, order in (
        ((4, 6), (1, 0)),
        (TOKENS, (0, 2, 1)),
        (IMAGE, (0, 2, 3, 1)),
        (FIVE, (0, 2, 1, 4, 3)),
    ):
        yield _case("Transpose", f"{len(shape)}-D", [shape], perm=list(order), between=True)
    yield _case("Transpose", "6-D", [SIX], perm=[0, 1, 4, 2, 5, 3], between=True)
    yield _case("Flatten")
    yield _case("Squeeze", "", [(1, 8, 1, 1)], [_ints(2, 3)])
    yield _case("Unsqueeze", "", [TOKENS], [_ints(1)])
    yield _case("Dropout")


def _others() -> Iterator[Case]:
    scores = [np.array([[[0.9] * 20]], np.float32), _ints(5)]
    yield _case("NonMaxSuppression", "", [(1, 20, 4)], scores, low=0, high=1)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights = [(1, 8 * gates, 8), (1, 8 * gates, 8), (1, 16 * gates)]
        yield _case(op, "", [(5, 1, 8)], weights, hidden_size=8)
    yield _case("DeformConv", "", [(1, 4, 6, 6), (1, 18, 6, 6)], [(4, 4, 3, 3)], order=(0, 2, 1), **_PADDED)
    yield _case("Trilu", "", [(10, 16)])
    yield _case("ReverseSequence", "", [(5, 2, 4)], [_ints(5, 3)])
