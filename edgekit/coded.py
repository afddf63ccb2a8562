"""Running ONNX files whose inputs and outputs are codes, with float values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifacts import open_artifact
from edgekit.errors import ModelError
from edgekit.passes.quantized_ends import End, Ends, read_ends
from edgekit.session import Arrays, OrtRunner

Array = np.ndarray[Any, Any]


class CodedRunner:
    """A :class:`~edgekit.session.Runner` over a file with ends of codes: float feeds in, float outputs out.

    The file is one of :func:`~edgekit.passes.quantized_ends.quantized_ends`.

    Attributes:
        runner: What runs the file.
        ends: What its inputs and outputs mean.
        input_names: Names of the inputs.
        output_names: Names of the outputs.
    """

    def __init__(self, runner: OrtRunner, ends: Ends) -> None:
        self.runner = runner
        self.ends = ends
        self.input_names = list(runner.input_names)
        self.output_names = list(runner.output_names)

    @property
    def optimized(self) -> bool:
        """Whether it runs as fast as the runtime can, so that its time means something."""
        return self.runner.optimized

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """All outputs in float.

        Raises:
            ModelError: An input is missing or does not fit.
        """
        coded, found = self.ends.coded, self.codes(feeds)
        return {name: dequantize(v, coded[name]) if name in coded else v for name, v in found.items()}

    def codes(self, feeds: Mapping[str, Array]) -> Arrays:
        """All outputs as the file has them.

        Args:
            feeds: Inputs in float.

        Raises:
            ModelError: An input is missing or does not fit.
        """
        return self.runner.run(self.prepare(feeds))

    def prepare(self, feeds: Mapping[str, Array]) -> Arrays:
        """The arrays that the file is fed with: codes where it takes codes.

        Raises:
            ModelError: An input is missing, is no float where codes stand for floats, or has another shape.
        """
        found = {}
        for end in self.ends.inputs:
            if end.name not in feeds:
                raise ModelError(f"input '{end.name}' is missing", valid=list(feeds))
            given = np.asarray(feeds[end.name])
            found[end.name] = given if end.scale is None else quantize(given, end)
        return found


def quantize(values: Array, end: End) -> Array:
    """Codes of float values, as QuantizeLinear makes them: round half to even, saturate.

    Raises:
        ModelError: The values are no floats, or have another shape than the input.
    """
    if values.dtype.kind != "f":
        raise ModelError(
            f"takes float values, not {values.dtype}",
            where=f"input '{end.name}'",
            hint="Its codes are made from them here; feed codes to the file itself",
        )
    if values.shape != end.shape:
        raise ModelError(
            f"has the shape {list(end.shape)}, not {list(values.shape)}", where=f"input '{end.name}'"
        )
    limits = np.iinfo(end.dtype)
    with np.errstate(over="ignore"):
        steps = np.rint(values.astype(np.float32, copy=False) / np.float32(end.scale or 1.0))
    shifted = np.clip(steps.astype(np.float64) + (end.zero_point or 0), limits.min, limits.max)
    # ONNX Runtime gives NaN the lowest code.
    return np.asarray(np.nan_to_num(shifted, nan=float(limits.min)).astype(end.dtype))


def dequantize(codes: Array, end: End) -> Array:
    """The float32 values that codes stand for, as DequantizeLinear makes them."""
    real = (codes.astype(np.int32) - (end.zero_point or 0)).astype(np.float32) * np.float32(end.scale or 1.0)
    return np.asarray(real)


def open_coded(path: Path, threads: int, *, optimize: bool) -> OrtRunner | CodedRunner:
    """A runner over an ONNX file that takes float values: a :class:`CodedRunner` where the file says that its
    ends are codes.

    Args:
        path: The file.
        threads: Threads; no more are taken than this machine has cores.
        optimize: See :func:`~edgekit.session.open_runner`.

    Raises:
        ModelError: The file is missing, ONNX Runtime refuses it, or what it says about its ends is wrong.
    """
    runner = open_artifact(path, threads, optimize=optimize)
    ends = read_ends(runner.session.get_modelmeta().custom_metadata_map, where=str(path))
    if ends is None:
        return runner
    for kind, wanted, found in (
        ("inputs", ends.inputs, runner.session.get_inputs()),
        ("outputs", ends.outputs, runner.session.get_outputs()),
    ):
        said, real = [(e.name, e.dtype) for e in wanted], [(v.name, _dtype(v.type)) for v in found]
        if said != real:
            raise ModelError(
                f"its metadata describe other {kind}: {said}, not {real}",
                where=str(path),
                hint="Another tool changed the file; make it again",
            )
    return CodedRunner(runner, ends)


def _dtype(ort_type: str) -> str:
    """NumPy's name of an element type that ONNX Runtime calls ``tensor(...)``."""
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
