"""Compiling a ``.tflite`` file for an Ethos-U with Vela, and what Vela says about the result.

Vela counts nothing for an operator that it leaves to the CPU: a network that stays on the CPU altogether is
reported with 0 cycles. So cycles are an estimate of the network only where :attr:`VelaResult.complete` holds.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.errors import ToolError
from edgekit.measure.result import Measurement, Method
from edgekit.targets.ethos_u.process import VelaProcess
from edgekit.targets.ethos_u.profiles import NpuProfile

#: Name of the ``.tflite`` operator in which Vela puts what runs on the NPU.
CUSTOM_OP = "ethos-u"
_WARNING = re.compile(r"Warning \(supported operators\) operator: (\S+), ofm: '(.*?)'\n")
_NEXT = re.compile(r"\n\s*\n|\nWarning |\Z")


@dataclass(frozen=True)
class Layer:
    """One operator as Vela runs it; one operator of the file can become several, or several one.

    Attributes:
        name: Name of the tensor that it writes.
        op: Operator of the file it comes from, as Vela's core names it: ``Conv2D``.
        cycles: NPU cycles.
        macs: Multiply-accumulates.
        utilisation: Share of the NPU's multiply-accumulates that were used, 0 to 1.
    """

    name: str
    op: str
    cycles: int
    macs: int
    utilisation: float


@dataclass(frozen=True)
class CpuOp:
    """An operator that Vela leaves to the CPU.

    Attributes:
        name: Name of its first output tensor.
        op: As the TFLite schema names it where Vela says it, else as Vela's core does.
        reason: What Vela says: which constraint is not met.
    """

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class VelaResult:
    """What Vela made of a model.

    Attributes:
        model: The optimized ``.tflite``, whose custom operator runs on the NPU only; empty where not kept.
        cycles: NPU cycles of the whole model, without any operator of the CPU.
        clock_hz: Clock that ``milliseconds`` is taken at.
        macs: Multiply-accumulates on the NPU.
        sram_bytes: Peak of the SRAM.
        dram_bytes: Peak of the DRAM.
        on_chip_flash_bytes: Constants in flash on the chip.
        off_chip_flash_bytes: Constants in flash beside the chip.
        layers: What runs on the NPU, in execution order.
        npu_ops: How many of the file's operators run on the NPU or were optimized away.
        cpu_ops: Operators that are left to the CPU.
        warnings: What the reader must know.
    """

    model: bytes
    cycles: int
    clock_hz: int
    macs: int
    sram_bytes: int
    dram_bytes: int
    on_chip_flash_bytes: int
    off_chip_flash_bytes: int
    layers: tuple[Layer, ...]
    npu_ops: int
    cpu_ops: tuple[CpuOp, ...]
    warnings: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the cycles stand for the whole model."""
        return not self.cpu_ops

    @property
    def milliseconds(self) -> float | None:
        """Cycles at the profile's clock; None where operators are left to the CPU."""
        return self.cycles / self.clock_hz * 1e3 if self.complete else None

    def estimate(self) -> Measurement | None:
        """The latency as reports show it; None where operators are left to the CPU."""
        if self.milliseconds is None:
            return None
        note = (
            f"Vela's estimate: {self.cycles:,} cycles of the NPU at {self.clock_hz / 1e6:g} MHz, "
            "all operators on the NPU"
        )
        return Measurement(self.milliseconds, "ms", Method.COMPILER_ESTIMATE, note=note)

    def to_json(self) -> dict[str, Any]:
        """Everything but the model, JSON-ready."""
        content = {key: value for key, value in asdict(self).items() if key != "model"}
        content["cpu_ops"] = [asdict(op) for op in self.cpu_ops]
        content["layers"] = [asdict(layer) for layer in self.layers]
        content["warnings"] = list(self.warnings)
        return {**content, "complete": self.complete, "milliseconds": self.milliseconds}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> VelaResult:
        """What :meth:`to_json` wrote, without the model.

        Raises:
            ValueError: It is something else.
        """
        try:
            plain = {k: v for k, v in content.items() if k not in ("complete", "milliseconds")}
            plain["layers"] = tuple(Layer(**entry) for entry in plain["layers"])
            plain["cpu_ops"] = tuple(CpuOp(**entry) for entry in plain["cpu_ops"])
            plain["warnings"] = tuple(plain["warnings"])
            return cls(model=b"", **plain)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a result of Vela: {error}") from error


def compile_model(
    data: bytes,
    profile: NpuProfile,
    *,
    timeout_s: float = 120,
    process: VelaProcess | None = None,
    keep: bool = True,
) -> VelaResult:
    """Compile a ``.tflite`` file.

    Args:
        data: The file.
        profile: The NPU.
        timeout_s: Seconds after which Vela is ended.
        process: A running Vela for many small models; None starts one for this model.
        keep: Whether the optimized model is wanted.

    Raises:
        ToolError: Vela is not installed, crashed, refused the model, took too long or wrote nothing; the
            message ends with the last lines that it printed.
    """
    if process is not None:
        answer, log = process.compile(data, profile, timeout_s=timeout_s, keep=keep)
    else:
        with VelaProcess() as own:
            answer, log = own.compile(data, profile, timeout_s=timeout_s, keep=keep)
    try:
        return _result(answer, log, profile, keep)
    except (KeyError, ValueError, IndexError) as error:
        raise ToolError(
            f"Vela's answer cannot be read: {error!r}", hint="This needs ethos-u-vela 5.2"
        ) from error


def _result(answer: Mapping[str, Any], log: str, profile: NpuProfile, keep: bool) -> VelaResult:
    model = base64.b64decode(answer["model"])
    if keep and model[4:8] != b"TFL3":
        raise ToolError("Vela ended without an optimized model")
    source, perf, queue, group = (_Rows.of(answer["tables"], n) for n in ("source", "perf", "queue", "group"))
    names = {row["id"]: row["operator"] for row in source.rows}
    on_npu = {row["optimised_id"] for row in queue.rows}
    grouped = {row["id"] for row in group.rows}
    reasons = parse_reasons(log)
    layers: list[Layer] = []
    left: dict[str, CpuOp] = {}
    for row in perf.rows:
        name, op = row["name"], names.get(row["source_id"], row["operator"])
        # A GATHER is in no queue, for it is copied, not computed; the CPU's operators have no cycles.
        if row["optimised_id"] in on_npu or row["id"] in grouped or int(row["op_cycles"]):
            layers.append(_layer(name, op, int(row["op_cycles"]), int(row["mac_count"]), profile))
        else:
            said = reasons.get(name)
            # Vela calls operators that it does not know at all "None".
            known = said[0] if said is not None and said[0] != "None" else op
            left[name] = CpuOp(name, known, said[1] if said is not None else "Vela gives no reason")
    for name, (op, reason) in reasons.items():
        left.setdefault(name, CpuOp(name, op, reason))
    memories = {str(key): int(size) for key, size in answer["memories"].items()}
    result = VelaResult(
        model=model,
        cycles=int(answer["total_cycles"]),
        clock_hz=profile.clock_hz,
        macs=int(answer["macs"]),
        sram_bytes=memories.get("Sram", 0),
        dram_bytes=memories.get("Dram", 0),
        on_chip_flash_bytes=memories.get("OnChipFlash", 0),
        off_chip_flash_bytes=memories.get("OffChipFlash", 0),
        layers=tuple(layers),
        npu_ops=max(0, len(source.rows) - len(left)),
        cpu_ops=tuple(left.values()),
        warnings=(*_arena(memories.get("Sram", 0), profile), *_incomplete(tuple(left.values()))),
    )
    return result


def parse_reasons(log: str) -> dict[str, tuple[str, str]]:
    """Operator and reason by output name, from Vela's warnings about operators that it does not support.

    After ``Reason:`` comes what it found (not always) and then the constraint's text.
    """
    found: dict[str, tuple[str, str]] = {}
    for match in _WARNING.finditer(log):
        end = _NEXT.search(log, match.end())
        text = log[match.end() : end.start() if end else len(log)]
        lines = [line.strip(" -") for line in text.removeprefix("Reason:").strip().splitlines()]
        reason = "; ".join(line.rstrip(".:") for line in lines if line)
        found.setdefault(match.group(2), (match.group(1), reason or "Vela gives no reason"))
    return found


def _layer(name: str, op: str, cycles: int, macs: int, profile: NpuProfile) -> Layer:
    most = cycles * profile.macs_per_cycle
    return Layer(name, op, cycles, macs, macs / most if most else 0.0)


def _arena(used: int, profile: NpuProfile) -> tuple[str, ...]:
    if used <= profile.arena_bytes:
        return ()
    return (
        f"the model needs {used:,} bytes of SRAM, {used - profile.arena_bytes:,} more than the profile's"
        f" {profile.arena_bytes:,}: it does not run there. Make the input or the first layers smaller",
    )


def _incomplete(left: Sequence[CpuOp]) -> tuple[str, ...]:
    if not left:
        return ()
    ops = ", ".join(sorted({op.op for op in left}))
    return (
        f"operators on the CPU: {len(left)} ({ops}). Vela counts no time for them, so there is no latency"
        " estimate of the whole model",
    )


@dataclass(frozen=True)
class _Rows:
    rows: tuple[dict[str, str], ...]

    @classmethod
    def of(cls, tables: Mapping[str, Any], name: str) -> _Rows:
        table = tables[name]
        return cls(tuple(dict(zip(table["header"], row, strict=True)) for row in table["rows"]))
