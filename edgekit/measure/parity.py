"""How far an int8 graph is from the float graph it came from: per output and per layer.

Outputs are compared as deployed: both graphs run in ONNX Runtime with all its optimizations. Layers are
compared as the files say, with the optimizations off: a fused kernel has no inner tensors, and asking for one
would change what is fused. Where both figures of an output are there, their difference is the runtime's
kernels, not the quantization.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from edgekit.errors import DataError, ModelError
from edgekit.graph import Graph, array
from edgekit.measure.accumulate import Accumulator
from edgekit.session import Arrays, Runner, open_runner

Progress = Callable[[int, int], None]


class HasFeeds(Protocol):
    """A sample: input arrays by name."""

    @property
    def feeds(self) -> Arrays: ...


@dataclass(frozen=True)
class TensorParity:
    """One tensor, float against int8.

    Attributes:
        name: The tensor in the float graph.
        cosine: Over all samples; None when nothing finite was there.
        cosine_min: The worst single sample.
        sqnr_db: Signal to quantization noise; None when the tensors are identical or the float one is all
            zero.
        max_abs: Largest absolute difference.
        max_steps: The same in steps of the int8 tensor; None when it is not quantized.
        identical: True when no element differs.
        not_finite: NaN and infinite elements: ``float`` and ``int8``; left out of the figures.
        op: Op type of the node that makes the tensor; empty for outputs.
        node: Name of that node.
    """

    name: str
    cosine: float | None
    cosine_min: float | None
    sqnr_db: float | None
    max_abs: float
    max_steps: float | None
    identical: bool
    not_finite: dict[str, int]
    op: str = ""
    node: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; ``op`` and ``node`` are there for layers only."""
        content = asdict(self)
        if not self.op:
            del content["op"], content["node"]
        return content


@dataclass(frozen=True)
class ParityResult:
    """Outputs and layers of two graphs compared.

    Attributes:
        samples: Samples that the outputs were compared on.
        outputs: The graph outputs, as deployed.
        layer_samples: Samples that the layers were compared on; 0 without layers.
        layers: Inner tensors in execution order, as the files say.
        kernels: Outputs of the int8 graph as the file says against the same graph as deployed: what the
            runtime's kernels add. Only with layers.
        skipped: Float tensors that have no counterpart in the int8 graph, with the reason.
        warnings: What the reader must know, such as outputs that are not finite.
    """

    samples: int
    outputs: tuple[TensorParity, ...]
    layer_samples: int = 0
    layers: tuple[TensorParity, ...] = ()
    kernels: tuple[TensorParity, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "samples": self.samples,
            "outputs": [row.to_json() for row in self.outputs],
        }
        if self.layer_samples:
            content["layer_samples"] = self.layer_samples
            content["layers"] = [row.to_json() for row in self.layers]
            content["kernels"] = [row.to_json() for row in self.kernels]
            content["skipped"] = [{"name": name, "reason": reason} for name, reason in self.skipped]
        if self.warnings:
            content["warnings"] = list(self.warnings)
        return content


def compare_layers(
    float_graph: Graph,
    int8_graph: Graph,
    samples: Iterable[HasFeeds | Mapping[str, np.ndarray[Any, Any]]],
    *,
    layers: bool = True,
    limit: int = 32,
    layer_limit: int = 4,
    threads: int = 0,
    run_bytes: int = 200_000_000,
    progress: Progress | None = None,
) -> ParityResult:
    """Compare two graphs with the same inputs and outputs.

    A float tensor ``X`` is compared with its quantized view in the int8 graph: the output of the
    DequantizeLinear that follows ``X`` there, or ``X`` itself where it stayed in float.

    Args:
        float_graph: The reference.
        int8_graph: Its quantized form; tensors keep their names.
        samples: Samples, or mappings from input name to array; read once.
        layers: Also compare every inner tensor that both graphs have.
        limit: Samples to compare the outputs on, at most.
        layer_limit: Samples to compare the layers on, at most; they are kept in memory.
        threads: ONNX Runtime threads; 0 is one per physical core.
        run_bytes: Bytes of inner tensors to hold at a time; more layers are compared in more runs.
        progress: Called with samples done and samples in all.

    Raises:
        DataError: There are no samples, or one does not fit the graph's inputs.
        ModelError: The graphs differ in inputs or outputs, or ONNX Runtime refuses one.
    """
    _check_same_ends(float_graph, int8_graph)
    steps = {spec.name: _step(int8_graph, spec.name) for spec in int8_graph.outputs}
    kept: list[Arrays] = []
    feeds = _checked(_keep(itertools.islice(samples, limit), kept, layer_limit if layers else 0), float_graph)
    reference, candidate = open_runner(float_graph, threads=threads), open_runner(int8_graph, threads=threads)
    names = [spec.name for spec in float_graph.outputs]
    outputs, count = runner_parity(
        reference, candidate, feeds, names, steps=steps, total=limit, progress=progress
    )
    warnings = tuple(_warning(row) for row in outputs if any(row.not_finite.values()))
    if not layers:
        return ParityResult(count, outputs, warnings=warnings)
    exact = open_runner(int8_graph, threads=threads, optimize=False)
    kernels, _ = runner_parity(exact, candidate, kept, names, steps=steps)
    pairs, skipped = _pairs(float_graph, int8_graph)
    rows = _layer_rows(float_graph, int8_graph, pairs, kept, threads=threads, run_bytes=run_bytes)
    return ParityResult(count, outputs, len(kept), rows, kernels, skipped, warnings)


def runner_parity(
    reference: Runner,
    candidate: Runner,
    samples: Iterable[HasFeeds | Mapping[str, np.ndarray[Any, Any]]],
    names: Sequence[str] | None = None,
    *,
    steps: Mapping[str, float | None] | None = None,
    total: int = 0,
    progress: Progress | None = None,
) -> tuple[tuple[TensorParity, ...], int]:
    """Compare two runners output by output.

    Args:
        reference: What is taken as right.
        candidate: What is judged.
        samples: Samples or feeds; read once, none is kept.
        names: Outputs to compare; by default all of the reference's.
        steps: Size of one quantization step of an output, where it is quantized.
        total: Number of samples, for ``progress``.
        progress: Called with samples done and ``total``.

    Returns:
        One row for each output and the number of samples.

    Raises:
        DataError: There are no samples.
        ModelError: The candidate lacks an output or gives it another size.
    """
    sums: dict[str, Accumulator] = {name: Accumulator() for name in names or ()}
    count = 0
    for count, sample in enumerate(samples, start=1):
        feeds = _feeds(sample)
        expected, got = reference.run(feeds), candidate.run(feeds)
        for name in names if names is not None else expected:
            _check_output(name, expected, got)
            sums.setdefault(name, Accumulator()).add(expected[name], got[name], (steps or {}).get(name))
        if progress is not None:
            progress(count, max(total, count))
    if not count:
        raise DataError("there are no samples to compare on")
    return tuple(_row(name, total_sum) for name, total_sum in sums.items()), count


def _layer_rows(
    float_graph: Graph,
    int8_graph: Graph,
    pairs: Sequence[_Pair],
    samples: Sequence[Arrays],
    *,
    threads: int,
    run_bytes: int,
) -> tuple[TensorParity, ...]:
    rows: list[TensorParity] = []
    for batch in _batches(pairs, run_bytes):
        names = [pair.name for pair in batch]
        views = [pair.view for pair in batch]
        a = open_runner(float_graph, threads=threads, optimize=False, extra_outputs=names)
        b = open_runner(int8_graph, threads=threads, optimize=False, extra_outputs=list(dict.fromkeys(views)))
        sums = [Accumulator() for _ in batch]
        for feeds in samples:
            expected, got = a.run(feeds), b.run(feeds)
            for pair, total in zip(batch, sums, strict=True):
                total.add(expected[pair.name], got[pair.view], pair.step)
        rows += [_row(p.name, s, op=p.op, node=p.node) for p, s in zip(batch, sums, strict=True)]
    return tuple(rows)


@dataclass(frozen=True)
class _Pair:
    """A float tensor, its view in the int8 graph and the step size of that view."""

    name: str
    view: str
    step: float | None
    size_bytes: int
    op: str
    node: str


def _pairs(float_graph: Graph, int8_graph: Graph) -> tuple[list[_Pair], tuple[tuple[str, str], ...]]:
    other = int8_graph.values()
    pairs, skipped = [], []
    for node in float_graph.nodes:
        for value in node.outputs:
            name = str(value.name or "")
            if node.op_type == "Constant" or not name or value.dtype not in (None, ir.DataType.FLOAT):
                continue
            if name not in other:
                skipped.append((name, "the int8 graph has no tensor of this name"))
            elif not _same_shape(value, other[name]):
                skipped.append((name, "the tensor has another shape in the int8 graph"))
            else:
                view = _view(other[name])
                size = _elements(value) * 4
                label = str(node.name or name)
                pairs.append(_Pair(name, str(view.name), _view_step(view), size, node.op_type, label))
    return pairs, tuple(skipped)


def _view(value: ir.Value) -> ir.Value:
    """What later layers read instead of ``value``: the Dequantize output after it, or ``value`` itself."""
    found = []
    for quantize in (node for node in value.consumers() if node.op_type == "QuantizeLinear"):
        if quantize.inputs[0] is value:
            readers = quantize.outputs[0].consumers()
            found += [node.outputs[0] for node in readers if node.op_type == "DequantizeLinear"]
    named = [view for view in found if view.name == f"{value.name}_dequantized"]
    return (named or found or [value])[0]


def _view_step(view: ir.Value) -> float | None:
    producer = view.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = array(producer.inputs[1])
    # One step size cannot be stated for a tensor with a scale per channel.
    return float(scale.reshape(-1)[0]) if scale is not None and scale.size == 1 else None


def _step(graph: Graph, name: str) -> float | None:
    value = graph.values().get(name)
    return None if value is None else _view_step(_view(value))


def _batches(pairs: Sequence[_Pair], run_bytes: int) -> Iterator[list[_Pair]]:
    """Runs of pairs whose tensors, float and int8 together, stay within ``run_bytes``."""
    batch: list[_Pair] = []
    held = 0
    for pair in pairs:
        if batch and held + 2 * pair.size_bytes > run_bytes:
            yield batch
            batch, held = [], 0
        batch.append(pair)
        held += 2 * pair.size_bytes
    if batch:
        yield batch


def _elements(value: ir.Value) -> int:
    if value.shape is None or not value.shape.is_static():
        return (
            1_000_000  # unknown: a middling feature map, so that a run still holds a bounded number of them
        )
    return math.prod(int(size) for size in value.shape.numpy())


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    if a.shape is None or b.shape is None or not (a.shape.is_static() and b.shape.is_static()):
        return True
    return tuple(a.shape.numpy()) == tuple(b.shape.numpy())


def _row(name: str, total: Accumulator, *, op: str = "", node: str = "") -> TensorParity:
    return TensorParity(
        name=name,
        cosine=total.cosine,
        cosine_min=total.cosine_min,
        sqnr_db=total.sqnr_db,
        max_abs=total.max_abs,
        max_steps=total.max_steps,
        identical=total.identical,
        not_finite={"float": total.not_finite_x, "int8": total.not_finite_y},
        op=op,
        node=node,
    )


def _warning(row: TensorParity) -> str:
    counts = ", ".join(f"{count} in {kind}" for kind, count in row.not_finite.items() if count)
    return f"output '{row.name}' holds NaN or infinity ({counts}); the figures leave those elements out"


def _feeds(sample: HasFeeds | Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
    return dict(sample) if isinstance(sample, Mapping) else sample.feeds


def _keep(
    samples: Iterable[HasFeeds | Mapping[str, np.ndarray[Any, Any]]], kept: list[Arrays], count: int
) -> Iterator[Arrays]:
    for sample in samples:
        feeds = _feeds(sample)
        if len(kept) < count:
            kept.append(feeds)
        yield feeds


def _checked(samples: Iterable[Arrays], graph: Graph) -> Iterator[Arrays]:
    wanted = {spec.name: spec.shape for spec in graph.inputs}
    for number, feeds in enumerate(samples):
        given = {name: tuple(value.shape) for name, value in feeds.items()}
        if given != wanted:
            raise DataError(f"sample {number} has inputs {given}, the model wants {wanted}")
        yield feeds


def _check_same_ends(a: Graph, b: Graph) -> None:
    for kind, ours, theirs in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
        left, right = {s.name: s.shape for s in ours}, {s.name: s.shape for s in theirs}
        if left != right:
            raise ModelError(f"the two graphs have different {kind}: {left} and {right}")


def _check_output(name: str, expected: Arrays, got: Arrays) -> None:
    if name not in got:
        raise ModelError(f"the second model has no output '{name}'", valid=got)
    if expected[name].shape != got[name].shape:
        shapes = f"{expected[name].shape} and {got[name].shape}"
        raise ModelError(f"output '{name}' has different shapes in the two models: {shapes}")
