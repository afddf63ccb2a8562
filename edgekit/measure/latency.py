"""Latency and peak memory on this machine: of ONNX files in ONNX Runtime, of TFLite files in LiteRT.

Timing happens in a process of its own, so that nothing the caller has loaded or running in threads takes
part. Models that are compared run in that one process in alternating blocks, pinned to as many cores as there
are threads.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.child import Progress
from edgekit.errors import ModelError, ToolError, UsageError
from edgekit.measure.latency_worker import Job
from edgekit.measure.machine import core_ids, cpu_features, cpu_name
from edgekit.measure.result import Measurement, Method
from edgekit.measure.worker import run_worker

if TYPE_CHECKING:
    from edgekit.session import Arrays
    from edgekit.target import Profile

_WORKER = "edgekit.measure.latency_worker"
#: From this ratio of the 95th percentile to the median on, the notes say that the machine was not quiet.
_UNSTEADY = 1.5
_RESERVED = (
    "threads",
    "speedup",
    "speedups",
    "samples_ms",
    "peak_memory",
    "cpu",
    "features",
    "pinned",
    "notes",
)


@dataclass(frozen=True)
class LatencyResult:
    """Latency of one or more models, measured side by side.

    Attributes:
        threads: Threads of the runtime.
        latency: Milliseconds per call, by model: the median; spread ``p50 p95 min max mean count``.
        samples_ms: Every timed call, by model, in order.
        speedup: How many times faster than the first model each other one is: ratio of the medians; spread
            ``min`` and ``max`` are those of single rounds (one block of each model, right after one another).
        peak_memory: Bytes above a process that has the runtime and the input loaded; spread ``process`` is
            the whole process. A model is missing where the system does not tell.
        cpu: Name of this machine's CPU.
        features: Its instruction sets that matter to int8.
        pinned: CPU numbers that the process was kept on; empty when it could not be.
        notes: What the reader must know to use the figures.
    """

    threads: int
    latency: dict[str, Measurement]
    samples_ms: dict[str, tuple[float, ...]]
    speedup: dict[str, Measurement]
    peak_memory: dict[str, Measurement]
    cpu: str
    features: tuple[str, ...]
    pinned: tuple[int, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """The ``latency`` part of a report; ``speedup`` is that of the second model over the first."""
        content: dict[str, Any] = {"threads": self.threads}
        content.update({name: value.to_json() for name, value in self.latency.items()})
        if self.speedup:
            content["speedup"] = next(iter(self.speedup.values())).value
            content["speedups"] = {name: value.to_json() for name, value in self.speedup.items()}
        content["samples_ms"] = {
            name: [round(ms, 6) for ms in times] for name, times in self.samples_ms.items()
        }
        content["peak_memory"] = {name: value.to_json() for name, value in self.peak_memory.items()}
        content["cpu"], content["features"] = self.cpu, list(self.features)
        content["pinned"], content["notes"] = list(self.pinned), list(self.notes)
        return content


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        runs: Timed calls for each model.
        warmup: Untimed calls before.
        block: Timed calls of one model before the next one has its turn.
        min_runs: Timed calls for each model that ``budget_s`` may not cut short.
        budget_s: Seconds after which fewer than ``runs`` calls are enough.
        timeout_s: Seconds after which the process is ended and the measurement has failed.
    """

    runs: int = 100
    warmup: int = 10
    block: int = 10
    min_runs: int = 20
    budget_s: float = 30.0
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("runs", "block", "min_runs", "budget_s", "timeout_s"):
            if getattr(self, name) <= 0:
                raise UsageError(f"must be greater than 0, is {getattr(self, name)}", where=name)
        if self.warmup < 0:
            raise UsageError(f"must not be negative, is {self.warmup}", where="warmup")


def measure_latency(
    models: Mapping[str, Path],
    feeds: Arrays,
    *,
    threads: int = 0,
    runs: int = 100,
    warmup: int = 10,
    block: int = 10,
    budget_s: float = 30.0,
    timeout_s: float = 300.0,
    profile: Profile | None = None,
    memory: bool = True,
    progress: Progress | None = None,
) -> LatencyResult:
    """Time models that take the same inputs; the first is the one that speedups refer to.

    Args:
        models: File of each model, by label (``float``, ``int8``): ``.onnx`` or ``.tflite``.
        feeds: Input arrays by name.
        threads: Threads of the runtime; 0 is one per physical core (or the profile's).
        runs: Timed calls for each model; fewer for slow models, at least 20, see ``budget_s``.
        warmup: Untimed calls before.
        block: Timed calls of one model before the next one has its turn.
        budget_s: Seconds after which fewer calls are enough.
        timeout_s: Seconds after which a process is ended.
        profile: The hardware the figures are wanted for. The figures are this machine's all the same; where
            that is another machine, the notes say so.
        memory: Also measure peak memory, in one more process for each model.
        progress: Called with timed calls done and in all.

    Raises:
        ToolError: The process crashed, ran out of memory or time, or could not read a model.
        UsageError: An argument is out of range.
    """
    effort = Effort(runs, warmup, block, min(20, runs), budget_s, timeout_s)
    return _measure(models, dict.fromkeys(models, feeds), threads, effort, profile, memory, progress)


def compare(
    models: Mapping[str, Path],
    *,
    feeds: Mapping[str, Arrays] | None = None,
    threads: int = 0,
    effort: Effort | None = None,
    profile: Profile | None = None,
    memory: bool = True,
    progress: Progress | None = None,
) -> LatencyResult:
    """Time models that need not take the same inputs, such as one model at two sizes.

    Args:
        models: File of each model, by label: ``.onnx`` or ``.tflite``; speedups refer to the first.
        feeds: Input arrays of each model; by default random ones of the right shapes.
        threads: Threads of the runtime; 0 is one per physical core (or the profile's).
        effort: How long to measure.
        profile: See :func:`measure_latency`.
        memory: Also measure peak memory.
        progress: Called with timed calls done and in all.

    Raises:
        ToolError: The process crashed, ran out of memory or time, or could not read a model.
        ModelError: A model's inputs have no fixed shape, and no feeds are given.
    """
    given = {label: random_feeds(path) for label, path in models.items()} if feeds is None else feeds
    return _measure(models, given, threads, effort or Effort(), profile, memory, progress)


def random_feeds(path: Path, *, seed: int = 0) -> Arrays:
    """Arrays for the inputs of a file: float inputs uniform in [0, 1), all others zero.

    For an ONNX file and for a ``.tflite`` that edgekit wrote by ONNX name; for any other ``.tflite`` by its
    input names, as stored.

    Raises:
        ToolError: The file cannot be read.
        ModelError: An input has no fixed shape.
    """
    random = np.random.default_rng(seed)
    specs = _tflite_inputs(path) if path.suffix == ".tflite" else _onnx_inputs(path)
    return {
        name: random.random(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
        for name, shape, dtype in specs
    }


def _tflite_inputs(path: Path) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    from edgekit.tflite.package import ENTRY, package_io
    from edgekit.tflite.read import read_model

    try:
        model = read_model(path.read_bytes())
    except (OSError, ModelError) as error:
        raise ToolError(f"cannot be read as TFLite: {error}", where=str(path)) from error
    if ENTRY not in model.metadata:
        for name, tensor in model.inputs.items():
            stored = model.tensors[tensor]
            yield name, stored.shape, stored.dtype.numpy
        return
    for entry in package_io(model, path).inputs:
        yield entry.name, entry.logical, np.dtype(np.float32) if entry.scale else entry.dtype.numpy


def _onnx_inputs(path: Path) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # OSError, or the DecodeError of protobuf, which has no typed import
        raise ToolError(f"cannot be read as ONNX: {error}", where=str(path)) from error
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        shape = tuple(int(d.dim_value) if d.HasField("dim_value") else 0 for d in tensor.shape.dim)
        if 0 in shape:
            raise ModelError(f"input '{value.name}' has no fixed shape", where=str(path), hint="Pin it first")
        yield value.name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _measure(
    models: Mapping[str, Path],
    feeds: Mapping[str, Arrays],
    threads: int,
    effort: Effort,
    profile: Profile | None,
    memory: bool,
    progress: Progress | None,
) -> LatencyResult:
    _check_models(models)
    if threads < 0:
        raise UsageError(f"must not be negative, is {threads}", where="threads")
    cores = core_ids()
    wanted = threads or (profile.threads if profile is not None else 0) or len(cores)
    count = min(wanted, len(cores))
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        arrays = _save_feeds(feeds, Path(folder))
        files = {label: str(Path(path).absolute()) for label, path in models.items()}
        job = Job(
            kind="latency",
            models=files,
            feeds=arrays,
            threads=count,
            # Core 0 is where systems handle most interrupts; the last ones are the quietest.
            cores=list(cores[-count:]),
            runs=effort.runs,
            min_runs=effort.min_runs,
            warmup=effort.warmup,
            block=effort.block,
            budget_s=effort.budget_s,
            hard_s=max(effort.budget_s, 0.7 * effort.timeout_s),
            pause_s=0.06 if count > 1 else 0.0,
        )
        answer = run_worker(
            _WORKER, job.to_json(), threads=count, timeout_s=effort.timeout_s, progress=progress
        )
        peaks = _peaks(job, effort.timeout_s) if memory else {}
    notes = _notes(profile, wanted, count, answer, effort.runs, len(cores)) + _tflite_notes(models)
    return _result(answer, peaks, count, notes)


def _result(
    answer: dict[str, Any], peaks: dict[str, Measurement], threads: int, notes: Sequence[str]
) -> LatencyResult:
    samples = {label: tuple(times) for label, times in answer["samples_ms"].items()}
    latency = {label: _latency(times) for label, times in samples.items()}
    first, *others = latency
    return LatencyResult(
        threads=threads,
        latency=latency,
        samples_ms=samples,
        speedup={
            label: _speedup(latency[first], latency[label], first, label, answer["rounds"])
            for label in others
        },
        peak_memory=peaks,
        cpu=cpu_name(),
        features=cpu_features(),
        pinned=tuple(answer["pinned"]),
        notes=tuple(notes),
    )


def _latency(times: Sequence[float]) -> Measurement:
    p50, p95 = (float(np.percentile(times, q)) for q in (50, 95))
    spread = {"p50": p50, "p95": p95, "min": min(times), "max": max(times), "mean": statistics.fmean(times)}
    return Measurement(p50, "ms", Method.HOST, {**spread, "count": float(len(times))})


def _speedup(
    base: Measurement,
    other: Measurement,
    first: str,
    label: str,
    rounds: Sequence[Mapping[str, Sequence[float]]],
) -> Measurement:
    ratios = [statistics.median(r[first]) / statistics.median(r[label]) for r in rounds]
    spread = {"min": min(ratios), "max": max(ratios), "count": float(len(ratios))}
    return Measurement(base.value / other.value, "", Method.HOST, spread, f"'{label}' against '{first}'")


def _peaks(job: Job, timeout_s: float) -> dict[str, Measurement]:
    """Peak memory of each model, in a process of its own; without those that the system does not tell."""
    found = {}
    for label in job.models:
        single = Job("memory", {label: job.models[label]}, {label: job.feeds[label]}, job.threads, job.cores)
        answer = run_worker(_WORKER, single.to_json(), threads=job.threads, timeout_s=timeout_s)
        baseline, peak = answer["baseline_bytes"], answer["peak_bytes"]
        if peak:
            note = "above a process that has the runtime and the input loaded"
            spread = {"process": float(peak), "baseline": float(baseline)}
            found[label] = Measurement(float(max(0, peak - baseline)), "bytes", Method.HOST, spread, note)
    return found


def _notes(
    profile: Profile | None, wanted: int, count: int, answer: dict[str, Any], runs: int, cores: int
) -> list[str]:
    notes = []
    if profile is not None and not profile.host:
        notes.append(
            f"measured on this machine ({cpu_name()}), not on {profile.title}: no figure for that board"
        )
    if count < wanted:
        notes.append(f"{wanted} threads were asked for; this machine has {cores} cores, so {count} were used")
    if not answer["pinned"]:
        notes.append("the process could not be pinned to cores; other programs may have moved it")
    for label, times in answer["samples_ms"].items():
        p50, p95 = np.percentile(times, (50, 95))
        if p95 > _UNSTEADY * p50:
            notes.append(
                f"'{label}' is unsteady (p95 is {p95 / p50:.1f} x the median): is other work running here?"
            )
    if answer["ended"] == "budget":
        done = min(len(times) for times in answer["samples_ms"].values())
        notes.append(f"{done} of {runs} timed calls: the time budget was used up")
    return notes


def _tflite_notes(models: Mapping[str, Path]) -> list[str]:
    """What is in the time of a ``.tflite``, for the reader who compares it with an ONNX file's."""
    labels = [f"'{label}'" for label, path in models.items() if Path(path).suffix == ".tflite"]
    if not labels:
        return []
    text = "in LiteRT with XNNPACK, from codes as stored to the network's outputs, the float decoder included"
    return [f"{', '.join(labels)} ran {text}"]


def _check_models(models: Mapping[str, Path]) -> None:
    if not models:
        raise UsageError("there is no model to measure")
    for label, path in models.items():
        if label in _RESERVED:
            raise UsageError(f"'{label}' cannot be the label of a model", hint=f"Not: {', '.join(_RESERVED)}")
        if not Path(path).is_file():
            raise ToolError("there is no such file", where=str(path))


def _save_feeds(feeds: Mapping[str, Arrays], folder: Path) -> dict[str, str]:
    files: dict[str, str] = {}
    saved: dict[int, str] = {}
    for number, (label, arrays) in enumerate(feeds.items()):
        if id(arrays) not in saved:
            path = folder / f"feeds{number}.npz"
            np.savez(path, **{name: np.ascontiguousarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]
            saved[id(arrays)] = str(path)
        files[label] = saved[id(arrays)]
    return files
