"""One Vela process: jobs in, answers out, started when first needed and again after a crash."""

from __future__ import annotations

import base64
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.child import Child, Need
from edgekit.errors import ToolError
from edgekit.targets.ethos_u.profiles import NpuProfile

_WORKER = "edgekit.targets.ethos_u.worker"
_NEED = Need("ethosu", "Vela, the compiler for Ethos-U,", "ethos-u")


class VelaProcess(Child):
    """Compiles models one after another in a process of its own; a context manager.

    Args:
        module: The worker; another one in tests.
    """

    def __init__(self, module: str = _WORKER) -> None:
        super().__init__(module, "Vela", need=_NEED)

    def compile(
        self, data: bytes, profile: NpuProfile, *, timeout_s: float = 120, keep: bool = True
    ) -> tuple[dict[str, Any], str]:
        """Compile one ``.tflite`` file.

        Args:
            data: The file.
            profile: The NPU.
            timeout_s: Seconds after which the process is ended.
            keep: Whether the compiled model is wanted.

        Returns:
            The worker's result and what Vela printed.

        Raises:
            ToolError: Vela is not installed, crashed, refused the model or took too long; the message ends
                with the last lines that it printed.
        """
        self.start()  # a missing Vela is told before its configuration file is looked for
        job: dict[str, Any] = {
            "arch": profile.architecture,
            "system": _system(profile),
            "options": _options(profile),
        }
        job |= {"model": base64.b64encode(data).decode(), "keep": keep}
        reply = self.ask(json.dumps(job), timeout_s=timeout_s)
        if reply.refused:
            raise ToolError(f"Vela refuses the model: {reply.refused}{reply.tail}")
        return reply.result, reply.printed


@cache
def _vela_ini() -> str:
    """The configuration file that ships with Vela.

    Raises:
        ToolError: It is not where Vela 5 has it.
    """
    found = importlib.util.find_spec("ethosu")
    for folder in () if found is None else found.submodule_search_locations or ():
        path = Path(folder) / "config_files" / "Arm" / "vela.ini"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ToolError(
        "Vela's configuration file Arm/vela.ini is missing", hint="pip install 'edgekit[ethos-u]'"
    )


def _system(profile: NpuProfile) -> str:
    """What Vela makes of ``--accelerator-config``, ``--system-config`` and ``--memory-mode``."""
    head = (
        f"[architecture]\nmacs={profile.macs_per_cycle // profile.cores}\ncores={profile.cores}\n"
        f"[vela]\nsystem_config_name={profile.system_config}\nmemory_mode_name={profile.memory_mode}\n"
    )
    return head + _vela_ini()


def _options(profile: NpuProfile) -> str:
    """Vela's defaults, with the profile's SRAM as ``--arena-cache-size``."""
    return (
        "\n[compiler]\nenable_db=true\noutput_format=TFLite\ncop_format=COP1\n"
        f"\n[scheduler]\noptimize=Performance\narena_size_limit={profile.arena_bytes}\ndisable_feature=\n"
        "cpu_tensor_alignment=16\ntensor_allocator=HillClimb\n"
        "\n[graph]\nsoftmax_int16_neg_exp_range=10.0\n"
    )
