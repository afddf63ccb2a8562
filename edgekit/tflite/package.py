"""A network as files that run: the ``.tflite``, and an ONNX file for what stays in float at its ends.

``<stem>.tflite`` holds everything between the first and the last integer operator. Its metadata entry
``edgekit.io`` says what each of its inputs and outputs is in the ONNX network: name, logical shape, the order
in which the axes are stored, scale and zero point. ``<stem>.front.onnx`` and ``<stem>.decoder.onnx`` hold the
float arithmetic before and after, where the network has any; the metadata carries their hashes, so that
files of different networks are not mixed up.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit import __version__
from edgekit.errors import ModelError
from edgekit.files import write_whole
from edgekit.session import Arrays, Runner, open_runner
from edgekit.tflite.dialect import PLAIN, Dialect
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.model import Array, DType, TfliteModel

if TYPE_CHECKING:
    from edgekit.graph import Graph
    from edgekit.tflite.lower.builder import LayoutNote
    from edgekit.tflite.lower.lower import Binding

#: Name of the metadata entry with the :class:`PackageIo`.
ENTRY = "edgekit.io"
#: Name of the metadata entry with the operators that the lowering had to insert, as JSON.
NOTES_ENTRY = "edgekit.notes"
#: Name of the metadata entry that says what the file was made from and by what, as JSON.
PROVENANCE_ENTRY = "edgekit.provenance"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IoTensor(_Part):
    """One input or output of the ``.tflite`` and what it is in the ONNX network.

    Attributes:
        name: Name of the ONNX tensor, which is float where ``scale`` is given.
        tensor: Name of the input or output in the ``.tflite``.
        logical: Shape of the ONNX tensor.
        shape: Shape as stored.
        axes: Stored axis i is axis ``axes[i]`` of the ONNX tensor, or of the shape that it is reshaped from.
        dtype: Stored element type.
        scale: ``real = scale * (code - zero_point)``; None for values that are no codes.
        zero_point: See ``scale``.
        flat: The values lie in the order of the ONNX tensor, whatever the two shapes are.
    """

    name: str
    tensor: str
    logical: tuple[int, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: DType
    scale: float | None = None
    zero_point: int | None = None
    flat: bool = False

    @classmethod
    def of(cls, binding: Binding, port: str) -> IoTensor:
        """What a binding of the lowering says about the input or output ``port``."""
        return cls(
            name=binding.name,
            tensor=port,
            logical=tuple(binding.logical),
            shape=tuple(binding.shape),
            axes=tuple(binding.axes),
            dtype=binding.dtype,
            scale=binding.scale,
            zero_point=binding.zero_point,
            flat=binding.flat,
        )

    def store(self, value: Array) -> Array:
        """A value of the ONNX tensor as the ``.tflite`` wants it: rounded half to even, clipped, transposed.

        Raises:
            ModelError: The shape is another one, or the values do not fit (NaN, integers out of range).
        """
        if tuple(value.shape) != self.logical:
            raise ModelError(f"input '{self.name}' has shape {list(value.shape)}, not {list(self.logical)}")
        codes = self._codes(value)
        if not self.flat:
            unstored = [self.shape[self.axes.index(axis)] for axis in range(len(self.axes))]
            codes = codes.reshape(unstored).transpose(self.axes)
        return np.ascontiguousarray(codes).reshape(self.shape)

    def arrange(self, stored: Array) -> Array:
        """Stored values in the order and shape of the ONNX tensor, still codes."""
        if self.flat:
            return stored.reshape(self.logical)
        return stored.transpose(np.argsort(self.axes)).reshape(self.logical)

    def real(self, codes: Array) -> Array:
        """Codes as float32; values that are no codes as they are."""
        if self.scale is None:
            return codes
        centred = codes.astype(np.int32) - np.int32(self.zero_point or 0)
        return centred.astype(np.float32) * np.float32(self.scale)

    def _codes(self, value: Array) -> Array:
        dtype = self.dtype.numpy
        if self.scale is None:
            return self._cast(value)
        limits = np.iinfo(dtype)
        steps = np.rint(value.astype(np.float32, copy=False) / np.float32(self.scale))
        steps += np.float32(self.zero_point or 0)
        if np.isnan(steps.min(initial=0)):
            raise ModelError(f"input '{self.name}' holds NaN")
        codes: Array = steps.clip(limits.min, limits.max).astype(dtype)
        return codes

    def _cast(self, value: Array) -> Array:
        dtype = self.dtype.numpy
        if value.dtype == dtype or dtype.kind != "i":
            return value.astype(dtype, copy=False)
        limits = np.iinfo(dtype)
        if value.size and (value.min() < limits.min or value.max() > limits.max):
            raise ModelError(f"input '{self.name}' holds values that {dtype} cannot")
        return value.astype(dtype)


class PackageIo(_Part):
    """Content of the metadata entry ``edgekit.io``.

    Attributes:
        version: Of this format.
        inputs: Inputs of the ``.tflite``, in its order.
        outputs: Outputs of the ``.tflite``, in its order.
        results: Names of the network's outputs, in its order.
        arguments: Names of the network's inputs, in its order.
        front: SHA-256 of ``<stem>.front.onnx``; None where there is none.
        decoder: SHA-256 of ``<stem>.decoder.onnx``; None where there is none.
    """

    version: Literal[1] = 1
    inputs: tuple[IoTensor, ...]
    outputs: tuple[IoTensor, ...]
    results: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    front: str | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class Package:
    """What :func:`write_package` wrote.

    Attributes:
        path: The ``.tflite``.
        size_bytes: Its size.
        front: ONNX file of the float nodes before it, where there are any.
        decoder: ONNX file of the float nodes after it, where there are any.
        model: The model as it was written.
        io: What its inputs and outputs are.
        notes: Every TRANSPOSE and QUANTIZE that the lowering had to insert, with the reason.
    """

    path: Path
    size_bytes: int
    front: Path | None
    decoder: Path | None
    model: TfliteModel
    io: PackageIo
    notes: tuple[LayoutNote, ...]

    @property
    def companions(self) -> tuple[Path, ...]:
        """The files beside the ``.tflite`` that belong to it."""
        return tuple(path for path in (self.front, self.decoder) if path is not None)


class CodeRunner(Protocol):
    """Anything that runs a ``.tflite``: stored arrays by input name in, stored arrays by output name out."""

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]: ...


class PackageRunner:
    """A :class:`~edgekit.session.Runner` over a package: float feeds in, the network's outputs out.

    Attributes:
        bindings: What the inputs and outputs of the ``.tflite`` are.
        engine: What runs the ``.tflite``.
        output_names: Names of the network's outputs.
        optimized: Whether the engine runs as fast as it can, so that its time means something.
    """

    def __init__(
        self,
        bindings: PackageIo,
        engine: CodeRunner,
        *,
        front: Runner | None = None,
        decoder: Runner | None = None,
    ) -> None:
        self.bindings = bindings
        self.engine = engine
        self.output_names = list(bindings.results)
        self.optimized = isinstance(engine, LiteRt) and engine.kernels is Kernels.XNNPACK
        self._front = front
        self._decoder = decoder
        # Interpreters keep their tensors in one place; samples that are run side by side take turns there.
        self._turn = threading.Lock()

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """All outputs of the network.

        Raises:
            ModelError: An input is missing or does not fit.
        """
        return self.invoke(self.prepare(feeds), feeds)

    def run_codes(self, feeds: Mapping[str, Array]) -> Arrays:
        """Outputs of the ``.tflite`` by ONNX name, in the ONNX order of axes, still codes.

        Raises:
            ModelError: An input is missing or does not fit.
        """
        stored = self._invoke(self.prepare(feeds))
        return {entry.name: entry.arrange(stored[entry.tensor]) for entry in self.bindings.outputs}

    def prepare(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The stored arrays that the ``.tflite`` is fed with, by its input names.

        Raises:
            ModelError: An input is missing or does not fit.
        """
        values = dict(feeds) if self._front is None else {**feeds, **self._front.run(feeds)}
        return store_feeds(self.bindings, values)

    def invoke(self, stored: Mapping[str, Array], feeds: Mapping[str, Array]) -> Arrays:
        """Run on what :meth:`prepare` made; ``feeds`` are there for a decoder that reads network inputs."""
        codes = self._invoke(stored)
        values = {
            entry.name: entry.real(entry.arrange(codes[entry.tensor])) for entry in self.bindings.outputs
        }
        if self._decoder is not None:
            wanted = getattr(self._decoder, "input_names", list(values))
            values.update(self._decoder.run({name: _given(name, values, feeds) for name in wanted}))
        return {name: values[name] for name in self.bindings.results}

    def _invoke(self, stored: Mapping[str, Array]) -> dict[str, Array]:
        with self._turn:
            return self.engine.run(stored)


def store_feeds(io: PackageIo, values: Mapping[str, Array]) -> dict[str, Array]:
    """Float values by ONNX name as the arrays that a ``.tflite`` is fed with.

    Raises:
        ModelError: A value is missing or does not fit.
    """
    return {entry.tensor: entry.store(_given(entry.name, values, {})) for entry in io.inputs}


def write_package(
    graph: Graph,
    stem: str,
    folder: Path,
    *,
    io: Literal["quantized", "float"] = "quantized",
    dialect: Dialect = PLAIN,
    check: Callable[[TfliteModel], None] | None = None,
) -> Package:
    """Split, lower and write a network as ``<stem>.tflite`` and, where needed, ONNX files beside it.

    Args:
        graph: A QDQ graph, or a plain float graph for a float32 ``.tflite``.
        stem: Name of the files.
        folder: Where they go; files of an earlier package of that name are replaced.
        io: Element type of the ``.tflite``'s inputs and outputs.
        dialect: What its runtime takes.
        check: Sees the model before anything is written, and may refuse it.

    Raises:
        ModelError: The network has nodes that TFLite cannot express; all of them are listed.
        OutputError: A file cannot be written.
        ToolError: The LiteRT package, which brings the file format, is not installed.
    """
    from edgekit.tflite.lower.lower import lower
    from edgekit.tflite.split import split
    from edgekit.tflite.write import write_model

    parts = split(_with_shapes(graph), mixed=dialect.mixed, lookups=dialect.lookups)
    lowered = lower(parts.body, io=io, avoid=dialect.avoid)
    if check is not None:
        check(lowered.model)
    written = _write_ends({"front": parts.front, "decoder": parts.decoder}, stem, folder)
    described = PackageIo(
        inputs=tuple(map(IoTensor.of, lowered.inputs, lowered.model.inputs)),
        outputs=tuple(map(IoTensor.of, lowered.outputs, lowered.model.outputs)),
        results=tuple(spec.name for spec in graph.outputs),
        arguments=tuple(spec.name for spec in graph.inputs),
        front=_sha256(written.get("front")),
        decoder=_sha256(written.get("decoder")),
    )
    model = replace(lowered.model, metadata=_metadata(lowered.model, described, lowered.notes, graph))
    data = write_model(model)
    path = folder / f"{stem}.tflite"
    write_whole(path, data)
    return Package(
        path, len(data), written.get("front"), written.get("decoder"), model, described, lowered.notes
    )


def _write_ends(ends: Mapping[str, Graph | None], stem: str, folder: Path) -> dict[str, Path]:
    """Write the float ends that there are; files of ends that an earlier package had are removed."""
    written = {}
    for name, end in ends.items():
        path = folder / f"{stem}.{name}.onnx"
        if end is None:
            path.unlink(missing_ok=True)
            continue
        write_whole(path, end.to_bytes())
        written[name] = path
    return written


def _sha256(path: Path | None) -> str | None:
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _with_shapes(graph: Graph) -> Graph:
    """The graph with the shape of every tensor; captured graphs have them already."""
    from edgekit.passes.infer_shapes import infer_shapes

    values = [value for node in graph.nodes for value in node.outputs if value.name]
    if all(v.dtype is not None and v.shape is not None and v.shape.is_static() for v in values):
        return graph
    return infer_shapes(graph)


def read_package(path: Path) -> tuple[TfliteModel, PackageIo]:
    """A ``.tflite`` that edgekit wrote, and what its inputs and outputs are.

    Raises:
        ModelError: The file is missing, no ``.tflite``, or not one of edgekit's.
    """
    from edgekit.tflite.read import read_model

    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    try:
        model = read_model(path.read_bytes())
    except ModelError as error:
        raise _located(error, path) from error
    return model, package_io(model, path)


def package_io(model: TfliteModel, path: Path) -> PackageIo:
    """What the metadata of a model, read from ``path``, says about its inputs and outputs.

    Raises:
        ModelError: The metadata does not say it, or cannot be used.
    """
    if ENTRY not in model.metadata:
        raise ModelError(
            f"holds no metadata entry '{ENTRY}', which says what its inputs and outputs are",
            where=str(path),
            hint="It was not made by edgekit, or another tool took it out",
        )
    try:
        return PackageIo.model_validate_json(model.metadata[ENTRY])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or ENTRY
        what = f"its metadata '{ENTRY}' cannot be used: {key}: {first['msg']}"
        raise ModelError(what, where=str(path)) from error


def open_package(path: Path, *, kernels: Kernels = Kernels.XNNPACK, threads: int = 1) -> PackageRunner:
    """Load a package that :func:`write_package` wrote.

    Args:
        path: The ``.tflite``; its ONNX files must lie beside it.
        kernels: Which of LiteRT's kernels run it.
        threads: For LiteRT and for the ONNX files.

    Raises:
        ModelError: A file is missing, is no package, or belongs to another one; a runtime refuses it.
        ToolError: LiteRT is not installed.
    """
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    try:
        engine = LiteRt(path, kernels=kernels, threads=threads)
    except ModelError as error:
        raise _located(error, path) from error
    return compose(path, package_io(engine.model, path), engine, threads=threads)


def compose(path: Path, io: PackageIo, engine: CodeRunner, *, threads: int = 1) -> PackageRunner:
    """The package at ``path`` with ``engine`` in the place of LiteRT.

    Raises:
        ModelError: One of its ONNX files is missing, belongs to another package, or is refused.
    """
    ends = {
        name: open_runner(_checked(companion(path, name), expected), threads=threads)
        for name, expected in (("front", io.front), ("decoder", io.decoder))
        if expected is not None
    }
    return PackageRunner(io, engine, front=ends.get("front"), decoder=ends.get("decoder"))


def companion(path: Path, name: str) -> Path:
    """Where the ``front`` or ``decoder`` of a ``.tflite`` lies."""
    return path.with_name(f"{path.stem}.{name}.onnx")


def _checked(path: Path, expected: str) -> Path:
    if not path.is_file():
        raise ModelError(
            "is missing: it holds the float part of the network that the .tflite beside it needs",
            where=str(path),
            hint="Keep the files of a package together",
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise ModelError(
            "is not the file that the .tflite beside it was written with",
            where=str(path),
            hint="Take both from the same package",
        )
    return path


def _located(error: ModelError, path: Path) -> ModelError:
    place = f"{path}: {error.where}" if error.where else str(path)
    return ModelError(error.what, where=place, valid=error.valid, hint=error.hint)


def _metadata(model: TfliteModel, io: PackageIo, notes: Sequence[LayoutNote], graph: Graph) -> dict[str, str]:
    provenance: dict[str, Any] = {"edgekit": __version__, "network_sha256": graph.sha256()}
    provenance["passes"] = [change.pass_name for change in graph.history]
    return {
        **model.metadata,
        ENTRY: io.model_dump_json(),
        NOTES_ENTRY: json.dumps([asdict(note) for note in notes]),
        PROVENANCE_ENTRY: json.dumps(provenance),
    }


def _given(name: str, first: Mapping[str, Array], second: Mapping[str, Array]) -> Array:
    for values in (first, second):
        if name in values:
            return np.asarray(values[name])
    raise ModelError(f"input '{name}' is missing", valid=[*first, *second])
