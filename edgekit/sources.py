"""Reading a network from wherever it comes, without trusting it.

A file is checked before anything in it is used: that it is a network at all, that its weights lie beside it,
are complete and finite, and that every operator is one that the rest of the program knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError, UsageError
from edgekit.graph import OPSET, Graph
from edgekit.objects import is_object_name

if TYPE_CHECKING:
    import onnx

Arrays = dict[str, np.ndarray[Any, Any]]
Run = Callable[[Mapping[str, np.ndarray[Any, Any]]], Arrays]

#: The most bytes that a protobuf message, and so a model handed to a runtime, can have.
_LARGEST = 2**31 - 1

#: What a source can be, for error messages.
VALID = ("a .onnx file", "a .pt2 file (torch.export.save)", "package.module:callable returning an nn.Module")

_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
}  # fmt: skip

_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip

#: Operators that an infinite operand ruins; elsewhere (masks, limits of Clip) infinity has its uses.
_NEEDS_FINITE = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "BatchNormalization", "LayerNormalization", "PRelu",
    "Gather", "GroupNormalization", "InstanceNormalization", "LSTM", "GRU", "RNN", "Mul", "Div",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A network as it was found.

    Attributes:
        graph: The network, unchanged but for inlined functions.
        sha256: Hash of the file and its weight files; for a callable, of the exported model.
        run: Runs the original: ONNX Runtime on the file as it is, or the torch module itself.
        runner: Which of the two ``run`` is, in words.
    """

    graph: Graph
    sha256: str
    run: Run
    runner: str


def read(source: str, input_shapes: Mapping[str, tuple[int, ...]] | None, folder: Path | None) -> Source:
    """Read a network.

    Args:
        source: See :data:`VALID`.
        input_shapes: Shape by input name; a module needs all of them, in the order of ``forward``.
        folder: What relative paths start from, and where a callable's package may lie.

    Raises:
        UsageError: ``source`` is none of the valid kinds.
        ModelError: The network cannot be read or used.
    """
    path = Path(source) if folder is None else folder / source
    if is_object_name(source) and not path.exists():
        from edgekit.torch_export import export_callable

        return _checked(*export_callable(source, input_shapes or {}, folder))
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        raise ModelError(
            f"a {suffix} file is a pickle: Python code, not a network, which may run anything when loaded",
            where=source,
            hint="Save the network: torch.export.save(torch.export.export(model, args), 'model.pt2'), or "
            "torch.onnx.export(model, args, 'model.onnx', dynamo=True)",
        )
    if suffix not in (".onnx", ".pt2"):
        if not path.exists():
            raise UsageError("no such file", where=source, valid=VALID)
        raise UsageError("not a kind of model that can be read", where=source, valid=VALID)
    _check_file(path)
    if suffix == ".pt2":
        from edgekit.torch_export import export_program

        return _checked(*export_program(path))
    proto, sha256 = read_onnx(path)
    return _checked(proto, None, sha256)


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """Parse an ``.onnx`` file and load the weights that lie in files beside it.

    Returns:
        The model with all weights in memory, and the SHA-256 over the file and its weight files.

    Raises:
        ModelError: Not a model, cut off, or a weight file is missing, cut off or outside the model's folder.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    _check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    digest = hashlib.sha256(data)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError("not an ONNX model, or a damaged one", where=str(path)) from error
    if not proto.graph.node or not proto.opset_import:
        raise ModelError("holds no network (no nodes)", where=str(path))
    if any(isinstance(text, bytes) for text in _texts(proto)):
        # The parser hands out names that are no text as bytes, which the runtimes stumble over.
        raise ModelError("a damaged ONNX model (a name in it is not text)", where=str(path))
    _check_size(path, len(data), proto)
    opened: dict[Path, str] = {}
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _load_external(tensor, path, opened)
    for name in sorted(set(opened.values())):
        digest.update((path.parent / name).read_bytes())
    return proto, digest.hexdigest()


def _checked(proto: onnx.ModelProto, run: Run | None, sha256: str) -> Source:
    check_operators(proto)
    runner = "the torch module"
    if run is None:
        from edgekit.session import open_runner

        run, runner = (
            open_runner(proto.SerializeToString(), threads=1).run,
            "ONNX Runtime on the original file",
        )
    try:
        model = ir.from_proto(proto)
        if model.functions:
            import onnx_ir.passes.common as common

            model = common.InlinePass()(model).model
        model.graph.sort()
    except Exception as error:  # the deserializer raises whatever a broken structure makes it stumble over
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(f"the graph is not well-formed: {cause}") from error
    graph = Graph(model)
    check_weights(graph)
    return Source(graph, sha256, run, runner)


def check_operators(proto: onnx.ModelProto) -> None:
    """Refuse a model that cannot be worked on because of what its nodes are.

    Raises:
        ModelError: No outputs, already quantized, random, in training mode, or operators that are not ONNX's
            own.
    """
    import onnx.defs

    if not proto.graph.output:
        raise ModelError("the model has no outputs")
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset == 0:
        raise ModelError("the model does not say which ONNX opset it uses")
    if opset > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"opset {opset} is newer than this program knows",
            valid=[f"up to {onnx.defs.onnx_opset_version()}"],
            hint=f"Export with opset_version={OPSET}",
        )
    local = {(f.domain, f.name) for f in proto.functions}
    for node in _nodes(proto):
        where = f"{node.op_type} node '{node.name or ', '.join(node.output)}'"
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise ModelError(
                "the model is quantized already", where=where, hint="Give the float model it was made from"
            )
        if (node.domain, node.op_type) in local:
            continue
        if node.domain not in ("", "ai.onnx"):
            raise ModelError(
                f"operator '{node.op_type}' of domain '{node.domain}' is not part of standard ONNX",
                where=where,
                hint="Export the model with standard operators only",
            )
        if not onnx.defs.has(node.op_type, opset, ""):
            raise ModelError(f"ONNX opset {opset} has no operator '{node.op_type}'", where=where)
        _check_inference(node, where)


def _check_inference(node: onnx.NodeProto, where: str) -> None:
    if node.op_type in _RANDOM:
        raise ModelError("draws random numbers, so that no two runs agree", where=where)
    training = next((a.i for a in node.attribute if a.name == "training_mode"), 0)
    if node.op_type == "BatchNormalization" and training:
        raise ModelError(
            "the model was exported in training mode", where=where, hint="Call model.eval() before export"
        )


def check_weights(graph: Graph) -> None:
    """Refuse weights that are not numbers or not all there.

    Raises:
        ModelError: Names the tensor.
    """
    main = graph.model.graph
    for value in [v for g in (main, *main.subgraphs()) for v in g.initializers.values()]:
        where = f"weight '{value.name}'"
        if value.const_value is None or value.dtype is None:
            raise ModelError("has no content", where=where)
        if value.dtype == ir.DataType.BFLOAT16:
            raise ModelError("is bfloat16", where=where, hint="Export the model as float32: model.float()")
        try:
            values = value.const_value.numpy()
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"its data do not fit its shape or type ({error})", where=where) from error
        if value.dtype.is_floating_point() and not np.isfinite(values).all():
            _check_infinite(values, value, where)


def _check_infinite(values: np.ndarray[Any, Any], value: ir.Value, where: str) -> None:
    if np.isnan(values).any():
        raise ModelError(f"{int(np.isnan(values).sum())} of {values.size} numbers are NaN", where=where)
    users = {node.op_type for node in value.consumers()}
    # Adding minus infinity is how attention masks are written; adding plus infinity is a mistake.
    if users & _NEEDS_FINITE or (np.isposinf(values).any() and users & {"Add", "Sub"}):
        raise ModelError(f"{int(np.isinf(values).sum())} of {values.size} numbers are infinite", where=where)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ModelError("is a folder, not a model file", where=str(path))
    if not path.is_file():
        raise ModelError("no such file", where=str(path))
    if path.stat().st_size == 0:
        raise ModelError("the file is empty", where=str(path))


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    def walk(nodes: Any) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            yield node
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    yield from walk(graph.node)

    yield from walk(proto.graph.node)
    for function in proto.functions:
        yield from walk(function.node)


def _check_size(path: Path, size_bytes: int, proto: onnx.ModelProto) -> None:
    for tensor in _tensors(proto.graph):
        lengths = [entry.value for entry in tensor.external_data if entry.key == "length"]
        size_bytes += sum(int(length) for length in lengths if length.isdecimal())
    if size_bytes > _LARGEST:
        raise ModelError(
            f"has {size_bytes / 2**30:.1f} GiB of weights; one ONNX model in memory holds 2 GiB at most",
            where=str(path),
        )


def _texts(proto: onnx.ModelProto) -> Iterator[str]:
    graph = proto.graph
    for thing in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield thing.name
    for node in _nodes(proto):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _load_external(tensor: onnx.TensorProto, model: Path, opened: dict[Path, str]) -> None:
    """Read one tensor's data from the file beside the model."""
    where = f"{model}, weight '{tensor.name}'"
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    path = _inside(location, model, where)
    if not path.is_file():
        raise ModelError(
            f"its data file '{location}' is missing",
            where=where,
            hint=f"Put it beside the model, into {model.parent}",
        )
    try:
        offset = int(fields.get("offset", 0))
        length = int(fields["length"]) if "length" in fields else path.stat().st_size - offset
    except ValueError as error:
        raise ModelError("says wrongly where its data are", where=where) from error
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise ModelError(f"its data file '{location}' is cut off ({path.stat().st_size} bytes)", where=where)
    opened[path] = location
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
    except OSError as error:
        raise ModelError(f"cannot read '{location}': {error.strerror or error}", where=where) from error
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def _inside(location: str, model: Path, where: str) -> Path:
    """The path of a data file, which must not lead out of the model's folder."""
    pure = PurePosixPath(location.replace("\\", "/"))
    base = model.parent.resolve()
    path = (base / pure).resolve()
    absolute = (
        pure.is_absolute() or PureWindowsPath(location).is_absolute() or bool(PureWindowsPath(location).drive)
    )
    if not location or absolute or ".." in pure.parts or not path.is_relative_to(base):
        raise ModelError(
            f"its data file '{location}' is outside the model's folder; it was not read",
            where=where,
            hint="Put the data file beside the model",
        )
    return path
