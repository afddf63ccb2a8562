"""TFLite models run by LiteRT."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgekit.errors import InputError, ModelError, ToolError
from edgekit.tflite.model import Array, TfliteModel
from edgekit.tflite.read import read_model

_T = TypeVar("_T")


class Kernels(StrEnum):
    """Which implementation of the operators LiteRT runs."""

    #: Plain loops that other implementations are held against.
    REFERENCE = "reference"
    #: LiteRT's own kernels for the host's vector unit.
    OPTIMIZED = "optimized"
    #: XNNPACK where it knows the operator, else the optimized kernels: what applications get.
    XNNPACK = "xnnpack"


class LiteRt:
    """A TFLite model, ready to run.

    Args:
        data: The ``.tflite`` file or its bytes.
        kernels: Which implementation of the operators.
        threads: Threads the kernels may use.
        keep_all: Keep inner tensors for `tensors`. Those that XNNPACK computes on its own side are missing.

    Raises:
        ModelError: The file cannot be read, or LiteRT does not accept the model.
        ToolError: LiteRT is not installed.
    """

    def __init__(
        self,
        data: bytes | Path,
        kernels: Kernels = Kernels.XNNPACK,
        threads: int = 1,
        keep_all: bool = False,
    ) -> None:
        content = _content(data)
        # LiteRT follows the offsets of a damaged file without looking.
        self.model = read_model(content)
        self.kernels = kernels
        self._ran = False
        self._keep_all = keep_all
        self._interpreter = _load(content, kernels, threads, keep_all)
        self._index = {d["name"]: int(d["index"]) for d in self._interpreter.get_tensor_details()}
        self._input_index = self._ports(self._interpreter.get_input_details(), list(self.model.inputs))
        self._output_index = self._ports(self._interpreter.get_output_details(), list(self.model.outputs))

    @staticmethod
    def _ports(details: list[dict[str, Any]], names: list[str]) -> dict[str, int]:
        return {name: int(detail["index"]) for name, detail in zip(names, details, strict=True)}

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, as stored: codes, in the file's layout.

        Args:
            values: The inputs by name, of the stored shapes and types.

        Raises:
            InputError: An input is missing, unknown, or of another shape or type.
            ToolError: LiteRT failed.
        """
        self._set_inputs(values)
        _or_tool_error(self._interpreter.invoke)
        self._ran = True
        return {name: self._interpreter.get_tensor(index) for name, index in self._output_index.items()}

    def invoke(self) -> None:
        """Run once more on the inputs that are set, and hand nothing back: what a stopwatch wants.

        Raises:
            ToolError: LiteRT failed.
        """
        _or_tool_error(self._interpreter.invoke)

    def _set_inputs(self, values: Mapping[str, Array]) -> None:
        check_inputs(self.model, values)
        for name, index in self._input_index.items():
            self._interpreter.set_tensor(index, np.asarray(values[name], order="C"))

    def tensors(self) -> dict[str, Array]:
        """All tensors of the last run by name, constants left out.

        Raises:
            ToolError: There was no run yet, or inner tensors are not kept.
        """
        if not self._keep_all or not self._ran:
            raise ToolError("inner tensors are kept only with keep_all=True, and after a run")
        found = {}
        for name, tensor in self.model.tensors.items():
            if tensor.data is None and name in self._index:
                try:
                    found[name] = self._interpreter.get_tensor(self._index[name])
                except ValueError:  # A tensor that a delegate fused away has no memory.
                    continue
        return found


def _content(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return Path(data).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(data)) from None


def _load(content: bytes, kernels: Kernels, threads: int, keep_all: bool) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise ToolError("ai-edge-litert is not installed", hint="pip install 'edgekit[litert]'") from None
    resolver = {
        Kernels.REFERENCE: OpResolverType.BUILTIN_REF,
        Kernels.OPTIMIZED: OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        Kernels.XNNPACK: OpResolverType.AUTO,
    }[kernels]
    try:
        with warnings.catch_warnings(), _native_messages_dropped():
            # It warns that keeping all tensors costs memory, which is what the caller asked for.
            warnings.simplefilter("ignore")
            interpreter = Interpreter(
                model_content=content,
                experimental_op_resolver_type=resolver,
                num_threads=threads,
                experimental_preserve_all_tensors=keep_all,
            )
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"LiteRT does not accept the model: {_one_line(error)}") from None
    return interpreter


@contextmanager
def _native_messages_dropped() -> Iterator[None]:
    """LiteRT writes what it does past Python to the error stream; what goes wrong it raises as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _or_tool_error(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except (ValueError, RuntimeError) as error:
        raise ToolError(f"LiteRT failed: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_inputs(model: TfliteModel, values: Mapping[str, Array]) -> None:
    """Hold the values handed in against a model's inputs.

    Args:
        model: The model.
        values: Arrays by input name.

    Raises:
        InputError: An input is missing, unknown, or of another shape or type.
    """
    if set(values) != set(model.inputs):
        raise InputError(f"the inputs are {sorted(values)}", valid=sorted(model.inputs))
    for name, tensor_name in model.inputs.items():
        tensor, value = model.tensors[tensor_name], values[name]
        if tuple(value.shape) != tensor.shape or value.dtype != tensor.dtype.numpy:
            raise InputError(
                f"it is {value.dtype} {list(value.shape)}, not {tensor.dtype} {list(tensor.shape)}",
                where=f"input {name!r}",
            )
