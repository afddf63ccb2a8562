"""Kernels that pad: PAD, PADV2, MIRROR_PAD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.tflite.model import Array
from edgekit.tflite.reference.base import Call, kernel


def _widths(call: Call) -> list[tuple[int, int]]:
    return [(int(before), int(after)) for before, after in call.value(1).reshape(-1, 2)]


@kernel("PAD")
def pad(call: Call) -> Sequence[Array]:
    """Real zeros around: codes of the zero point of the output."""
    quantization = call.outputs[0].quantization
    fill = 0 if quantization is None else int(quantization.zero_point[0])
    return [np.pad(call.value(0), _widths(call), constant_values=fill)]


@kernel("PADV2")
def pad_v2(call: Call) -> Sequence[Array]:
    """A given code around, input 2, which has the scale of the output."""
    return [np.pad(call.value(0), _widths(call), constant_values=call.value(2).reshape(-1)[0])]


@kernel("MIRROR_PAD")
def mirror_pad(call: Call) -> Sequence[Array]:
    """Mirrored at the outermost element (REFLECT) or beside it (SYMMETRIC)."""
    mode = str(call.option("mode", "REFLECT"))
    return [np.pad(call.value(0), _widths(call), mode="reflect" if mode == "REFLECT" else "symmetric")]
