"""What the files of a bundle take and return, read from the files themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import ArtifactEntry, TensorEntry

if TYPE_CHECKING:
    from edgekit.passes.quantized_ends import End


def describe_artifact(path: Path, layout: str = "auto") -> ArtifactEntry:
    """Inputs and outputs of an artifact, with scales where they are quantized inside.

    Raises:
        ModelError: The file cannot be read.
    """
    if path.suffix == ".tflite":
        return _describe_tflite(path, layout)
    import onnx_ir as ir

    from edgekit.artifacts import read_onnx
    from edgekit.graph import Graph
    from edgekit.passes.quantized_ends import read_ends

    graph = Graph(ir.from_proto(read_onnx(path, weights=True)))
    ends = read_ends(graph.model.metadata_props, where=str(path))
    coded = {} if ends is None else ends.coded
    return ArtifactEntry(
        size_bytes=path.stat().st_size,
        inputs=tuple(_tensor(spec, graph, layout, coded) for spec in graph.inputs),
        outputs=tuple(_tensor(spec, graph, "", coded) for spec in graph.outputs),
    )


def _describe_tflite(path: Path, layout: str) -> ArtifactEntry:
    """The network's inputs and outputs as its ONNX ends have them, and those of the ``.tflite``."""
    from edgekit.tflite.package import companion, read_package

    _, io = read_package(path)
    raw = {
        "inputs": tuple(_io_entry(entry, layout) for entry in io.inputs),
        "outputs": tuple(_io_entry(entry, "") for entry in io.outputs),
    }
    inputs, outputs = {e.name: e for e in raw["inputs"]}, {e.name: e for e in raw["outputs"]}
    made: set[str] = set()
    if io.front is not None:
        front = describe_artifact(companion(path, "front"), layout)
        made = {entry.name for entry in front.outputs}
        inputs.update({entry.name: entry for entry in front.inputs})
    if io.decoder is not None:
        decoder = describe_artifact(companion(path, "decoder"), layout)
        inputs.update({e.name: e for e in decoder.inputs if e.name not in outputs})
        outputs.update({entry.name: entry for entry in decoder.outputs})
    return ArtifactEntry(
        size_bytes=path.stat().st_size,
        inputs=tuple(inputs[name] for name in io.arguments if name in inputs and name not in made),
        outputs=tuple(outputs[name] for name in io.results),
        raw=raw if io.front or io.decoder else None,
    )


def _io_entry(entry: Any, layout: str) -> TensorEntry:
    from edgekit.data.preprocess import image_shape

    image = image_shape(entry.logical, layout) if layout else None
    moved = tuple(entry.axes) != tuple(range(len(entry.axes)))
    coded = entry.scale is not None
    return TensorEntry(
        name=entry.name,
        shape=entry.logical,
        dtype="float32" if coded else str(entry.dtype),
        layout="" if image is None else "NCHW" if image.channels_first else "NHWC",
        scale=entry.scale,
        zero_point=entry.zero_point,
        quantized=str(entry.dtype) if coded else None,
        tensor=entry.tensor if entry.tensor != entry.name else None,
        stored=entry.shape if moved or entry.shape != entry.logical else None,
        axes=entry.axes if moved else None,
    )


def _tensor(spec: Any, graph: Any, layout: str, coded: Mapping[str, End]) -> TensorEntry:
    """One end; where the file itself has codes there, ``dtype`` and ``quantized`` are both their type."""
    from edgekit.data.preprocess import image_shape

    image = image_shape(spec.shape, layout) if layout else None
    entry: dict[str, Any] = {"name": spec.name, "shape": spec.shape, "dtype": str(spec.dtype)}
    if image is not None:
        entry["layout"] = "NCHW" if image.channels_first else "NHWC"
    if spec.name in coded:
        end = coded[spec.name]
        return TensorEntry(**entry, scale=end.scale, zero_point=end.zero_point, quantized=end.dtype)
    return TensorEntry(**entry, **_codes(graph, spec.name))


def _codes(graph: Any, name: str) -> dict[str, Any]:
    """Scale and zero point of an input's Quantize or an output's Dequantize node."""
    from edgekit.graph import array

    value = graph.values()[name]
    nodes = [node for node in value.consumers() if node.op_type == "QuantizeLinear"]
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        nodes.append(producer)
    for node in nodes:
        scale = array(node.inputs[1])
        zero = array(node.inputs[2]) if len(node.inputs) > 2 else None
        if scale is not None and scale.size == 1 and zero is not None:
            return {
                "scale": float(scale.reshape(-1)[0]),
                "zero_point": int(zero.reshape(-1)[0]),
                "quantized": str(zero.dtype),
            }
    return {}
