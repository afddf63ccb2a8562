"""How close two networks' outputs are, sample by sample: needs no labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.data.base import Samples
from edgekit.errors import ModelError
from edgekit.measure.result import Measurement, Method
from edgekit.session import Arrays, Runner

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int | None], None]

#: Outputs that agree to the last bit have no noise; they get this figure, far above what rounding leaves.
SQNR_CEILING_DB = 200.0


@dataclass(frozen=True)
class OutputDifference:
    """One output of the candidate against the reference's.

    Attributes:
        name: The output's name in the reference.
        cosine: Mean over the samples of the cosine similarity.
        cosine_min: The worst sample's.
        cosine_p5: That which 5 % of the samples stay below.
        sqnr_db: Energy of the reference over the energy of the difference, all samples together, in dB.
        max_abs: The largest difference of one element.
        top1_agreement: Share of the samples for which the largest element is the same one; None where the
            output is not one row of two or more scores.
        non_finite: Samples for which the candidate's output holds NaN or infinite values where the
            reference's does not. Their cosine counts as 0; the other figures leave them out.
    """

    name: str
    cosine: float
    cosine_min: float
    cosine_p5: float
    sqnr_db: float
    max_abs: float
    top1_agreement: float | None = None
    non_finite: int = 0


@dataclass(frozen=True)
class OutputsResult:
    """A comparison of all outputs.

    Attributes:
        samples: Samples compared.
        outputs: One entry for each output.
        notes: What the user should know to read the figures.
    """

    samples: int
    outputs: tuple[OutputDifference, ...]
    notes: tuple[str, ...] = ()

    def measurements(self) -> dict[str, Measurement]:
        """The worst output's figures for a report: ``cosine``, ``sqnr_db`` and, for scores, ``top1``."""
        spread = {"samples": float(self.samples), "min": min(o.cosine_min for o in self.outputs)}
        note = "; ".join(self.notes)
        figures = {
            "cosine": Measurement(min(o.cosine for o in self.outputs), "cosine", Method.HOST, spread, note),
            "sqnr_db": Measurement(min(o.sqnr_db for o in self.outputs), "dB", Method.HOST, {}, note),
        }
        agreements = [o.top1_agreement for o in self.outputs if o.top1_agreement is not None]
        if agreements:
            figures["top1"] = Measurement(
                min(agreements), "", Method.HOST, {}, "agreement with the reference"
            )
        return figures


def compare_outputs(
    reference: Runner, candidate: Runner, samples: Samples, *, progress: Progress | None = None
) -> OutputsResult:
    """Run two networks over the same samples; only a few numbers for each sample are kept.

    Outputs are paired by name, or by position where the names differ but the shapes agree (a note says so).

    Args:
        reference: The network that is right by definition.
        candidate: The network that is judged.
        samples: Inputs for both.
        progress: Called after each sample with the number done and the total (None where unknown).

    Raises:
        DataError: The samples cannot be read.
        ModelError: The networks' outputs differ in number or shape.
    """
    tallies: dict[str, _Tally] = {}
    pairs: dict[str, str] = {}
    done = 0
    for done, sample in enumerate(samples, start=1):
        expected, found = reference.run(sample.feeds), candidate.run(sample.feeds)
        if not tallies:
            pairs = _pair(expected, found)
            tallies = {name: _Tally(name) for name in pairs}
        for name, other in pairs.items():
            tallies[name].add(expected[name], found[other])
        if progress is not None:
            progress(done, samples.count)
    renamed = [f"{a} with {b}" for a, b in pairs.items() if a != b]
    notes = [f"outputs paired by position: {', '.join(renamed)}"] if renamed else []
    broken = {name: tally.non_finite for name, tally in tallies.items() if tally.non_finite}
    notes += [f"'{name}' holds NaN or infinite values for {count} samples" for name, count in broken.items()]
    return OutputsResult(done, tuple(tally.result() for tally in tallies.values()), tuple(notes))


def cosine(a: Array, b: Array) -> float:
    """Cosine similarity of two arrays as vectors; two zero vectors are alike, a zero and another are not."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    size = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    if size == 0:
        return float(not x.any() and not y.any())
    return min(1.0, max(-1.0, float(x @ y) / size))


def _pair(expected: Arrays, found: Arrays) -> dict[str, str]:
    names = {name: name for name in expected}
    if set(expected) != set(found):
        names = dict(zip(expected, found, strict=False))
    if len(expected) != len(found) or any(expected[a].shape != found[b].shape for a, b in names.items()):
        raise ModelError(
            f"the networks cannot be compared: the outputs are {_listed(expected)} and {_listed(found)}",
            hint="Compare two versions of one network",
        )
    return names


def _listed(outputs: Arrays) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())


@dataclass
class _Tally:
    """Sums for one output."""

    name: str
    cosines: list[float] = field(default_factory=list)
    signal: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    agreed: int = 0
    ranked: bool = True
    non_finite: int = 0

    def add(self, expected: Array, found: Array) -> None:
        self.ranked = self.ranked and expected.ndim == 2 and expected.shape[0] == 1 and expected.shape[1] > 1
        sound = np.isfinite(expected)
        if not np.isfinite(found[sound]).all():
            self.non_finite += 1
            self.cosines.append(0.0)
            return
        # Where the reference itself is not finite there is nothing to compare with.
        a, b = expected[sound].astype(np.float64), found[sound].astype(np.float64)
        difference = b - a
        self.cosines.append(cosine(a, b))
        self.signal += float(a @ a)
        self.noise += float(difference @ difference)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        if self.ranked:
            self.agreed += int(expected.argmax() == found.argmax())

    def result(self) -> OutputDifference:
        return OutputDifference(
            name=self.name,
            cosine=float(np.mean(self.cosines)),
            cosine_min=min(self.cosines),
            cosine_p5=float(np.percentile(self.cosines, 5)),
            sqnr_db=self._sqnr(),
            max_abs=self.max_abs,
            top1_agreement=self.agreed / len(self.cosines) if self.ranked else None,
            non_finite=self.non_finite,
        )

    def _sqnr(self) -> float:
        if self.non_finite == len(self.cosines):
            return -SQNR_CEILING_DB
        if self.noise == 0:
            return SQNR_CEILING_DB
        if self.signal == 0:
            return -SQNR_CEILING_DB
        decibels = 10 * math.log10(self.signal / self.noise)
        return max(-SQNR_CEILING_DB, min(SQNR_CEILING_DB, decibels))
