"""Number formats that a target offers beside its usual one: each makes another profile of every profile.

``[formats.a16w8]`` in a ``hardware.toml`` turns the profile ``v75`` into ``v75`` and ``v75-a16w8``. Its title
is what a person calls it; all other keys replace those of ``[scheme]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def profile_names(content: Mapping[str, Any]) -> dict[str, str]:
    """Every profile of a ``hardware.toml``, with those of its formats: name to title."""
    found = {}
    for name, profile in content.get("profiles", {}).items():
        title = str(profile.get("title", name))
        found[name] = title
        for form, table in content.get("formats", {}).items():
            found[f"{name}-{form}"] = f"{title}, {table.get('title', form)}"
    return found


def split_profile(name: str, formats: Mapping[str, Any]) -> tuple[str, str]:
    """The profile and the format that a name stands for; the format is empty for the usual one."""
    for form in formats:
        if name.endswith(f"-{form}"):
            return name.removesuffix(f"-{form}"), form
    return name, ""
