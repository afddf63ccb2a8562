"""What the toolchain makes of every operator, and the table in which that is kept (``ops.json``)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ModelError, UsageError
from edgekit.session import Arrays, open_runner
from edgekit.targets.qnn_htp.cases import Case
from edgekit.targets.qnn_htp.single import FORMATS, code_feeds, quantized

if TYPE_CHECKING:
    from edgekit.quantize.scheme import Scheme
    from edgekit.targets.qnn_htp.many import Trial

STORED = Path(__file__).with_name("ops.json")
#: The profile that the table is made for, and QNN's number of its SoC.
PROFILE, SOC = "v73", 43
#: Steps up to which a result is right, and up to which it is usable, by format. 512 steps of 16 bits are two
#: of 8 bits.
RIGHT = {"a8w8": 1, "a16w8": 1}
USABLE = {"a8w8": 3, "a16w8": 512}


class Result(StrEnum):
    """What became of a model of one operator."""

    OK = "ok"
    INEXACT = "inexact"
    WRONG = "wrong"
    FLOAT = "float"
    REFUSED = "refused"


@dataclass(frozen=True)
class Verdict:
    """One operator in one format.

    Attributes:
        result: ``ok`` and ``inexact`` run on integer kernels and compute what ONNX Runtime does; ``wrong``
            computes something else; ``float`` is computed in float32; ``refused`` does not compile.
        steps: Largest difference of a code to ONNX Runtime's; None where nothing was computed.
        reason: What the toolchain says.
    """

    result: Result
    steps: int | None = None
    reason: str = ""

    @property
    def runs(self) -> bool:
        return self.result in (Result.OK, Result.INEXACT)


def prove(
    cases: Iterable[Case], scheme: Scheme, *, soc: int = SOC, formats: Iterable[str] = FORMATS
) -> Table:
    """Compile and run every case in every format.

    Raises:
        ToolError: The toolchain is not installed.
    """
    from edgekit.targets.qnn_htp.many import compile_many

    models: dict[str, bytes] = {}
    feeds: dict[str, list[Arrays]] = {}
    expected: dict[str, Arrays] = {}
    keys = [(case, fmt) for case in cases for fmt in formats]
    for case, fmt in keys:
        graph = quantized(case, scheme, fmt)
        key = f"{case.name}|{fmt}"
        models[key], feeds[key] = graph.to_bytes(), code_feeds(case, graph)
        expected[key] = open_runner(graph, threads=1, optimize=False).run(feeds[key][0])
    trials = compile_many(models, soc, feeds=feeds)
    found: dict[str, dict[str, Verdict]] = {}
    for case, fmt in keys:
        key = f"{case.name}|{fmt}"
        found.setdefault(case.name, {})[fmt] = judge(trials[key], expected[key], fmt)
    return found


Table = dict[str, dict[str, Verdict]]


def judge(trial: Trial, expected: Mapping[str, np.ndarray[Any, Any]], fmt: str) -> Verdict:
    """What one trial says.

    Args:
        trial: Of the toolchain.
        expected: What ONNX Runtime computes, by output name.
        fmt: The format.
    """
    if not trial.placed or not trial.outputs or trial.trace is None:
        said = "; ".join(dict.fromkeys(node.reason for node in trial.refused)) or trial.error
        return Verdict(Result.REFUSED, reason=said)
    if trial.trace.float_nodes:
        return Verdict(Result.FLOAT, reason="computed in float32 between Dequantize and Quantize")
    steps = 0
    for name, data in trial.outputs[0].items():
        if data.shape != expected[name].shape:
            return Verdict(Result.WRONG, reason=f"shape {list(data.shape)}, not {list(expected[name].shape)}")
        if data.size:
            apart = np.abs(data.astype(np.float64) - expected[name].astype(np.float64))
            steps = max(steps, int(np.ceil(apart.max())))
    if steps > USABLE[fmt]:
        return Verdict(Result.WRONG, steps)
    return Verdict(Result.OK if steps <= RIGHT[fmt] else Result.INEXACT, steps)


def store(table: Table, toolchain: Mapping[str, str], path: Path = STORED) -> None:
    """Write the table."""
    from edgekit.files import write_whole

    lines = []
    for name, formats in table.items():
        row = {
            fmt: [v.result.value, v.steps, v.reason] if v.reason else [v.result.value, v.steps]
            for fmt, v in formats.items()
        }
        lines.append(f"  {json.dumps(name)}: {json.dumps(row)}")
    head = json.dumps({"toolchain": dict(toolchain), "profile": PROFILE, "soc": SOC})[1:-1]
    text = "{\n" + head + ',\n"cases": {\n' + ",\n".join(lines) + "\n}}\n"
    write_whole(path, text.encode())


def stored(path: Path = STORED) -> tuple[dict[str, str], Table]:
    """Versions of the toolchain, and the table.

    Raises:
        ModelError: The file is broken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        table = {
            name: {fmt: Verdict(Result(v[0]), v[1], v[2] if len(v) > 2 else "") for fmt, v in row.items()}
            for name, row in content["cases"].items()
        }
        return dict(content["toolchain"]), table
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"cannot be read: {error}", where=str(path)) from error


def versions() -> dict[str, str]:
    """Versions of the packages that the toolchain consists of."""
    from importlib.metadata import version

    return {name: version(name) for name in ("onnxruntime-qnn", "onnxruntime")}


def htp_scheme() -> Scheme:
    """The number formats of this target.

    Raises:
        UsageError: ``hardware.toml`` has none.
    """
    from edgekit.hardware import load_hardware

    path = Path(__file__).with_name("hardware.toml")
    scheme = load_hardware(path).scheme
    if scheme is None:
        raise UsageError("has no table [scheme]", where=str(path))
    return scheme
