"""Running a measurement job in a process of its own and reading its answer."""

from __future__ import annotations

from typing import Any

from edgekit.child import Child, Progress
from edgekit.errors import ToolError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_worker(
    module: str, job: str, *, threads: int, timeout_s: float, progress: Progress | None = None
) -> dict[str, Any]:
    """Run one job in a process that ends with it, so that it does not disturb the next measurement.

    Args:
        module: The worker; it calls :func:`edgekit.worker.serve`.
        job: One line of JSON.
        threads: Put into the environment for libraries that ask there.
        timeout_s: Seconds after which the process is ended.
        progress: Called with every progress line.

    Raises:
        ToolError: The process crashed, ran out of memory or time, or reported a failure; the message ends
            with the last lines of its stderr.
    """
    environment = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    with Child(module, "the measurement", environment=environment) as child:
        reply = child.ask(job, timeout_s=timeout_s, progress=progress)
    if reply.refused:
        raise ToolError(f"the measurement refuses its job: {reply.refused}{reply.tail}")
    return reply.result
