"""The process in which latency and memory are measured: ``python -m edgekit.measure.latency_worker``.

A job is a :class:`Job` as JSON; see :mod:`edgekit.worker` for the answers. Use
:func:`edgekit.measure.latency.measure_latency` rather than this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.worker import Emit, serve

if TYPE_CHECKING:
    import numpy as np

Feeds = Mapping[str, "np.ndarray[Any, Any]"]
#: Runs a loaded model once.
Call = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        kind: ``latency`` or ``memory``.
        models: File of each model, by label.
        feeds: ``.npz`` file of each model's input arrays, by label.
        threads: Intra-op threads.
        cores: CPU numbers to run on; empty leaves the choice to the system.
        runs: Timed calls for each model, at most.
        min_runs: Timed calls for each model after which the budget may end the measurement.
        warmup: Untimed calls before the first timed one.
        block: Timed calls of one model before the next model has its turn.
        budget_s: Seconds of timed calls after which the measurement ends, once ``min_runs`` is reached.
        hard_s: Seconds after which it ends with whatever there is.
        pause_s: Rest between blocks, for the threads of the model that ran to stop spinning.
    """

    kind: str
    models: dict[str, str]
    feeds: dict[str, str]
    threads: int
    cores: list[int] = field(default_factory=list)
    runs: int = 100
    min_runs: int = 20
    warmup: int = 10
    block: int = 10
    budget_s: float = 30.0
    hard_s: float = 240.0
    pause_s: float = 0.06

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    serve(_do)


def _do(values: dict[str, Any], emit: Emit) -> dict[str, Any]:
    job = Job(**values)
    pinned = _pin(job.cores)
    result = measure_memory(job) if job.kind == "memory" else measure_blocks(job, emit)
    return {**result, "pinned": pinned}


def measure_blocks(job: Job, emit: Emit) -> dict[str, Any]:
    """Time all models in alternating blocks: A B, B A, A B …; a drift of the machine then hits all alike."""
    sessions = {label: _Timed.open(label, job) for label in job.models}
    started = time.perf_counter()
    for timed in sessions.values():
        timed.warm(job.warmup, job.budget_s * 0.1)
    order = list(sessions)
    rounds: list[dict[str, list[float]]] = []
    ended = "runs"
    while ended == "runs" and min(timed.count for timed in sessions.values()) < job.runs:
        blocks: dict[str, list[float]] = {}
        for label in order:
            time.sleep(job.pause_s)
            blocks[label] = sessions[label].block(job)
        rounds.append(blocks)
        order.reverse()
        done = min(timed.count for timed in sessions.values())
        emit({"progress": [min(done, job.runs), job.runs]})
        elapsed = time.perf_counter() - started
        if elapsed > job.hard_s or (elapsed > job.budget_s and done >= job.min_runs):
            ended = "budget" if done < job.runs else ended
    return {
        "samples_ms": {label: timed.samples for label, timed in sessions.items()},
        "rounds": rounds,
        "ended": ended,
    }


def measure_memory(job: Job) -> dict[str, Any]:
    """Highest resident memory of the process while it loads and runs one model, before and after."""
    (label,) = job.models
    load = prepare_model(job.models[label], _load_feeds(job.feeds[label]))
    _reset_peak()
    before = _resident("VmRSS")
    call = load(job.threads)
    for _ in range(2):
        call()
    return {"baseline_bytes": before, "peak_bytes": _resident("VmHWM")}


@dataclass
class _Timed:
    """A loaded model and its timings in milliseconds."""

    call: Call
    samples: list[float] = field(default_factory=list)
    typical_s: float = 0.0

    @classmethod
    def open(cls, label: str, job: Job) -> _Timed:
        try:
            return cls(prepare_model(job.models[label], _load_feeds(job.feeds[label]))(job.threads))
        except Exception as error:  # runtimes raise classes of their own that share no public base
            raise RuntimeError(f"model '{label}': {error}") from error

    @property
    def count(self) -> int:
        return len(self.samples)

    def warm(self, calls: int, seconds: float) -> None:
        """Up to ``calls`` untimed calls within about ``seconds``; at least two: the first one allocates."""
        started = time.perf_counter()
        for done in range(max(calls, 2)):
            self.typical_s = self._call() / 1e3
            if done >= 1 and time.perf_counter() - started > seconds:
                break

    def block(self, job: Job) -> list[float]:
        """One block of timed calls, after one untimed call that brings caches and threads back."""
        # A slow model has shorter blocks, so that its neighbours' turns stay close in time.
        size = max(1, min(job.block, job.runs - self.count, int(2.0 / max(self.typical_s, 1e-6)) or 1))
        if self.typical_s < 1.0:
            self._call()
        times = [self._call() for _ in range(size)]
        self.samples += times
        return times

    def _call(self) -> float:
        call = self.call
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e6


def prepare_model(path: str, feeds: Feeds) -> Callable[[int], Call]:
    """Bring in the library and the input of a model; what is returned loads it with that many threads."""
    return _prepare_tflite(Path(path), feeds) if path.endswith(".tflite") else _prepare_onnx(path, feeds)


def _prepare_onnx(path: str, feeds: Feeds) -> Callable[[int], Call]:
    import onnxruntime as ort

    options = ort.SessionOptions()  # the library is loaded lazily in parts; this brings them in
    # Else ONNX Runtime rewrites int8 activations as uint8 on x86, and refuses some of what it has written.
    options.add_session_config_entry("session.qdqisint8allowed", "1")

    def load(threads: int) -> Call:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])
        given = _codes(session, feeds)
        return lambda: session.run(None, given)

    return load


def _codes(session: Any, feeds: Feeds) -> dict[str, Any]:
    """The feeds as the file takes them: codes where its inputs are codes and the feed is float."""
    metadata = session.get_modelmeta().custom_metadata_map
    if "edgekit.io" not in metadata:
        return dict(feeds)
    # Imported here: the measured process stays as small as it can.
    from edgekit.coded import quantize
    from edgekit.passes.quantized_ends import read_ends

    ends = read_ends(metadata)
    known = {} if ends is None else ends.coded
    return {
        name: quantize(value, known[name]) if name in known and value.dtype.kind == "f" else value
        for name, value in feeds.items()
    }


def _prepare_tflite(path: Path, feeds: Feeds) -> Callable[[int], Call]:
    """A package of edgekit's with its decoder, or a plain ``.tflite`` that is fed with stored arrays."""
    from edgekit.tflite.interpreter import LiteRt
    from edgekit.tflite.package import ENTRY, open_package, package_io
    from edgekit.tflite.read import read_model

    model = read_model(path.read_bytes())
    if ENTRY not in model.metadata:
        return lambda threads: partial(LiteRt(path, threads=threads).run, feeds)
    package_io(model, path)
    import onnxruntime  # for the ONNX files of the package, if it has any
    from ai_edge_litert import interpreter  # noqa: F401  (its memory is not the model's)

    onnxruntime.SessionOptions()

    def load(threads: int) -> Call:
        runner = open_package(path, threads=threads)
        # Quantizing the input is the camera driver's work; the clock starts behind it.
        return partial(runner.invoke, runner.prepare(feeds), feeds)

    return load


def _load_feeds(path: str) -> dict[str, np.ndarray[Any, Any]]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _pin(cores: list[int]) -> list[int]:
    """Keep the process on ``cores``; returns those it is really on, empty where the system cannot say."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return []
    with contextlib.suppress(OSError):  # a container may forbid it; the result then says so
        os.sched_setaffinity(0, cores)
        return sorted(os.sched_getaffinity(0))
    return []


def _reset_peak() -> None:
    """Forget the peak so far (Linux): importing libraries reaches higher than what stays."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident(field_name: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (highest) in bytes; 0 where the system does not tell.

    Linux's ``ru_maxrss`` is not used where there is /proc: it starts at what the parent process held.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field_name}:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
