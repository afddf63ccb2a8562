"""Whether a network fits a microcontroller's memories."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import ModelError
from edgekit.measure.result import Measurement, Method
from edgekit.targets.tflm.hardware import Board

#: Name of the file beside the model in which :class:`Need` is kept.
NEED_FILE = "memory.json"
_ARENA_NOTE = (
    "least tensor arena in which the x86-64 build of TFLite Micro sets the model up, found by bisection: "
    "pointers of 8 bytes need a little more than the board's, CMSIS-NN's scratch buffers are not in it"
)


@dataclass(frozen=True)
class Need:
    """What a compiled network needs.

    Attributes:
        flash_bytes: Bytes of the model; the program and TFLite Micro's code come on top.
        arena_bytes: Bytes of tensor arena, measured.
        decoder_nodes: Float nodes behind the ``.tflite`` that the board's own program has to compute.
        operators: What the program registers.
        source: Whether a compiler has seen ``model.cc``.
    """

    flash_bytes: int
    arena_bytes: int
    decoder_nodes: int
    operators: tuple[str, ...]
    source: str

    @property
    def arena(self) -> Measurement:
        """The arena with how it was found."""
        return Measurement(float(self.arena_bytes), "bytes", Method.HOST, note=_ARENA_NOTE)

    def to_bytes(self) -> bytes:
        """As the file has it."""
        return json.dumps({**asdict(self), "arena": self.arena.to_json()}, indent=1).encode()


@dataclass(frozen=True)
class Finding:
    """One thing to know before the network goes onto the board.

    Attributes:
        kind: ``flash``, ``arena`` or ``float-tail``.
        blocks: True where the network cannot run because of it.
        text: What it is, with both figures.
        remedy: What to do about it; empty where nothing needs to be done.
    """

    kind: str
    blocks: bool
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Fit:
    """A network on a board.

    Attributes:
        fits: Whether model and arena fit.
        need: What the network needs.
        findings: Flash and arena against the board's, and what the board's program has to add.
    """

    fits: bool
    need: Need
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "fits": self.fits,
            "need": {**asdict(self.need), "arena": self.need.arena.to_json()},
            "findings": [asdict(finding) for finding in self.findings],
        }


def load_need(path: Path) -> Need:
    """What was measured when the ``.tflite`` at ``path`` was compiled.

    Raises:
        ModelError: It lies nowhere near, or cannot be read.
    """
    file = path.with_name(NEED_FILE)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content.pop("arena")
        return Need(**{**content, "operators": tuple(content["operators"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"cannot be used: {error}", where=str(file), hint="Compile the network again"
        ) from error


def fit(need: Need, board: Board) -> Fit:
    """Compare what a network needs with what a board has."""
    findings = [
        _compare(
            "flash",
            "the model",
            need.flash_bytes,
            f"of flash on the {board.title} (the program's code comes on top)",
            board.flash_bytes,
            "Prune it, or keep it in external flash that is mapped into memory",
        ),
        _compare(
            "arena",
            "the tensor arena",
            need.arena_bytes,
            f"of RAM in one piece on the {board.title} (stack and program data come on top)",
            board.arena_bytes,
            "Make the input smaller, or prune the layers with the largest activations",
        ),
    ]
    if need.decoder_nodes:
        text = f"float nodes behind the last integer operator, not in the .tflite: {need.decoder_nodes}"
        remedy = "Compute them in the program: int8.decoder.onnx says what they are"
        findings.append(Finding("float-tail", False, text, remedy))
    return Fit(not any(finding.blocks for finding in findings), need, tuple(findings))


def _compare(kind: str, what: str, needed: int, where: str, there: int, remedy: str) -> Finding:
    blocks = needed > there
    verb = "does not fit" if blocks else "fits"
    text = f"{what} {verb}: {needed:,} bytes of {there:,} bytes {where}"
    return Finding(kind, blocks, text, remedy if blocks else "")
