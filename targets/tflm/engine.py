"""TFLite Micro on this machine, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.child import Child, Need
from edgekit.errors import ModelError
from edgekit.targets.tflm.worker import ALIGNMENT, pack, unpack
from edgekit.tflite.interpreter import check_inputs
from edgekit.tflite.model import Array, TfliteModel

_WORKER = "edgekit.targets.tflm.worker"
_NEED = Need("tflite_micro", "tflite-micro", "tflm")
#: Seconds after which a call has failed.
TIMEOUT_S = 300.0


class TflmEngine:
    """A :class:`~edgekit.tflite.package.CodeRunner` over TFLite Micro's own interpreter.

    Args:
        path: The ``.tflite``.
        model: What it holds.
        measure: Also find the smallest arena, which sets the model up some twenty times.

    Attributes:
        arena_bytes: The smallest arena that the model runs in, on this machine; 0 without ``measure``.

    Raises:
        ModelError: TFLite Micro refuses the model.
        ToolError: It is not installed, or its process ended.
    """

    def __init__(self, path: Path, model: TfliteModel, *, measure: bool = False) -> None:
        self.model = model
        self._path = path
        self._child = Child(_WORKER, "TFLite Micro", need=_NEED)
        try:
            self.arena_bytes = int(self._ask(measure=measure)["arena"])
        except BaseException:
            self.close()
            raise

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, as stored.

        Raises:
            InputError: An input is missing, unknown, or of another shape or type.
            ToolError: TFLite Micro failed, or its process ended.
        """
        check_inputs(self.model, values)
        found = self._ask(inputs=[pack(values[name]) for name in self.model.inputs])["outputs"]
        return {
            name: unpack(array).reshape(self.model.tensors[tensor].shape)
            for (name, tensor), array in zip(self.model.outputs.items(), found, strict=True)
        }

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _ask(self, **job: Any) -> dict[str, Any]:
        # A process that was started again knows nothing of the model: each job says all.
        given = {"model": str(self._path.resolve()), "arena": enough(self.model)}
        given["outputs"] = len(self.model.outputs)
        reply = self._child.ask(json.dumps(given | job), timeout_s=TIMEOUT_S, where=str(self._path))
        if reply.refused:
            # Its own message names the call that failed; what it printed names the operator.
            text = f"TFLite Micro refuses the model: {reply.refused}{reply.tail}"
            raise ModelError(text, where=str(self._path))
        return reply.result


def enough(model: TfliteModel) -> int:
    """An arena in bytes that is large enough for sure: every tensor at once, and room for bookkeeping."""
    tensors = sum(tensor.size_bytes for tensor in model.tensors.values() if tensor.data is None)
    scales = sum(len(t.quantization.scale) for t in model.tensors.values() if t.quantization is not None)
    total = 2 * tensors + 32 * scales + 1024 * (len(model.tensors) + len(model.operators)) + 65536
    return -(-total // ALIGNMENT) * ALIGNMENT
