"""The TFLite writer against litert-torch and onnx2tf, from the same network and calibration images.

    python tests/bench/tflite_peers.py MODEL.onnx --data DIR [--preprocess …] [--limit N] [--held-out N]
        [--litert-torch VENV/bin/python] [--onnx2tf VENV/bin/python] [--json FILE]

The peers live in environments of their own: ``pip install litert-torch==0.10.0 onnx2torch onnx``, and with
Python 3.12 or later ``pip install onnx2tf[tensorflow]==2.6.9``. They are given the float network cut where
edgekit cuts it, so that no decoder is in anybody's file, and the calibration arrays as edgekit has made them.
Everybody computes with one thread. All files have int8 inputs and outputs. Columns:

``edgekit``        int8 only: nothing raised above 8 bits
``edgekit plain``  without the repairs that cost latency (multiplications that equalize channels behind SiLUs)
``edgekit raised`` what users get: tensors that 8 bits would spoil are float within the file

Conversion is timed behind the imports; CPU seconds are what it takes on a machine that does nothing else.
SQNR: the file's outputs by LiteRT's reference kernels against the float network by ONNX Runtime, on images
that nobody calibrated with. Latency: LiteRT with XNNPACK, all files in turn in this process, by the CPU time
of the one thread; the ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.capture import capture
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.errors import EdgekitError
from edgekit.graph import Graph, TensorSpec
from edgekit.pipeline.steps import input_ranges
from edgekit.quantize.quantize import Options, quantize
from edgekit.registry import load_target
from edgekit.session import open_runner
from edgekit.target import Prepares
from edgekit.targets.ethos_u.profiles import load_npu
from edgekit.targets.ethos_u.vela import compile_model
from edgekit.tflite.dialect import Dialect
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.model import TfliteModel
from edgekit.tflite.package import IoTensor, Package, PackageIo, PackageRunner, write_package
from edgekit.tflite.read import read_model
from edgekit.tflite.schema import schema

Array = np.ndarray[Any, Any]
Feeds = list[Mapping[str, Array]]
Latency = dict[str, list[float]]
_OPTIONS = {
    "edgekit": Options(max_raised=0, reconstruct_seconds=0),
    "edgekit plain": Options(max_raised=0, target_db=-100.0),
    "edgekit raised": Options(reconstruct_seconds=0),
}
_WORKER = Path(__file__).with_name("tflite_peers_worker.py")
#: onnx2torch, which litert-torch needs to read ONNX, knows no operator of a later version.
_OPSET = 17
#: How often each file is loaded for the timing.
_LOADED = 10


@dataclass
class Column:
    """One way to a ``.tflite`` and what was found about it.

    Attributes:
        label: Head of the column.
        path: The file; None where there is none.
        io: What its inputs and outputs are in the float network.
        front: Float nodes before the file, where it has any.
        rows: Text by row of the table.
        numbers: What was measured.
        failed: Other ways that were tried first, and why they gave no file.
        error: Why there is no file.
    """

    label: str
    path: Path | None = None
    io: PackageIo | None = None
    front: Path | None = None
    rows: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    error: str = ""


def main() -> None:
    args = _arguments()
    target, preprocess = load_target("litert:host-1t"), Preprocess.parse(args.preprocess)
    captured = capture(args.model).graph
    graph = target.prepare(captured) if isinstance(target, Prepares) else captured
    samples = open_samples(args.data, graph.inputs, preprocess, limit=args.limit + args.held_out)
    calibration, unseen = _divide([s.feeds for s in samples], args.held_out)
    load = os.getloadavg()[0]
    print(f"{args.model}: {len(calibration)} images to calibrate, {len(unseen)} to compare; load {load:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = edgekit_columns(graph, calibration, input_ranges(graph.inputs, preprocess, samples), folder)
        body = cut(graph, own[0], folder / "body.onnx")
        arrays: dict[str, Any] = _body_inputs(own[0], body, calibration)
        np.savez(folder / "calibration.npz", **arrays)
        pythons = {"litert-torch": args.litert_torch, "onnx2tf": args.onnx2tf}
        peers = [peer_column(peer, python, body, folder) for peer, python in pythons.items() if python]
        columns = own + peers
        _describe_edgekit(own)
        examine(columns, body, unseen)
        ratios = time_together(columns, unseen[0], args.rounds)
        print_table(columns)
        print_verdicts(own, peers, ratios)
    if args.json:
        found = [{"label": c.label, "rows": c.rows, "numbers": c.numbers, "error": c.error} for c in columns]
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def edgekit_columns(graph: Graph, feeds: Feeds, ranges: Any, folder: Path) -> list[Column]:
    """One for each of ``_OPTIONS``."""
    schema()  # the runtime's package is large: loading it is no part of a conversion
    scheme = load_target("litert").scheme
    assert scheme is not None
    found = []
    for label, options in _OPTIONS.items():
        start, cpu = time.perf_counter(), time.process_time()
        result = quantize(graph, scheme, lambda: feeds, options, input_ranges=ranges, threads=1)
        seconds = {"quantize": time.perf_counter() - start}
        start = time.perf_counter()
        mixed = options.max_raised is None
        package = write_package(result.graph, label.replace(" ", "_"), folder, dialect=Dialect(mixed=mixed))
        seconds["convert"] = time.perf_counter() - start
        seconds["cpu"] = time.process_time() - cpu
        found.append(Column(label, package.path, _plain(package, graph), package.front, numbers=seconds))
    return found


def cut(graph: Graph, mine: Column, path: Path) -> Graph:
    """The float network between the inputs and outputs of edgekit's file."""
    import onnx_ir as ir
    from onnx_ir import convenience

    assert mine.io is not None
    values = graph.values()
    ends = [[values[e.name] for e in kind] for kind in (mine.io.inputs, mine.io.outputs)]
    part = convenience.extract(graph.model.graph, *ends)
    body = Graph(ir.Model(part, ir_version=graph.model.ir_version), graph.history)
    body.save(path)
    _declare_older(body, path)
    return body


def _declare_older(body: Graph, path: Path) -> None:
    """Give the file an older opset, where its nodes mean the same in it."""
    import onnx

    model = onnx.load(path)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", _OPSET))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        print(f"the network cannot be written in opset {_OPSET}: {error}")
        return
    feed = {spec.name: np.full(spec.shape, 0.5, spec.dtype) for spec in body.inputs}
    mine, theirs = (open_runner(m, threads=1).run(feed) for m in (body, model.SerializeToString()))
    if all(np.allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-5) for name in mine):
        onnx.save(model, path)


def peer_column(peer: str, python: Path, body: Graph, folder: Path) -> Column:
    """Let a peer convert the float network in its own environment."""
    column = Column(peer)
    own = folder / peer
    own.mkdir()
    job = {"task": peer, "model": str(folder / "body.onnx"), "folder": str(own)}
    answer = _ask(python, {**job, "data": str(folder / "calibration.npz")}, own)
    if isinstance(answer, str):
        column.error = answer
        return column
    column.path = Path(answer["path"])
    column.numbers = dict(answer["seconds"])
    column.rows["version"] = f"{answer['version']}, Python {answer['python']}"
    column.rows["quantizer"] = answer["how"]
    column.failed = answer["failed"]
    column.numbers["installed"] = _installed(python, answer["packages"], [], own)
    try:
        column.io = _bindings(read_model(column.path.read_bytes()), body)
    except EdgekitError as error:
        column.error = f"its file cannot be used: {error}"
    if column.io is not None and any(e.scale is None for e in (*column.io.inputs, *column.io.outputs)):
        column.rows["float inputs or outputs"] = "yes"
    return column


def examine(columns: Sequence[Column], body: Graph, unseen: Feeds) -> None:
    """Operators, size, quality, and what Vela makes of the files; fills ``rows`` and ``numbers``."""
    runner = open_runner(body, threads=1)
    expected = [runner.run(_body_inputs(columns[0], body, [feed])) for feed in unseen]
    for column in columns:
        _seconds(column)
        if column.path is None or column.io is None:
            continue
        data = column.path.read_bytes()
        column.rows["file, kB"] = f"{len(data) / 1e3:.0f}"
        _operators(column, read_model(data))
        try:
            _quality(column, unseen, expected)
            _vela(column, data)
        except (EdgekitError, KeyError, ValueError) as error:
            column.error = f"{type(error).__name__}: {error}"


def time_together(columns: Sequence[Column], feed: Mapping[str, Array], rounds: int) -> Latency:
    """Blocks of all files in turn; milliseconds of each round's median call, by label.

    Where a model's memory happens to lie makes up to 4 %: every file is loaded several times, each time in
    another order, and the rounds take turns.
    """
    usable = [c for c in columns if c.path is not None and c.io is not None]
    calls: dict[str, list[Callable[[], object]]] = {column.label: [] for column in usable}
    for number in range(_LOADED):
        for column in np.random.default_rng(number).permutation(np.array(usable, object)):
            engine = LiteRt(column.path, kernels=Kernels.XNNPACK, threads=1)
            engine.run(_runner(column, engine).prepare(feed))
            calls[column.label].append(engine._interpreter.invoke)
    found: Latency = {label: [] for label in calls}
    order = list(calls)
    for number in range(rounds):
        for label in order:
            call = calls[label][number % _LOADED]
            call()
            times = timeit.repeat(call, number=1, repeat=5, timer=time.thread_time)
            found[label].append(1e3 * statistics.median(times))
        order.reverse()
    for column in columns:
        if column.label in found:
            column.numbers["latency"] = statistics.median(found[column.label])
            column.rows["XNNPACK, 1 thread, ms"] = f"{column.numbers['latency']:.2f}"
    return found


def print_table(columns: Sequence[Column]) -> None:
    heads = list(dict.fromkeys(row for column in columns for row in column.rows))
    table = [["", *(c.label for c in columns)]]
    table += [[head, *(c.rows.get(head, "failed" if c.error else "") for c in columns)] for head in heads]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))
    for column in columns:
        for text in column.failed:
            print(f"{column.label}, tried first: {text}")
        if column.error:
            print(f"{column.label} FAILED: {column.error}")


def print_verdicts(own: Sequence[Column], peers: Sequence[Column], latency: Latency) -> None:
    """Edgekit's int8 files against each peer's: ratios and differences."""
    pairs = [(mine, peer) for peer in peers if peer.label in latency for mine in own[:2]]
    for mine, peer in pairs:
        a, b = mine.numbers, peer.numbers
        print(f"{mine.label} against {peer.label}; machine load {os.getloadavg()[0]:.1f}")
        apart = f"{b['convert'] / a['convert']:.1f}x faster" if "convert" in b else "theirs is not apart"
        print(f"  conversion: {apart}, with calibration {b['total'] / a['total']:.2f}x", end="")
        print(f" ({b['cpu'] / a['cpu']:.2f}x by CPU time)")
        print(f"  installed: {b['installed'] / a['installed']:.1f}x smaller as an extra, ", end="")
        print(f"{b['installed'] / a['all installed']:.2f}x in all")
        if "sqnr" in a and "sqnr" in b:
            print(f"  SQNR: {a['sqnr'] - b['sqnr']:+.2f} dB (worst {a['worst'] - b['worst']:+.2f} dB)")
        print(f"  TRANSPOSE and QUANTIZE: {a['moves']:.0f} against {b['moves']:.0f}")
        if "cycles" in a and "cycles" in b:
            print(f"  Vela cycles: {a['cycles'] / b['cycles']:.3f} of theirs", end="")
            print(f", on the CPU, which counts as nothing: {a['cpu_ops']:.0f} against {b['cpu_ops']:.0f}")
        ratios = np.array(latency[mine.label]) / np.array(latency[peer.label])
        quarters = np.percentile(ratios, [25, 50, 75])
        print("  XNNPACK latency: {1:.3f} of theirs (quartiles {0:.3f} to {2:.3f})".format(*quarters), end="")
        print(f", best rounds {min(latency[mine.label]) / min(latency[peer.label]):.3f}")


def _divide(feeds: Feeds, held_out: int) -> tuple[Feeds, Feeds]:
    """Calibration and comparison, the latter spread over all."""
    places = {int(i) for i in np.linspace(0, len(feeds) - 1, held_out)}
    return [f for i, f in enumerate(feeds) if i not in places], [feeds[i] for i in sorted(places)]


def _plain(package: Package, graph: Graph) -> PackageIo:
    """Inputs and outputs by the names that they have in the float network, without the decoder."""
    known = graph.values()

    def named(entry: IoTensor) -> IoTensor:
        name = entry.name if entry.name in known else entry.name.removesuffix("_dequantized")
        return entry.model_copy(update={"name": name})

    return _io(map(named, package.io.inputs), map(named, package.io.outputs))


def _io(inputs: Iterable[IoTensor], outputs: Iterable[IoTensor]) -> PackageIo:
    kept = tuple(outputs)
    return PackageIo(inputs=tuple(inputs), outputs=kept, results=tuple(e.name for e in kept))


def _bindings(model: TfliteModel, body: Graph) -> PackageIo:
    """A peer's inputs and outputs: by name where it kept the names, else in order; images channels last."""

    def bound(kind: Mapping[str, str], specs: Sequence[TensorSpec]) -> Iterator[IoTensor]:
        names = [spec.name for spec in specs]
        for spec, port in zip(specs, names if set(names) == set(kind) else kind, strict=True):
            tensor = model.tensors[kind[port]]
            last = len(spec.shape) == 4 and tensor.shape == tuple(spec.shape[i] for i in (0, 2, 3, 1))
            codes = tensor.quantization if tensor.dtype.numpy.kind == "i" else None
            yield IoTensor(
                name=spec.name,
                tensor=port,
                logical=spec.shape,
                shape=tensor.shape,
                axes=(0, 2, 3, 1) if last else tuple(range(len(spec.shape))),
                dtype=tensor.dtype,
                scale=None if codes is None else float(codes.scale[0]),
                zero_point=None if codes is None else int(codes.zero_point[0]),
            )

    return _io(bound(model.inputs, body.inputs), bound(model.outputs, body.outputs))


def _runner(column: Column, engine: LiteRt) -> PackageRunner:
    assert column.io is not None
    front = open_runner(column.front, threads=1) if column.front else None
    return PackageRunner(column.io, engine, front=front)


def _body_inputs(mine: Column, body: Graph, feeds: Feeds) -> dict[str, Array]:
    """Calibration arrays of the float network, the sample axis first."""
    front = open_runner(mine.front, threads=1) if mine.front is not None else None
    given = [{**f, **front.run(f)} if front is not None else f for f in feeds]
    return {spec.name: np.concatenate([f[spec.name] for f in given]) for spec in body.inputs}


def _seconds(column: Column) -> None:
    parts, rows = column.numbers, column.rows
    if "installed" not in parts:
        return
    alone = "convert" in parts
    parts["total"] = parts["quantize"] + parts["convert"] if alone else parts["quantize and convert"]
    rows["quantize, s"] = f"{parts['quantize']:.1f}" if alone else "not apart"
    rows["convert, s"] = f"{parts['convert']:.2f}" if alone else "not apart"
    rows["both, s"] = f"{parts['total']:.1f}"
    rows["both, CPU s"] = f"{parts['cpu']:.1f}"
    rows["imports before, s"] = f"{parts['import']:.1f}" if "import" in parts else ""
    rows["installed, MB"] = f"{parts['installed'] / 1e6:.0f}"


def _describe_edgekit(columns: Sequence[Column]) -> None:
    python = Path(sys.executable)
    project = tomllib.loads((_WORKER.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core, extra = project["dependencies"], project["optional-dependencies"]["litert"]
    with tempfile.TemporaryDirectory() as folder:
        added = _installed(python, extra, core, Path(folder))
        everything = _installed(python, [*core, *extra], [], Path(folder))
    for column in columns:
        column.numbers |= {"installed": added, "all installed": everything}
        column.rows["version"] = f"with core {everything / 1e6:.0f} MB"


def _operators(column: Column, model: TfliteModel) -> None:
    counts = Counter(model.counts())
    starts, ends = set(model.inputs.values()), set(model.outputs.values())
    first = sum(op.op == "QUANTIZE" and op.inputs[0] in starts for op in model.operators)
    last = sum(op.op == "DEQUANTIZE" and op.outputs[0] in ends for op in model.operators)
    column.rows["TRANSPOSE"] = str(counts["TRANSPOSE"])
    column.rows["QUANTIZE (+ of inputs)"] = f"{counts['QUANTIZE'] - first} (+{first})"
    column.rows["DEQUANTIZE (+ of outputs)"] = f"{counts['DEQUANTIZE'] - last} (+{last})"
    column.rows["operators"] = str(len(model.operators))
    column.numbers["moves"] = counts["TRANSPOSE"] + counts["QUANTIZE"] - first


def _quality(column: Column, unseen: Feeds, expected: Sequence[Mapping[str, Array]]) -> None:
    assert column.path is not None
    runner = _runner(column, LiteRt(column.path, kernels=Kernels.REFERENCE, threads=1))
    signal: Counter[str] = Counter()
    noise: Counter[str] = Counter()
    for feed, wanted in zip(unseen, expected, strict=True):
        for name, value in runner.run(feed).items():
            exact = wanted[name].astype(np.float64)
            signal[name] += np.square(exact).sum()
            noise[name] += np.square(exact - value).sum()
    decibels = {name: 10 * np.log10(signal[name] / max(noise[name], 1e-30)) for name in signal}
    column.numbers |= {f"sqnr {name}": float(v) for name, v in decibels.items()}
    mean, worst = float(np.mean(list(decibels.values()))), float(min(decibels.values()))
    column.numbers |= {"sqnr": mean, "worst": worst}
    column.rows["SQNR, dB: mean (worst) output"] = f"{mean:.2f} ({worst:.2f})"


def _vela(column: Column, data: bytes) -> None:
    found = compile_model(data, load_npu("u55-256"), keep=False)
    left = Counter(op.op for op in found.cpu_ops)
    column.numbers |= {"cycles": found.cycles, "cpu_ops": len(found.cpu_ops)}
    column.rows["Vela u55-256, cycles"] = f"{found.cycles:,}"
    column.rows["Vela, CPU operators"] = ", ".join(f"{n} {op}" for op, n in left.items()) or "0"


def _ask(python: Path, job: dict[str, Any], folder: Path) -> dict[str, Any] | str:
    """The worker's answer, or the end of what it printed."""
    path = folder / f"{job['task']}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    paths = f"{python.parent.absolute()}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": paths}
    command = [str(python.absolute()), str(_WORKER.resolve()), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)
    if done.returncode:
        return f"exit status {done.returncode}: " + "\n  ".join(done.stderr.strip().splitlines()[-6:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _installed(python: Path, packages: Sequence[str], without: Sequence[str], folder: Path) -> float:
    answer = _ask(python, {"task": "size", "packages": packages, "without": without}, folder)
    if isinstance(answer, str):
        raise SystemExit(f"{python}: {answer}")
    return float(answer["bytes"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", default="")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--litert-torch", type=Path, help="python of the environment that has it")
    parser.add_argument("--onnx2tf", type=Path, help="python of the environment that has it")
    parser.add_argument("--json", help="also write everything here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
