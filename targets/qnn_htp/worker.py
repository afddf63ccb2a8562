"""The process in which the QNN execution provider runs: native code, registered once for a whole process.

It refuses (see :mod:`edgekit.worker`) where ONNX Runtime does not make the session. A job has these keys:

- ``model``: path of the ``.onnx`` file; ``compiled``: whether it is a context model.
- ``external``: folder of its external data, or ``""``.
- ``options``: options of the execution provider, without those that name a file of the package.
- ``strict``: whether a node outside of HTP is an error.
- ``trace``: folder for the trace, or ``""``.
- ``context``: path of the context model to write, or ``""``.
- ``names``: the inputs' names; ``feeds``: paths of ``.npz`` files with the arrays in that order.
- ``outputs``: the names of the outputs wanted, or null for all in the model's order.
- ``answers``: paths of the ``.npz`` files to write, one for each feed.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.worker import Emit, RefusedError, serve

_VERBOSE, _WARNING = 0, 2


def main() -> None:
    serve(_do)


@cache
def _devices() -> list[Any]:
    import onnxruntime as ort
    import onnxruntime_qnn as qnn

    name = qnn.get_ep_name()
    ort.register_execution_provider_library(name, qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise RuntimeError(f"{name} registered, but offers no device on this machine")
    return devices


def _do(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    import numpy as np

    devices = _devices()
    began = time.perf_counter()
    try:
        session = _session(job, devices, _WARNING)
    except Exception as error:  # onnxruntime raises classes of its own that share no public base
        if not _traced(job):
            _explain(job, devices)
        raise RefusedError(str(error).strip()) from error
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    names = job["outputs"] or [output.name for output in session.get_outputs()]
    for feed, path in zip(job["feeds"], job["answers"], strict=True):
        with np.load(feed) as arrays:
            feeds = {name: arrays[f"arr_{i}"] for i, name in enumerate(job["names"])}
        np.savez(path, *session.run(names, feeds))
    return {"seconds": seconds, "run_seconds": time.perf_counter() - began, "names": names}


def _session(job: dict[str, Any], devices: list[Any], level: int) -> Any:
    import onnxruntime as ort
    import onnxruntime_qnn as qnn

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = level
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if job["strict"] else "0")
    if job["external"]:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", job["external"]
        )
    provider = {**job["options"], "backend_path": qnn.get_qnn_htp_path()}
    if job["trace"]:
        provider |= {"enable_framework_op_trace": "1", "framework_op_trace_dir": job["trace"]}
    if job["context"] and level != _VERBOSE:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", job["context"])
        options.add_session_config_entry("ep.context_embed_mode", "0")
    options.add_provider_for_devices(devices, provider)
    # A graph from a file is called after its path, and that is in the binary: from memory one model gives
    # one binary.
    # A context model finds its binary by its own path.
    source = job["model"] if job["compiled"] else Path(job["model"]).read_bytes()
    return ort.InferenceSession(source, options)


def _traced(job: dict[str, Any]) -> bool:
    return not job["trace"] or any(Path(job["trace"]).glob("*.json"))


def _explain(job: dict[str, Any], devices: list[Any]) -> None:
    """Try again with all messages: where nothing at all is placed, the reasons are in no trace."""
    try:
        _session(job, devices, _VERBOSE)
    except Exception:  # it fails as it did before
        return


if __name__ == "__main__":
    main()
