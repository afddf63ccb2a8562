"""The same int8 network in several runtimes: how many steps their codes are apart.

Everything is compared with LiteRT's reference kernels. Edgekit's integer reference must give the very same
codes; LiteRT's fast kernels and ONNX Runtime, which computes in float between QuantizeLinear and
DequantizeLinear, round differently here and there, and a code that is one step off moves others behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.measure.steps import StepTable
from edgekit.session import Arrays, open_runner
from edgekit.target import RuntimeParity
from edgekit.tflite.dialect import PLAIN, Dialect
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.model import Array, TfliteModel
from edgekit.tflite.package import PackageIo, open_package

REFERENCE = "LiteRT, reference kernels"
INTEGER = "integer reference"
XNNPACK = "LiteRT, XNNPACK"
ONNX = "ONNX Runtime"
#: Steps that an output may be off.
BUDGET_STEPS = 2


def compare_runtimes(
    path: Path,
    graph: Graph,
    feeds: Sequence[Mapping[str, Array]],
    *,
    dialect: Dialect = PLAIN,
    budget_steps: int = BUDGET_STEPS,
) -> RuntimeParity:
    """Run a package in all runtimes that are here.

    Args:
        path: A ``.tflite`` that :func:`edgekit.tflite.package.write_package` wrote, with quantized inputs and
            outputs.
        graph: The QDQ graph that it was made from.
        feeds: Float inputs by ONNX name, one entry for each sample.
        dialect: What it was written in.
        budget_steps: Steps that an output may be off.

    Raises:
        ModelError: A file cannot be used.
        ToolError: LiteRT is not installed.
    """
    from edgekit.tflite.lower.lower import lower
    from edgekit.tflite.reference.run import Reference
    from edgekit.tflite.split import split

    body = split(graph, mixed=dialect.mixed, lookups=dialect.lookups).body
    model = lower(body, avoid=dialect.avoid).model
    package = open_package(path, kernels=Kernels.XNNPACK)
    # Inner tensors are kept by a second interpreter: whether they share memory must not change the outputs.
    plain = LiteRt(path, kernels=Kernels.REFERENCE)
    kept = LiteRt(path, kernels=Kernels.REFERENCE, keep_all=True)
    inner = _Inner.of(model, graph)
    integer = Reference(model)
    wanted = [*inner.codes.values(), *_coded_outputs(package.bindings, graph)]
    exact = open_runner(graph, threads=1, optimize=False, extra_outputs=list(dict.fromkeys(wanted)))
    outputs = {name: StepTable() for name in (INTEGER, XNNPACK, ONNX)}
    layers = {name: StepTable() for name in (INTEGER, ONNX)}
    for feed in feeds:
        stored = package.prepare(feed)
        expected = _by_name(package.bindings, plain.run(stored))
        kept.run(stored)
        tensors = kept.tensors()
        mine = integer.run(stored, keep=list(inner.codes))
        other = exact.run(feed)
        known = {t: tensors[t] for t in inner.codes if t in tensors}
        outputs[INTEGER].add(expected, _by_name(package.bindings, mine), inner.ops)
        outputs[XNNPACK].add(expected, _named(package.run_codes(feed)), inner.ops)
        outputs[ONNX].add(expected, _onnx_outputs(package.bindings, other), inner.ops)
        layers[INTEGER].add(known, mine, inner.ops)
        layers[ONNX].add(known, dict(inner.stored(other)), inner.ops)
    return RuntimeParity(
        reference=REFERENCE,
        budget_steps=budget_steps,
        samples=len(feeds),
        outputs={name: table.rows() for name, table in outputs.items()},
        layers={name: table.rows() for name, table in layers.items()},
        notes=_float_notes(package.bindings),
    )


@dataclass(frozen=True)
class _Inner:
    """The tensors that the TFLite model and the QDQ graph have in common.

    Attributes:
        codes: Name of the codes in the QDQ graph, by tensor of the model.
        ops: What computes each tensor.
        model: The model.
    """

    codes: dict[str, str]
    ops: dict[str, str]
    model: TfliteModel

    @classmethod
    def of(cls, model: TfliteModel, graph: Graph) -> _Inner:
        values = graph.values()
        found = {}
        for name, tensor in model.tensors.items():
            if tensor.data is not None or tensor.axes is None or tensor.quantization is None:
                continue
            for label in (tensor.source, f"{tensor.source}_{tensor.dtype.value}"):
                value = values.get(f"{label}_quantized")
                if value is not None and value.dtype == ir.DataType.from_numpy(tensor.dtype.numpy):
                    found[name] = str(value.name)
                    break
        ops = {out: operator.op for operator in model.operators for out in operator.outputs}
        return cls(found, ops, model)

    def stored(self, arrays: Arrays) -> Iterator[tuple[str, Array]]:
        """Codes of the QDQ graph as the model stores them."""
        for name, codes in self.codes.items():
            tensor = self.model.tensors[name]
            if tensor.axes is not None and arrays[codes].ndim == len(tensor.axes):
                yield name, arrays[codes].transpose(tensor.axes).reshape(tensor.shape)


def _coded_outputs(io: PackageIo, graph: Graph) -> list[str]:
    """The codes of the outputs in the QDQ graph."""
    names = [f"{_label(entry.name)}_quantized" for entry in io.outputs if entry.scale is not None]
    values = graph.values()
    return [name for name in names if name in values]


def _label(name: str) -> str:
    """An output by the name of the float tensor that its codes stand for."""
    return name.removesuffix("_dequantized")


def _by_name(io: PackageIo, stored: Mapping[str, Array]) -> dict[str, Array]:
    return {
        _label(entry.name): entry.arrange(stored[entry.tensor])
        for entry in io.outputs
        if entry.scale is not None
    }


def _named(codes: Mapping[str, Array]) -> dict[str, Array]:
    return {_label(name): value for name, value in codes.items()}


def _float_notes(io: PackageIo) -> tuple[str, ...]:
    names = [f"'{_label(entry.name)}'" for entry in io.outputs if entry.scale is None]
    if not names:
        return ()
    return (f"{', '.join(names)} leaves the file in float and is not counted in steps",)


def _onnx_outputs(io: PackageIo, arrays: Arrays) -> dict[str, Array]:
    found = {}
    for entry in io.outputs:
        codes = f"{_label(entry.name)}_quantized"
        if codes in arrays:
            found[_label(entry.name)] = arrays[codes]
    return found
