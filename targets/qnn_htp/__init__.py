"""Qualcomm's Hexagon Tensor Processors, by way of QNN and ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.target import Target


def create(profile: str | None = None) -> Target:
    """The target for one profile, or the default one for None.

    Raises:
        UnknownNameError: There is no such profile.
    """
    from edgekit.targets.qnn_htp.target import QnnHtpTarget

    return QnnHtpTarget.create(profile)
