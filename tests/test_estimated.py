"""What a run makes of a compiler's estimates: one for each int8 file, none for float."""

from __future__ import annotations

from pathlib import Path

from edgekit.measure.result import Measurement, Method
from edgekit.pipeline import assess
from edgekit.target import Estimate, LeftNode


class _Npu:
    """A target whose compiler accounts for all of one file and for part of another."""

    def __init__(self, known: str) -> None:
        self.known = known

    def estimate(self, path: Path) -> Estimate:
        latency = Measurement(1.0, "ms", Method.COMPILER_ESTIMATE) if path.stem == self.known else None
        missing = () if latency else (LeftNode("up", "Resize", "a rule"),)
        return Estimate(latency, missing, notes=(f"of {path.stem}",))


def test_float_files_are_not_estimated_and_the_int8_ones_all_are() -> None:
    paths = {kind: Path(kind) for kind in ("float", "int8", "original", "original_int8")}
    found = assess._estimated(_Npu("int8"), paths)
    assert set(found["estimate"]) == {"int8", "original_int8"}
    assert set(found["latency"]) == {"int8", "notes"}
    assert found["latency"]["notes"] == []
    assert found["estimate"]["int8"]["latency"]["value"] == 1.0
    assert found["estimate"]["original_int8"]["missing"][0]["op"] == "Resize"
    assert "unmeasured" in assess._estimated(_Npu("original_int8"), paths)


def test_an_original_without_a_figure_is_no_lack_of_the_compressed_networks() -> None:
    """The report would say that the latency was not measured, beside the latency."""
    found = assess._estimated(_Npu("int8"), {kind: Path(kind) for kind in ("int8", "original_int8")})
    assert "unmeasured" not in found
