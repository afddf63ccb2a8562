"""ONNX Runtime on a CPU: this machine's, or that of a Linux board."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.target import Target


def create(profile: str | None = None) -> Target:
    """The target for ``profile``, or for the default profile.

    Raises:
        UnknownNameError: There is no such profile.
    """
    from edgekit.targets.ort_cpu.target import OrtCpuTarget

    return OrtCpuTarget.create(profile)
