"""Arm Ethos-U55, U65 and U85: TFLite files compiled by Vela."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.target import Target


def create(profile: str | None = None) -> Target:
    """The target for ``profile``, or for the default profile.

    Raises:
        UnknownNameError: There is no such profile.
    """
    from edgekit.targets.ethos_u.target import EthosUTarget

    return EthosUTarget.create(profile)
