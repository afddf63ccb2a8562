"""The machine that figures are measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

#: Instructions that decide how fast int8 is, as /proc/cpuinfo spells them.
_FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX int8", "asimd": "NEON", "asimddp": "NEON dot product", "i8mm": "int8 matrix multiply",
    "sve": "SVE",
}  # fmt: skip


def machine() -> dict[str, Any]:
    """This machine, JSON-ready: ``cpu``, ``cores``, ``features``, ``os``, ``python``, ``onnxruntime``."""
    return {
        "cpu": cpu_name(),
        "cores": len(core_ids()),
        "features": list(cpu_features()),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": _version("onnxruntime"),
    }


def cpu_name() -> str:
    """Name of the CPU, as the system states it."""
    info = _cpuinfo()
    for key in ("model name", "Model", "Hardware"):
        if key in info:
            return info[key]
    return platform.processor() or platform.machine() or "unknown CPU"


def cpu_features() -> tuple[str, ...]:
    """Instruction sets that matter to int8; empty where the system does not list them."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(name for flag, name in _FEATURES.items() if flag in flags)


def core_ids() -> tuple[int, ...]:
    """One CPU number for each physical core that this process may use."""
    allowed = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    taken: set[int] = set()
    cores = []
    for number in allowed:
        if number not in taken:
            cores.append(number)
            taken |= _siblings(number)
    return tuple(cores)


def _siblings(number: int) -> set[int]:
    """CPU numbers that share a physical core with ``number``."""
    path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    try:
        text = path.read_text(encoding="ascii").strip()
        parts = [part.partition("-") for part in text.split(",")]
        return {n for low, _, high in parts for n in range(int(low), int(high or low) + 1)}
    except (OSError, ValueError):
        return {number}


def _cpuinfo() -> dict[str, str]:
    """The first value of every key of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
