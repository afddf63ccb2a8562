"""Running a graph in ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgekit.errors import ModelError

if TYPE_CHECKING:
    import onnxruntime

    from edgekit.graph import Graph

Arrays = dict[str, np.ndarray[Any, Any]]


class Runner(Protocol):
    """Anything that runs a compiled network: feeds by input name in, outputs by name out."""

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Arrays: ...


class OrtRunner:
    """A :class:`Runner` over an ONNX Runtime CPU session."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.input_names = [i.name for i in session.get_inputs()]
        self.output_names = [o.name for o in session.get_outputs()]

    @property
    def optimized(self) -> bool:
        """Whether it runs as fast as the runtime can, so that its time means something."""
        import onnxruntime as ort

        level = self.session.get_session_options().graph_optimization_level
        return bool(level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL)

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        return dict(zip(self.output_names, self.session.run(self.output_names, dict(feeds)), strict=True))


def open_runner(
    model: Graph | bytes | Path,
    *,
    threads: int = 0,
    optimize: bool = True,
    integer: bool = True,
    extra_outputs: Sequence[str] = (),
) -> OrtRunner:
    """Create a session.

    Args:
        model: A graph, a serialized model or a file.
        threads: Intra-op threads; 0 takes one per physical core.
        optimize: False switches all graph optimizations off, so that every tensor is what the file says.
        integer: False computes between QuantizeLinear and DequantizeLinear in float, as the file says,
            without looking for integer kernels.
        extra_outputs: Inner tensors to return besides the graph's outputs.

    Raises:
        ModelError: ONNX Runtime refuses the model; the message carries its reason.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Else signed codes become unsigned ones on x86, which fails on some graphs (1.32: a Gemm at the end).
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if not integer:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            _source(model, extra_outputs),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime raises classes of its own that share no public base
        raise ModelError(f"ONNX Runtime refuses the model: {_first_line(error)}") from error
    return OrtRunner(session)


def run_all(
    runner: Runner, feeds: Iterable[Mapping[str, np.ndarray[Any, Any]]], *, workers: int = 0
) -> Iterator[Arrays]:
    """Run many samples side by side and yield their outputs in order.

    Args:
        runner: Best opened with ``threads=1``.
        feeds: Read lazily, a few samples ahead; memory does not grow with their number.
        workers: Samples that run at the same time; 0 is one per core.
    """
    workers = workers or cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Arrays]] = deque()
        for feed in feeds:
            waiting.append(pool.submit(runner.run, feed))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _source(model: Graph | bytes | Path, extra_outputs: Sequence[str]) -> bytes | str:
    if isinstance(model, bytes) and not extra_outputs:
        return model
    if isinstance(model, Path) and not extra_outputs:
        return str(model)
    import onnx

    if isinstance(model, Path):
        proto = onnx.load(model)
    elif isinstance(model, bytes):
        proto = onnx.load_from_string(model)
    else:
        proto = model.to_proto()
    present = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in present)
    return bytes(proto.SerializeToString())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
