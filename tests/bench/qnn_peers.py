"""The QNN HTP target against ONNX Runtime's own recipe for QNN, from the same network and images.

    python tests/bench/qnn_peers.py MODEL.onnx --data DIR [--preprocess …] [--profile v75] [--emulated N]
        [--images DIR --annotations FILE.json --decode yolox]    mAP on annotated images
        [--people N]                    faces: calibrates with N people, cosine to float and AUC on the others
        [--held-out N]                  else: cosine to float on N samples that nobody calibrated with
        [--methods LABEL …] [--json FILE]

Everybody quantizes the network as edgekit captured it (opset 21, constants folded), which is what the other
side's documentation asks for too. Rows:

``edgekit a8w8``, ``edgekit a16w8``         what users get, blocks not trained
``edgekit a8w8, none raised``               without 16-bit tensors other than the outputs
``ORT a8w8``, ``ORT a16w8``                 ``qnn_preprocess_model``, ``get_qnn_qdq_config`` with its defaults
                                            (unsigned weights, one scale), and with 16-bit activations
``…, per channel``                          the same with ``per_channel=True`` and signed weights

Columns: nodes that HTP computes on integers and in float, and those it refuses, as compiled strictly;
steps of 8 bits (root mean square, largest) between the outputs of the emulator and of ONNX Runtime, and
of any layer that is fed with the codes of ONNX Runtime; the task's figure by ONNX Runtime on all images,
and by both on the same ``--emulated`` images.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.capture import capture
from edgekit.data.base import Sample, Samples
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.errors import EdgekitError
from edgekit.graph import Graph, array
from edgekit.measure.decode import decoder
from edgekit.measure.detection import evaluate_detection
from edgekit.measure.verification import compare_pairs
from edgekit.pipeline.steps import input_ranges
from edgekit.pipeline.unit_steps import Recorded
from edgekit.quantize.quantize import Options, quantize
from edgekit.session import Arrays, Runner, open_runner
from edgekit.targets.qnn_htp.body import Body, settled
from edgekit.targets.qnn_htp.compile import Record
from edgekit.targets.qnn_htp.emulate import compare_body
from edgekit.targets.qnn_htp.placement import load_artifact
from edgekit.targets.qnn_htp.process import RefusedNodesError, compile_context
from edgekit.targets.qnn_htp.target import QnnHtpTarget

Feeds = list[dict[str, Any]]
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
#: Format and options of edgekit's rows.
OURS = {
    "edgekit a8w8": ("a8w8", Options(reconstruct_seconds=0)),
    "edgekit a8w8, none raised": ("a8w8", Options(max_raised=0, reconstruct_seconds=0)),
    "edgekit a16w8": ("a16w8", Options(reconstruct_seconds=0)),
}
#: Activations, weights and whether these have scales of their own per channel.
THEIRS = {
    "ORT a8w8": ("QUInt8", "QUInt8", False),
    "ORT a8w8, per channel": ("QUInt8", "QInt8", True),
    "ORT a16w8": ("QUInt16", "QUInt8", False),
    "ORT a16w8, per channel": ("QUInt16", "QInt8", True),
}


@dataclass
class Row:
    """One way to a model for HTP and what was found about it.

    Attributes:
        label: Who made it, and how.
        path: The QDQ file.
        cells: Text by column of the table.
        numbers: What was measured.
        notes: What did not go as planned.
    """

    label: str
    path: Path | None = None
    cells: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """What the outputs are judged by.

    Attributes:
        samples: So many of those that nobody calibrated with, or all.
        figures: From the runner of a network and the number of samples: figures by name.
    """

    samples: Callable[[int | None], Samples | Sequence[Sample]]
    figures: Callable[[Runner, int | None], dict[str, float]]


def main() -> None:
    args = _arguments()
    graph = capture(args.model).graph
    preprocess = Preprocess.parse(args.preprocess) if args.preprocess else Preprocess()
    calibration, task = _material(args, graph, preprocess)
    ranges = input_ranges(graph.inputs, preprocess, open_samples(args.data, graph.inputs, preprocess))
    target = QnnHtpTarget.create(args.profile)
    few = [dict(sample.feeds) for sample in task.samples(args.emulated)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph.save(folder / "float.onnx")
        reference = Row("float", folder / "float.onnx")
        _score(reference, task, open_runner(graph, threads=1), args.emulated)
        print(f"{args.model}: {len(calibration)} samples to calibrate, {len(few)} of them emulated")
        for label in (*OURS, *THEIRS):
            if args.methods and label not in args.methods:
                continue
            row = Row(label)
            own = folder / str(len(rows))
            own.mkdir()
            try:
                _make(row, graph, calibration, ranges, own, args.profile)
                _judge(row, task, few, target)
            except EdgekitError as error:
                row.notes.append(f"{type(error).__name__}: {error}")
            rows.append(row)
            measured = {key: round(value, 4) for key, value in row.numbers.items()}
            print(f"  {label}: {measured}", file=sys.stderr, flush=True)
    print_table([reference, *rows])
    if args.json:
        found = [{**asdict(row), "path": None} for row in (reference, *rows)]
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _make(row: Row, graph: Graph, feeds: Feeds, ranges: Any, folder: Path, profile: str) -> None:
    """Quantize and compile; fills the row."""
    start = time.perf_counter()
    row.path = folder / "int8.onnx"
    if row.label in THEIRS:
        quantize_for_qnn(row, folder / "float.onnx", graph, feeds)
        row.numbers["quantize"] = time.perf_counter() - start
        return
    fmt, options = OURS[row.label]
    target = QnnHtpTarget.create(profile if fmt == "a8w8" else f"{profile}-{fmt}")
    assert target.scheme is not None
    prepared = target.prepare(graph)
    result = quantize(prepared, target.scheme, lambda: feeds, options, input_ranges=ranges, threads=1)
    row.numbers["quantize"] = time.perf_counter() - start
    row.numbers["raised"] = len(result.raised)
    target.compile(target.lower(result.graph), "int8", folder)
    record = Record.load(row.path)
    row.numbers["compile"] = record.seconds
    row.numbers |= {"nodes": record.coverage.nodes, "placed": record.coverage.on_unit, "float": 0}
    row.notes += [f"{n.op} '{n.node}' stays outside: {n.reason}" for n in record.coverage.left[:4]]


def quantize_for_qnn(row: Row, source: Path, graph: Graph, feeds: Feeds) -> None:
    """The recipe of ONNX Runtime's documentation for the QNN execution provider."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType
    from onnxruntime.quantization import quantize as ort_quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    graph.save(source)
    prepared = source.with_name("prepared.onnx")
    try:
        changed = qnn_preprocess_model(str(source), str(prepared), fuse_layernorm=True)
    except Exception as error:  # whatever the other side raises is part of the finding
        row.notes.append(f"qnn_preprocess_model: {type(error).__name__}: {error}"[:200])
        changed = False
    ready = prepared if changed else source
    activations, weights, per_channel = THEIRS[row.label]
    config = get_qnn_qdq_config(
        onnx.load(ready),
        Reader(),
        activation_type=QuantType[activations],
        weight_type=QuantType[weights],
        per_channel=per_channel,
    )
    ort_quantize(str(ready), str(row.path), config)


def _judge(row: Row, task: Task, feeds: Feeds, target: QnnHtpTarget) -> None:
    """Coverage, parity and the task's figures; fills the row."""
    assert row.path is not None
    row.numbers["bytes"] = row.path.stat().st_size
    here = open_runner(row.path, threads=1)
    _score(row, task, here, len(feeds))
    emulated = _emulated(row, feeds, target)
    if emulated is None:
        return
    exact = open_runner(row.path, threads=1, optimize=False)
    _differences(row, load_artifact(row.path), [exact.run(feed) for feed in feeds], emulated)
    figures = task.figures(Recorded(feeds, emulated), len(feeds))
    row.numbers |= {f"emulator {name}": value for name, value in figures.items()}
    try:
        parity = compare_body(Body.of(settled(load_artifact(row.path))), feeds[:1], target.htp)
    except EdgekitError as error:
        row.notes.append(f"its layers were not compared: {error.what}")
        return
    layers = next(iter(parity.layers.values()), ())
    if layers:
        row.numbers["layers"] = max(layer.max_steps for layer in layers)
        row.numbers["layers rms"] = max(layer.rms_steps for layer in layers)


def _emulated(row: Row, feeds: Feeds, target: QnnHtpTarget) -> list[Arrays] | None:
    """Outputs in the emulator; None where HTP does not take the whole file of a peer."""
    assert row.path is not None
    start = time.perf_counter()
    if row.label in OURS:
        found = target.emulate(row.path, feeds)
        row.numbers["emulate"] = (time.perf_counter() - start) / len(feeds)
        return found
    nodes = [node for node in load_artifact(row.path).nodes if node.op_type not in _CONVERSIONS]
    row.numbers["nodes"] = len(nodes)
    with tempfile.TemporaryDirectory() as folder:
        try:
            htp = target.htp
            done = compile_context(row.path, htp.soc_model, htp.arch, Path(folder), feeds=feeds)
        except RefusedNodesError as error:
            row.numbers |= {"placed": len(nodes) - len(error.refused), "refused": len(error.refused)}
            row.notes += [f"HTP refuses {n.op} '{n.node}': {n.reason}" for n in error.refused[:4]]
            return None
    outside = len(done.trace.float_nodes)
    row.numbers |= {"placed": len(nodes) - outside, "float": outside, "compile": done.seconds}
    row.notes += [f"in float: {name}" for name in done.trace.float_nodes[:4]]
    row.numbers["emulate"] = done.run_seconds / len(feeds)
    return list(done.outputs)


def _differences(row: Row, graph: Graph, here: Sequence[Arrays], there: Sequence[Arrays]) -> None:
    """Steps of 8 bits at the outputs, over all samples; outputs that end in float are left out."""
    squares, count, largest = 0.0, 0, 0.0
    for value in graph.model.graph.outputs:
        maker = value.producer()
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        scale, zero = (array(v) for v in maker.inputs[1:3])
        assert scale is not None
        assert zero is not None
        step = float(scale) * (256 if zero.dtype.itemsize == 2 else 1)
        name = str(value.name)
        for one, other in zip(here, there, strict=True):
            apart = np.abs(one[name].astype(np.float64) - other[name]) / step
            squares, count = squares + float(np.square(apart).sum()), count + apart.size
            largest = max(largest, float(apart.max()))
    if count:
        row.numbers |= {"rms steps": (squares / count) ** 0.5, "max steps": largest}


def _score(row: Row, task: Task, runner: Runner, few: int) -> None:
    row.numbers |= task.figures(runner, None)
    row.numbers |= {f"few {name}": value for name, value in task.figures(runner, few).items()}


def _material(args: argparse.Namespace, graph: Graph, preprocess: Preprocess) -> tuple[Feeds, Task]:
    samples = open_samples(args.data, graph.inputs, preprocess)
    if args.annotations:

        def images(count: int | None) -> Samples:
            return open_samples(args.images, graph.inputs, preprocess, limit=count)

        def detection(runner: Runner, count: int | None) -> dict[str, float]:
            found = evaluate_detection(runner, images(count), Path(args.annotations), decoder(args.decode))
            return {"mAP": found.map, "mAP50": found.map50}

        return [s.feeds for s in samples], Task(images, detection)
    everything = list(samples)
    if args.people:
        names = sorted({_person(s) for s in everything})
        known = set(names[: args.people])
        seen = [s for s in everything if _person(s) in known]
        # In turn from each person, so that the first ones hold pairs of one and of two people.
        rest = sorted((s for s in everything if _person(s) not in known), key=lambda s: Path(s.name).name)
    else:
        cut = len(everything) - args.held_out
        seen, rest = everything[:cut], everything[cut:]
    original = open_runner(graph, threads=1)
    expected = [original.run(s.feeds) for s in rest]
    figures = _likeness(rest, expected, bool(args.people))
    return [s.feeds for s in seen], Task(lambda count: rest[:count], figures)


def _likeness(
    samples: Sequence[Sample], expected: Sequence[Arrays], people: bool
) -> Callable[[Runner, int | None], dict[str, float]]:
    """Cosine to the float network's outputs, and verification over all pairs where the samples are faces."""

    def figures(runner: Runner, count: int | None) -> dict[str, float]:
        chosen = samples[:count]
        found = [_flat(runner.run(sample.feeds)) for sample in chosen]
        wanted = [_flat(outputs) for outputs in expected[:count]]
        cosines = [
            float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(found, wanted, strict=True)
        ]
        result = {"cosine": float(np.mean(cosines)), "least cosine": min(cosines)}
        if people:
            result["AUC"] = compare_pairs(np.stack(found), [_person(s) for s in chosen]).auc
        return result

    return figures


def _flat(outputs: Arrays) -> np.ndarray[Any, Any]:
    return np.concatenate([v.ravel() for v in outputs.values()]).astype(np.float64)


def _person(sample: Sample) -> str:
    return Path(sample.name).parent.as_posix()


def print_table(rows: Sequence[Row]) -> None:
    """The rows under each other, and what has to be said about each below."""
    for row in rows:
        _fill(row)
    heads = list(dict.fromkeys(head for row in reversed(rows) for head in row.cells))
    table = [["", *heads], *([row.label, *(row.cells.get(h, "") for h in heads)] for row in rows)]
    print("\n".join(f"| {' | '.join(line)} |" for line in table))
    for row in rows:
        for note in row.notes:
            print(f"{row.label}: {note}")


def _fill(row: Row) -> None:
    n, cells = row.numbers, row.cells
    if "nodes" in n:
        counts = [f"{n.get('placed', 0):.0f} of {n['nodes']:.0f}"]
        counts += [
            f"{n[k]:.0f} {text}" for k, text in (("float", "float"), ("refused", "refused")) if n.get(k)
        ]
        cells["on HTP"] = ", ".join(counts)
    if "raised" in n:
        cells["on HTP"] += f" ({n['raised']:.0f} raised)" if n["raised"] else ""
    if "rms steps" in n:
        cells["steps off, outputs"] = f"{n['rms steps']:.2f} ({n['max steps']:.0f})"
    if "layers" in n:
        cells["steps off, a layer alone"] = f"{n['layers rms']:.2f} ({n['layers']:.0f})"
    for name in ("mAP", "mAP50", "cosine", "least cosine", "AUC"):
        if name in n:
            cells[f"{name}, ORT"] = f"{n[name]:.4f}"
            cells[f"{name}, ORT / emulator, same samples"] = f"{n[f'few {name}']:.4f} / " + (
                f"{n[f'emulator {name}']:.4f}" if f"emulator {name}" in n else "–"
            )
    for key, head in (
        ("quantize", "quantize, s"),
        ("compile", "compile, s"),
        ("emulate", "emulated, s/sample"),
    ):
        if key in n:
            cells[head] = f"{n[key]:.1f}"
    if "bytes" in n:
        cells["QDQ file, kB"] = f"{n['bytes'] / 1e3:.0f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", default="")
    parser.add_argument("--profile", default="v75")
    parser.add_argument("--emulated", type=int, default=16)
    parser.add_argument("--images")
    parser.add_argument("--annotations")
    parser.add_argument("--decode", default="yolox")
    parser.add_argument("--people", type=int, default=0, help="people to calibrate with")
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--methods", nargs="+", choices=(*OURS, *THEIRS))
    parser.add_argument("--json", help="also write everything here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
