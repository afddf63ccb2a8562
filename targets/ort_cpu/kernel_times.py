"""The process that times kernels: ``python -m edgekit.targets.ort_cpu.kernel_times``.

Each model runs in a session with ONNX Runtime's profiler on. What counts is the time of the kernels
themselves, so that copies in and out, and reordering of an isolated node's input to another memory layout,
stay outside.

On a shared machine every disturbance makes a kernel slower, never faster. The models are therefore gone
through several times, forwards and backwards, and of all runs the fast ones count.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekit.worker import Emit, serve

#: Share of the runs that count, the fastest ones: below it lies luck of the clock, above it the neighbours.
FAST = (0.05, 0.3)
_WORKER = "edgekit.targets.ort_cpu.kernel_times"


@dataclass(frozen=True)
class Job:
    """What to time.

    Attributes:
        models: Files.
        threads: Intra-op threads.
        cores: CPU numbers to run on; empty leaves the choice to the system.
        passes: Times that all models are gone through.
        runs: Runs of each model in one pass, at least.
        seconds: Runs go on for so long in one pass, up to ``most`` runs.
        most: See ``seconds``.
        wall: Take the time of the whole call from runs without the profiler, which costs some time at each
        node.
    """

    models: list[str]
    threads: int
    cores: list[int] = field(default_factory=list)
    passes: int = 2
    runs: int = 6
    seconds: float = 0.02
    most: int = 60
    wall: bool = False


@dataclass(frozen=True)
class Kernels:
    """Times of one model.

    Attributes:
        ms: Milliseconds of all kernels of an operator type together, per run.
        run_ms: The whole call.
    """

    ms: dict[str, float]
    run_ms: float


def time_kernels(job: Job, *, timeout_s: float = 600.0) -> list[Kernels]:
    """Run a job in a process of its own.

    Raises:
        ToolError: The process failed or took too long.
    """
    from edgekit.measure.worker import run_worker

    answer = run_worker(_WORKER, json.dumps(asdict(job)), threads=job.threads, timeout_s=timeout_s)
    return [Kernels(entry["ms"], entry["run_ms"]) for entry in answer["kernels"]]


def fast_mean(times: Sequence[float]) -> float:
    """Mean of the fast runs: the profiler counts whole microseconds, of which a single one says little."""
    ordered = sorted(times)
    first = int(FAST[0] * len(ordered))
    chosen = ordered[first : max(first + 1, round(FAST[1] * len(ordered)))]
    return sum(chosen) / len(chosen)


def main() -> None:
    serve(_do)


def _do(values: dict[str, Any], _: Emit) -> dict[str, Any]:
    job = Job(**values)
    if job.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job.cores)
    return {"kernels": _measure(job)}


def _measure(job: Job) -> list[dict[str, Any]]:
    """Kernel times of every model, in the order of the job."""
    found: list[list[dict[str, float]]] = [[] for _ in job.models]
    order = list(range(len(job.models)))
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        for _ in range(job.passes):
            for index in order:
                found[index] += _profile(job, job.models[index], folder)
            order.reverse()
    return [
        {
            "ms": {op: fast_mean([run.get(op, 0.0) for run in runs]) for op in runs[0] if op},
            "run_ms": fast_mean([run[""] for run in runs]),
        }
        for runs in found
    ]


def _profile(job: Job, model: str, folder: str) -> list[dict[str, float]]:
    """Milliseconds by operator type of each run; the whole call under the empty name."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "profile")
    session = ort.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    options.enable_profiling = False
    random = np.random.default_rng(0)
    feeds = {
        i.name: random.random(i.shape).astype(np.float32)
        if "float" in i.type
        else np.zeros(i.shape, np.int32 if "int32" in i.type else np.int64)
        for i in session.get_inputs()
    }
    _call(session, feeds, job)
    path = Path(session.end_profiling())
    runs = _runs(json.loads(path.read_text(encoding="utf-8")))[1:]
    path.unlink()
    if job.wall:
        plain = ort.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
        calls = _call(plain, feeds, job)
        for run, ms in zip(runs, calls, strict=False):
            run[""] = ms
        runs = runs[: len(calls)]
    return runs


def _call(session: Any, feeds: dict[str, Any], job: Job) -> list[float]:
    """Run a session a number of times; milliseconds of each call but the first, which allocates."""
    outputs = [o.name for o in session.get_outputs()]
    session.run(outputs, feeds)
    started = time.perf_counter()
    times: list[float] = []
    while len(times) < job.runs or (len(times) < job.most and time.perf_counter() - started < job.seconds):
        before = time.perf_counter()
        session.run(outputs, feeds)
        times.append((time.perf_counter() - before) * 1e3)
    return times


def _runs(events: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Sort kernel events into runs: each run's kernels come before its ``model_run``."""
    runs: list[dict[str, float]] = []
    current: dict[str, float] = defaultdict(float)
    for event in sorted(events, key=lambda e: e["ts"] + e["dur"] if "dur" in e else e["ts"]):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            current[event["args"]["op_name"]] += event["dur"] / 1e3
        elif event.get("name") == "model_run":
            runs.append({**current, "": event["dur"] / 1e3})
            current = defaultdict(float)
    return runs


if __name__ == "__main__":
    main()
