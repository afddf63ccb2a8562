"""Static quantization of a float graph: from samples to a QDQ graph, and what was found on the way.

The line: plan -> observe -> equalize -> ranges -> biases -> QDQ -> judge. That is the first rung of a ladder,
which ends where the answer is as good as ``target_db`` asks:

1. *plain*: what costs no latency and seconds of time;
2. *equalize*: channels are equalized behind SiLUs too, one multiplication each;
3. *reconstruct*: rounding, ranges and biases are learned block by block, which costs minutes and no latency
   (:mod:`edgekit.quantize.reconstruct`);
4. *mixed*: single tensors are raised above 8 bits, as far as the target allows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.quantize.bias import correct_biases, correctable, quantized_means
from edgekit.quantize.calibrators import Calibrator, Range
from edgekit.quantize.damage import Damage, measure_damage
from edgekit.quantize.equalize import equalize, find_pairs
from edgekit.quantize.findings import find_clashes
from edgekit.quantize.histogram import Array
from edgekit.quantize.judge import Judge
from edgekit.quantize.observe import Calibration, Progress, observe
from edgekit.quantize.options import AUTO, TRIED, Feeds, Options, QuantizeResult, Rung
from edgekit.quantize.plan import make_plan
from edgekit.quantize.probe import channel_means
from edgekit.quantize.qdq import all_weight_scales
from edgekit.quantize.qparams import QParams
from edgekit.quantize.quantization import Quantization
from edgekit.quantize.raising import Raised, most_useful, only_needed
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.spread import Spread
from edgekit.session import cores

#: SiLUs that are tried for equalization, the most drowned first.
SILUS_TRIED = 3
#: Gain that one of them must bring, in dB of the outputs.
SILU_GAIN_DB = 1.0


@dataclass
class Ladder:
    """One quantization on its way; see :func:`edgekit.quantize.quantize.quantize`."""

    graph: Graph
    scheme: Scheme
    feeds: Feeds
    options: Options
    inputs: dict[str, Range]
    threads: int
    status: Callable[[str], None] | None
    seconds: dict[str, float] = field(default_factory=dict)
    rungs: list[tuple[str, float]] = field(default_factory=list)
    progress: Progress | None = None
    checkpoint: Path | None = None
    ladder: list[Rung] = field(default_factory=list)
    raised: tuple[Raised, ...] = ()
    learned: Quantization | None = None
    plain_db: float = 0.0
    stale: list[str] = field(default_factory=list)
    _scales_of: Graph | None = None
    _scales: dict[str, Array] = field(default_factory=dict)

    def run(self, total: int | None) -> QuantizeResult:
        """Everything, from the first pass over ``total`` samples (None where unknown) to the last rung."""
        self.work = self.graph
        self.plan = make_plan(self.graph, self.scheme)
        self.spread = Spread(self.options.kept_samples, total)
        first = self.calibration = self._observe(self.spread.watch(self.feeds()), total, self.progress)
        self.first_plan = self.plan
        if self.options.equalize:
            self._equalize(None)
        with self._clock("prepare"):
            self.few = self.spread.kept
            judged = self.few[:: max(1, len(self.few) // self.options.judge_samples)]
            self.judge = Judge(self.graph, judged[: self.options.judge_samples], threads=self.threads)
            self.means = self._means()
        with self._clock("search"):
            self._climb()
        raised = self.raised
        return QuantizeResult(
            graph=self.best.deployed(),
            plan=self.best.plan,
            params=dict(self.best.params),
            calibrator=self.ranges.calibrator,
            raised=raised,
            findings=find_clashes(
                self.graph,
                self.first_plan,
                first.histograms,
                dict(self.best.params),
                self._actions(raised),
                self.judge.largest,
            ),
            db=self._last,
            rungs=tuple(self.rungs),
            ladder=tuple(self.ladder),
            seconds=self.seconds,
            quantization=self.best,
            judge=self.judge,
        )

    def _climb(self) -> None:
        """From rung to rung until the outputs are good enough."""
        base = RangeOptions(self._methods[0], self.options.percentile, True, self.inputs)
        with self._rung("plain") as rung:
            self.damage = self._measure_damage(base)
            self.ranges = self._choose_calibrator((), both=False)
            self.best = self._correct_fully(())
            rung.text = f"calibrated by {self.ranges.calibrator.value}"
        if self.options.equalize and self._last < self.options.target_db and self._gated():
            with self._rung("equalize") as rung:
                done = self._equalize_silus(())
                rung.text = f"equalized behind {len(done)} SiLUs"
                if done:
                    # With the worst tensors out of the way another calibrator may be best.
                    before, ranges = self._last, self.ranges
                    self.ranges = self._choose_calibrator((), both=False)
                    if self._last < before:
                        self.ranges = ranges
                    self.best = self._correct_fully(())
        self.plain_db = self._last
        if self._last < self.options.target_db and self.options.reconstruct_seconds > 0:
            with self._rung("reconstruct") as rung:
                rung.text = self._reconstruct()
        if self._last < self.options.target_db and self._limit > 0:
            with self._rung("mixed") as rung:
                self._mix()
                rung.text = f"{len(self.raised)} tensors raised to {self.scheme.raised.value}"

    def _reconstruct(self) -> str:
        """Rung 3; what came of it. Better outputs on the judged samples are kept, others not."""
        from edgekit.quantize.reconstruct.options import ReconstructOptions
        from edgekit.quantize.reconstruct.run import reconstruct

        start, before = self.best, self._last
        options = ReconstructOptions(
            seconds=self.options.reconstruct_seconds, threads=self.threads or cores()
        )

        learn = partial(
            reconstruct,
            *(start.work, start.plan, start.params, self.scheme, start.scales, self.feeds, options),
            teacher=self.work,
            progress=self.progress,
            status=self.status,
            checkpoint=self.checkpoint,
        )
        try:
            found = learn()
        except UsageError:
            if self.checkpoint is None or not self.checkpoint.exists():
                raise
            self.checkpoint.unlink()  # of a run with other options
            found = learn()
        learned = Quantization(found.graph, start.plan, found.params, self.scheme, found.scales)
        learned = learned.with_codes(found.codes)
        db = self.judge.score(learned.deployed()).db
        count = sum(block.noise_after < block.noise_before for block in found.blocks)
        text = f"{count} of {len(found.blocks)} blocks learned"
        self._note(f"reconstructed, {text}", db)
        if db < before:
            self._note("without it", before)
            return f"{text}, which made the outputs no better: left out"
        self.best = self.learned = learned
        return text

    def _mix(self) -> None:
        """Rung 4: on top of what was learned, and without it where that is not good enough. What was learned
        for 8 bits makes up for tensors that have more of them now."""
        before = self._last
        if self.learned is not None:
            self._keep(before, *self._raised_best())
            if self._last >= self.options.target_db:
                return
            before, self.learned = self._last, None
            self._note("without what was learned", self.plain_db)
        self._keep(before, *self._raised_best())

    def _raised_best(self) -> tuple[Quantization, tuple[Raised, ...]]:
        raised = self._raise()
        names = tuple(r.tensor for r in raised)
        if self.learned is not None:
            return self._learned_with(names), raised
        if self.options.equalize and self._last < self.options.target_db:
            self._equalize_silus(names)
        return self._correct_fully(names), raised

    def _keep(self, before: float, found: Quantization, raised: tuple[Raised, ...]) -> None:
        """Take what was found if it is better than what there was."""
        if self._last > before:
            self.best, self.raised = found, raised
        else:
            self._note("what there was is better", before)

    def _learned_with(self, raised: tuple[str, ...]) -> Quantization:
        """What was learned with 8 bits, where some tensors have more: those are as they were seen."""
        if self.learned is None:
            raise RuntimeError("nothing was learned")
        plan = make_plan(self.learned.work, self.scheme, raised=raised)
        fresh = choose_params(self.work, plan, self.scheme, self.calibration, self.ranges)
        params = {}
        for tensor, seen in fresh.items():
            known = self.learned.params.get(tensor)
            if known is None or known.format is not seen.format:
                params[tensor] = seen
            else:
                params[tensor] = replace(known, wide=seen.wide)
        return replace(self.learned, plan=plan, params=params)

    def _correct_fully(self, raised: tuple[str, ...]) -> Quantization:
        """The last step: biases corrected for the activations too, if that measures better."""
        plain = self._build(raised, self.ranges)
        if not self.means:
            return plain
        found = quantized_means(self.work, plain.deployed(), plain.plan, self.few, threads=self.threads)
        full = self._build(raised, self.ranges, found)
        before = self._last
        db = self.judge.score(full.deployed()).db
        self._note("biases corrected for activations", db)
        if db >= before:
            return full
        self._note("biases corrected for weights only", before)
        return plain

    @property
    def _last(self) -> float:
        return self.rungs[-1][1]

    def _observe(
        self, feeds: Iterable[Mapping[str, Array]], total: int | None = None, progress: Progress | None = None
    ) -> Calibration:
        with self._clock("calibrate"):
            wanted = unknown_ranges(self.work, self.scheme, self.plan, self.inputs)
            return observe(self.work, wanted, feeds, threads=self.threads, total=total, progress=progress)

    def _equalize(self, only: Sequence[str] | None) -> None:
        """Equalize and look again: ranges behind an equalized tensor are no longer known."""
        work = equalize(self.work, self.calibration.histograms, only)
        if not work.history[-1].details["raised"]:
            self.work = work
            return
        self.work, self.plan = work, make_plan(work, self.scheme)
        self.calibration = self._observe(self.feeds())

    @property
    def scales(self) -> dict[str, Array]:
        """Scales of the weights of the graph that is quantized; found once for each graph."""
        if self._scales_of is not self.work:
            self._scales_of, self._scales = self.work, all_weight_scales(self.work, self.scheme)
        return self._scales

    def _means(self) -> dict[str, Array]:
        if not self.options.correct_biases:
            return {}
        tensors = list(dict.fromkeys(correctable(self.work, self.plan).values()))
        return channel_means(self.work, tensors, self.few, threads=self.threads)

    def _params(self, ranges: RangeOptions) -> dict[str, QParams]:
        return choose_params(self.work, self.plan, self.scheme, self.calibration, ranges)

    def _build(
        self, raised: tuple[str, ...], ranges: RangeOptions, found: Mapping[str, Array] | None = None
    ) -> Quantization:
        """The quantized form; ``found`` are channel means behind quantized activations, for its biases."""
        if self.learned is not None:
            return self._learned_with(raised)
        plan = make_plan(self.work, self.scheme, raised=raised)
        params = choose_params(self.work, plan, self.scheme, self.calibration, ranges)
        work = self.work
        if self.means:
            work = correct_biases(work, plan, self.scheme, self.means, found, self.scales)
        return Quantization(work, plan, params, self.scheme, self.scales)

    def _try(self, label: str, raised: tuple[str, ...], ranges: RangeOptions) -> float:
        db = self.judge.score(self._build(raised, ranges).deployed()).db
        self._note(label, db)
        return db

    def _note(self, label: str, db: float) -> None:
        self.rungs.append((label, db))
        if self.status is not None:
            self.status(f"{label}: {db:.1f} dB")

    @property
    def _methods(self) -> tuple[Calibrator, ...]:
        chosen = self.options.calibrator
        if self.scheme.activation.bits > 8:
            return (Calibrator.MINMAX,)  # all that was seen has codes
        return TRIED if chosen == AUTO else (Calibrator(chosen),)

    def _measure_damage(self, base: RangeOptions) -> dict[str, Damage]:
        """With ``auto``, the most damaging tensors also get the range that measures best."""
        if self.scheme.activation.bits > 8:
            return {}
        return measure_damage(
            self.work,
            self.plan,
            self._params(base),
            self.calibration.histograms,
            self.judge,
            self.scheme,
            search=self.options.calibrator == AUTO,
        )

    def _choose_calibrator(self, raised: tuple[str, ...], *, both: bool = True) -> RangeOptions:
        """The best calibrator; with ``both``, each is tried with and without the tails cut."""
        chosen = {t: d.range for t, d in self.damage.items() if d.method and not self._is_stale(t)}
        found = []
        for method in self._methods:
            for tails in (True, False) if both and self.options.calibrator == AUTO else (True,):
                ranges = RangeOptions(method, self.options.percentile, tails, self.inputs, chosen)
                label = f"{method.value}, tails cut" if tails else method.value
                found.append((self._try(label, raised, ranges), ranges))
        db, best = max(found, key=lambda pair: pair[0])
        self._note(f"best: {best.calibrator.value}{', tails cut' if best.tails else ''}", db)
        return best

    def _gated(self) -> set[str]:
        """Outputs of SiLUs that can be equalized."""
        return {p.tensor for p in find_pairs(self.work) if p.gate is not None} & set(self.damage)

    def _equalize_silus(self, raised: tuple[str, ...]) -> list[str]:
        """Equalize behind the SiLUs that are drowned most, each only if it helps; those that were."""
        done = []
        for tensor in sorted(self._gated() - set(raised), key=lambda t: -self.damage[t].noise)[:SILUS_TRIED]:
            before = (self.work, self.plan, self.calibration, self.means, self.ranges)
            db = self._last
            self._equalize([tensor])
            self.means = self._means()
            # The ranges that were measured for it no longer hold.
            self.stale.append(tensor)
            chosen = {t: r for t, r in self.ranges.chosen.items() if not self._is_stale(t)}
            self.ranges = replace(self.ranges, chosen=chosen)
            if self._try(f"equalize '{tensor}'", raised, self.ranges) < db + SILU_GAIN_DB:
                self.work, self.plan, self.calibration, self.means, self.ranges = before
                self.stale.remove(tensor)
                self._note(f"left '{tensor}' alone", db)
            else:
                done.append(tensor)
        return done

    def _is_stale(self, tensor: str) -> bool:
        """Whether what was measured of a tensor no longer holds, since its channels were scaled."""
        return any(tensor == other or tensor.startswith(f"{other}.") for other in self.stale)

    @property
    def _limit(self) -> int:
        """Most tensors that may be raised."""
        return self.scheme.max_raised if self.options.max_raised is None else self.options.max_raised

    def _raise(self) -> tuple[Raised, ...]:
        def try_raised(names: tuple[str, ...]) -> float:
            return self._try(f"raise {', '.join(names) or 'nothing'}", names, self.ranges)

        target = self.options.target_db
        chosen = most_useful(self.damage, try_raised, target_db=target, limit=self._limit)
        if self.learned is None:
            # With the worst tensors out of the way another calibrator may be best.
            self.ranges = self._choose_calibrator(chosen)
        raised = only_needed(
            self.work,
            chosen,
            self._last,
            self.damage,
            try_raised,
            target_db=target,
            raised_format=self.scheme.raised.value,
        )
        try_raised(tuple(r.tensor for r in raised))
        return raised

    def _actions(self, raised: Sequence[Raised]) -> dict[str, str]:
        actions = {}
        for change in self.work.history:
            if change.pass_name == "equalize":
                for tensor, gain in change.details["raised"].items():
                    actions[tensor] = f"equalized: small channels raised by up to {gain:.0f}x"
        for item in raised:
            actions[item.tensor] = f"raised to {item.format}"
        return actions

    def _clock(self, part: str) -> _Clock:
        return _Clock(self.seconds, part)

    @contextmanager
    def _rung(self, name: str) -> Iterator[_Text]:
        """Measures a rung and says how it ended."""
        start, text = time.perf_counter(), _Text()
        yield text
        seconds = time.perf_counter() - start
        self.ladder.append(Rung(name, self._last, seconds, text.text))
        if self.status is not None:
            self.status(f"{name}: {self._last:.1f} dB in {seconds:.0f} s, {text.text}")


@dataclass
class _Text:
    text: str = ""


class _Clock:
    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.part] = self.seconds.get(self.part, 0.0) + time.perf_counter() - self.start
