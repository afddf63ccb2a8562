"""From what the user names (a model, a QDQ file, a bundle; a folder of samples) to what is explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.bundle import open_bundle
from edgekit.capture import capture
from edgekit.data.base import Sample
from edgekit.data.preprocess import Preprocess, image_shape
from edgekit.data.samples import open_samples
from edgekit.errors import DataError, ModelError, UsageError
from edgekit.graph import Graph, TensorSpec
from edgekit.passes.name_nodes import name_nodes
from edgekit.quantize.calibrators import Range
from edgekit.quantize.scheme import Scheme
from edgekit.target import Prepares, Target

#: Samples that are used where nobody says otherwise.
LIMIT = 96


@dataclass(frozen=True)
class Case:
    """What is explained, as it was found.

    Attributes:
        source: As the user wrote it.
        target: Full name of the target.
        scheme: Its number formats.
        original: The float graph, prepared for the target; None where only a QDQ file was given.
        quantized: The QDQ graph; None where it has to be made.
        preprocess: How images become inputs.
        note: Where that came from.
        samples: The samples.
        against: Samples like those that are evaluated; empty where there are none.
        notes: What the user should know.
    """

    source: str
    target: str
    scheme: Scheme
    original: Graph | None
    quantized: Graph | None
    preprocess: Preprocess
    note: str
    samples: tuple[Sample, ...]
    against: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        graph = self.original or self.quantized
        if graph is None:
            raise ValueError("a case has a graph")
        return graph.inputs


def open_case(
    source: str,
    data: Any,
    find_target: Callable[[str], Target],
    *,
    target: str | None = None,
    float_model: str | None = None,
    against: Any = None,
    preprocess: Preprocess | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    limit: int | None = None,
) -> Case:
    """Read everything.

    Args:
        source: Float model, QDQ file or bundle folder.
        data: Samples.
        find_target: Loads a target by name.
        target: Its name; that of the bundle, or ``ort-cpu``, by default.
        float_model: The float model that a QDQ file was made from.
        against: Samples like those that are evaluated.
        preprocess: How images become inputs; the bundle's, else RGB / 255, letterboxed, by default.
        input_shapes: Shapes of inputs that a float model leaves open.
        limit: Most samples.

    Raises:
        UsageError: The target does not quantize, or options do not go together.
        ModelError: A network cannot be used.
        DataError: The samples cannot be used.
    """
    name, loaded, original, quantized, stated = _opened(
        source, find_target, target, float_model, input_shapes
    )
    note = "given"
    if preprocess is None and stated is not None:
        preprocess, note = stated, "the bundle's"
    scheme = loaded.scheme
    if scheme is None:
        raise UsageError(f"'{name}' does not quantize: it runs float only", where="target")
    if preprocess is None:
        preprocess, note = Preprocess(), "assumed, since nobody said otherwise"
    graph = original or quantized
    if graph is None:
        raise ValueError("there is a graph")
    samples = tuple(open_samples(data, graph.inputs, preprocess, limit=limit or LIMIT))
    other = tuple(open_samples(against, graph.inputs, preprocess, limit=limit or LIMIT)) if against else ()
    return Case(
        source,
        name,
        scheme,
        original,
        quantized,
        preprocess,
        f"{note}: {preprocess.describe()}",
        samples,
        other,
    )


def _opened(
    source: str,
    find_target: Callable[[str], Target],
    target: str | None,
    float_model: str | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
) -> tuple[str, Target, Graph | None, Graph | None, Preprocess | None]:
    """Name and target, float graph, QDQ graph, and the preprocessing that a bundle states."""
    if not Path(source).is_dir():
        loaded = find_target(target or "ort-cpu")
        original, quantized = _of_file(source, float_model, loaded, input_shapes)
        return f"{loaded.name}:{loaded.profile.name}", loaded, original, quantized, None
    if float_model is not None:
        raise UsageError("a bundle has its float network in it", where="--float")
    bundle = open_bundle(source)
    name = bundle.target(target)
    graphs = [_of_bundle(bundle.path(name, kind)) for kind in ("float", "int8")]
    return name, find_target(name), graphs[0], graphs[1], Preprocess.read(bundle.manifest.preprocess)


def _of_bundle(path: Path) -> Graph:
    """The ONNX graph of an artifact, or the one that it was made from."""
    if path.suffix != ".onnx":
        path = path.with_name(f"{path.stem}.reference.onnx")
    return read_onnx(path)


def _of_file(
    source: str,
    float_model: str | None,
    target: Target,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
) -> tuple[Graph | None, Graph | None]:
    path = Path(source)
    if path.suffix.lower() == ".onnx" and path.is_file():
        graph = read_onnx(path)
        if any(n.op_type == "QuantizeLinear" for n in graph.nodes):
            original = capture(float_model, input_shapes=input_shapes).graph if float_model else None
            if original is not None:
                _check_same_ends(original, graph)
            return original, graph
    if float_model is not None:
        raise UsageError("belongs to a quantized file", where="--float", hint="Give the QDQ file as MODEL")
    original = capture(source, input_shapes=input_shapes).graph
    return (target.prepare(original) if isinstance(target, Prepares) else original), None


def read_onnx(path: Path) -> Graph:
    """An ``.onnx`` file as it is, with shapes inferred and nodes named.

    Raises:
        ModelError: The file cannot be read.
    """
    import onnx

    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
        graph = name_nodes(Graph(ir.from_proto(model)))
    except Exception as error:  # OSError, protobuf's DecodeError, onnx's InferenceError: no common base
        text = str(error).strip().splitlines()
        raise ModelError(f"cannot be read: {text[0] if text else error!r}", where=str(path)) from error
    for spec in (*graph.inputs, *graph.outputs):
        if 0 in spec.shape:
            raise ModelError(f"its input or output '{spec.name}' is empty", where=str(path))
    return graph


def _check_same_ends(a: Graph, b: Graph) -> None:
    for kind, left, right in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
        ours, theirs = {s.name: s.shape for s in left}, {s.name: s.shape for s in right}
        if ours != theirs:
            raise ModelError(
                f"the float and the quantized network have different {kind}: {ours} and {theirs}"
            )


def known_inputs(
    inputs: tuple[TensorSpec, ...], preprocess: Preprocess, samples: Sequence[Sample]
) -> dict[str, Range]:
    """The exact range of an input that images are fed to: what 0 and 255 become."""
    if len(inputs) != 1 or not np.issubdtype(inputs[0].dtype, np.floating) or samples[0].image is None:
        return {}
    if image_shape(inputs[0].shape, preprocess.layout) is None:
        return {}
    ends = [
        (level / preprocess.divide - mean) / std
        for mean, std in zip(preprocess.mean, preprocess.std, strict=True)
        for level in (0, 255)
    ]
    return {inputs[0].name: (min(ends), max(ends))}


def check_feeds(samples: Sequence[Sample], inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse samples that do not fit.

    Raises:
        DataError: A sample has another shape than the inputs.
    """
    wanted = {spec.name: spec.shape for spec in inputs}
    for sample in samples:
        given = {name: tuple(value.shape) for name, value in sample.feeds.items()}
        if given != wanted:
            raise DataError(f"sample {sample.name} has inputs {given}, the model wants {wanted}")
