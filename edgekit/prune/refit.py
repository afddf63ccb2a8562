"""Recovery without training: each layer refitted to what the teacher's layer gives.

Pruning (or sparsification, or leaving out blocks) disturbs every layer behind it. Layer by layer, in
execution order, weights and bias are solved by ridge regression so that on the student's own input, refitted
up to there, the layer gives the teacher's values at the channels that were kept, on unlabelled samples. The
idea is the reconstruction step of He et al. 2017 (arXiv:1707.06168) with the asymmetric input of Zhang et al.
2015 (arXiv:1505.06798), here with four additions: a residual branch aims at the teacher's sum, so that it
also makes up for the error of the other branch; the error is measured behind the activation; the ridge is
chosen, and a layer's fit accepted, by rows that the fit has not seen; and masks are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import DataError, ModelError, UsageError
from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import add_constant, set_constant
from edgekit.prune.refit_focus import Focus, find_focus
from edgekit.prune.refit_layers import Geometry, Layer, find_layers, target_rows, wanted_tensors
from edgekit.prune.refit_solve import Parameters, Rows, Solution, solve
from edgekit.prune.refit_stream import Stream
from edgekit.session import open_runner, run_all

if TYPE_CHECKING:
    from edgekit.prune.plan import PruningPlan
    from edgekit.train.match import Match

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int | None], None]
#: Ridges that are tried, as multiples of the one that is given.
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)
#: One sample (or row) in so many is held out.
HELD = 5
#: Share of the rows of a detector that are drawn by what its outputs depend on.
DETECTOR_FOCUS = 0.9
#: Rows that every layer takes if it has them.
FEWEST_ROWS = 4096


@dataclass(frozen=True)
class RefitOptions:
    """How layers are refitted.

    Attributes:
        ridge: Pull towards the weights a layer has, as a share of the mean diagonal of ``X'X``; multiples of
            it (:data:`RIDGES`) are tried where ``search`` is on.
        positions: Most rows taken from each sample, at random places of the layer's output.
        rows_per_unknown: A layer takes no more rows in all than this many for each unknown of one of its
            outputs (and :data:`FEWEST_ROWS`): what more would tell is not worth the time.
        seed: Of those places.
        residual: Aim at the teacher's sum where a layer feeds a residual Add.
        activation_steps: Steps on the error behind the activation, after the linear fit; 0 for none.
        search: Choose the ridge of each layer on the held-out rows.
        focus: Share of the rows that are drawn where the outputs depend on them most
            (:mod:`edgekit.prune.refit_focus`); the rest is drawn evenly. None is :data:`DETECTOR_FOCUS` for
            detectors, whose feature maps are mostly background, and 0 for all others.
        sweeps: How often to go through the network.
        workers: Samples that run at the same time; 0 is one per core.
        memory_mb: Bytes to work in, in MiB: activations, rows of one layer, and the teacher's values, a third
            each. Layers whose rows need more get fewer positions.
    """

    ridge: float = 1e-3
    positions: int = 200
    rows_per_unknown: int = 32
    seed: int = 0
    residual: bool = True
    activation_steps: int = 8
    search: bool = True
    focus: float | None = None
    sweeps: int = 1
    workers: int = 0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        for name, low in (
            ("positions", 1),
            ("rows_per_unknown", 1),
            ("activation_steps", 0),
            ("sweeps", 1),
            ("workers", 0),
        ):
            if getattr(self, name) < low:
                raise UsageError(
                    f"'{name}' is {getattr(self, name)}", where="refit", valid=(f"{low} or more",)
                )
        if not (self.ridge > 0 and np.isfinite(self.ridge)):
            raise UsageError(f"'ridge' is {self.ridge}", where="refit", valid=("a number above 0",))
        if self.focus is not None and not 0.0 <= self.focus <= 1.0:
            raise UsageError(f"'focus' is {self.focus}", where="refit", valid=("a share from 0 to 1",))
        if self.memory_mb < 16:
            raise UsageError(f"'memory_mb' is {self.memory_mb}", where="refit", valid=("16 or more",))


@dataclass(frozen=True)
class RefitLayer:
    """What became of one layer.

    Attributes:
        node: Its name.
        op: Its operator.
        before: Squared error against the teacher's values over their variance, behind the activation, on
            held-out rows, with the weights it had and its input already refitted.
        after: The same with the weights it has now.
        ridge: The ridge that did best.
        blend: How far it went from the old weights to the fitted ones; 0 where it kept the old.
        rows: Rows of the regression, held-out ones included.
        unknowns: Weights of one output, bias included.
        aim: What it was fitted to: ``output`` or ``sum``, and the activation.
    """

    node: str
    op: str
    before: float
    after: float
    ridge: float
    blend: float
    rows: int
    unknowns: int
    aim: str


@dataclass(frozen=True)
class RefitResult:
    """A refitted graph.

    Attributes:
        graph: The graph.
        seconds: Wall-clock time.
        layers: The layers that were tried, in execution order (of the last sweep).
        skipped: The layers that were not, with the reason.
        notes: What the user should know about how it was done.
    """

    graph: Graph
    seconds: float
    layers: tuple[RefitLayer, ...]
    skipped: tuple[Refusal, ...]
    notes: tuple[str, ...] = ()


def refit(
    student: Graph,
    teacher: Graph,
    plan: PruningPlan | None,
    feeds: Sequence[Mapping[str, Array]],
    *,
    options: RefitOptions | None = None,
    masks: Mapping[str, Array] | None = None,
    match: Match | None = None,
    progress: Progress | None = None,
    **changed: Any,
) -> RefitResult:
    """Refit every linear layer of a student to its teacher.

    Args:
        student: The graph to recover; stays as it is.
        teacher: The graph it was made from. Tensors are matched by name.
        plan: Which channels the student kept; None where it has them all.
        feeds: Unlabelled samples, one set of inputs each. They and some of the activations stay in memory.
        options: How; the defaults where None.
        masks: By weight name, bool arrays of the weight's shape: weights where it is False stay zero.
        match: What the outputs are, for ``focus``; by default guessed.
        progress: Called with the layers done and their number.
        changed: Single fields of :class:`RefitOptions`: ``ridge``, ``positions``, ``seed`` …

    Raises:
        UsageError: An option has a wrong value, or a mask does not fit.
        DataError: There are no samples.
        ModelError: The inputs of student and teacher differ, or there is nothing to refit.
    """
    chosen = make_options(options, changed)
    if not len(feeds):
        raise DataError("there are no samples to refit on", where="refit")
    ours, theirs = ({i.name: i.shape for i in g.inputs} for g in (student, teacher))
    if ours != theirs:
        raise ModelError(f"the student's inputs are {ours}, the teacher's {theirs}", where="refit")
    start = time.perf_counter()
    graph = student
    focus, notes = _focus(student, teacher, plan, feeds, chosen, match)
    for sweep in range(chosen.sweeps):
        work = _Sweep(graph, teacher, plan, feeds, chosen, masks or {}, focus, sweep)
        graph = work.run(progress)
    seconds = time.perf_counter() - start
    layers, skipped = tuple(work.done), work.found.skipped
    kept = [layer for layer in layers if layer.blend > 0]
    summary = (
        f"{len(kept)} of {len(layers)} layers refitted to the original's outputs on {len(feeds)} samples"
    )
    details = {
        "seconds": round(seconds, 2),
        "options": asdict(chosen),
        "layers": [asdict(layer) for layer in layers],
        "nodes_run_again": work.stream.reruns,
        "notes": list(notes),
    }
    change = Change("refit", summary, skipped, details)
    return RefitResult(graph.with_change(change), seconds, layers, skipped, notes)


def make_options(options: RefitOptions | None, changed: Mapping[str, Any]) -> RefitOptions:
    """The options with some fields changed.

    Raises:
        UsageError: A field is unknown or has a wrong value.
    """
    known = asdict(options or RefitOptions())
    for name in changed:
        if name not in known:
            raise UsageError(f"no option '{name}'", where="refit", valid=known)
    return RefitOptions(**{**known, **changed})


def _focus(
    student: Graph,
    teacher: Graph,
    plan: PruningPlan | None,
    feeds: Sequence[Mapping[str, Array]],
    options: RefitOptions,
    match: Match | None,
) -> tuple[Focus | None, tuple[str, ...]]:
    """Where rows are to be drawn (None: evenly), and a note where that could not be found out."""
    from edgekit.train.match import OutputKind, guess_kinds

    share = options.focus
    if share is None:
        kinds = guess_kinds(teacher) if match is None else match.kinds
        share = DETECTOR_FOCUS if OutputKind.DETECTOR in kinds.values() else 0.0
    if share == 0.0:
        return None, ()
    layers = find_layers(student, teacher, plan, residual=options.residual).layers
    try:
        return find_focus(teacher, layers, feeds, share=share, match=match, seed=options.seed), ()
    except ModelError as error:
        if options.focus is not None:
            raise
        return None, (f"rows were drawn evenly, not where the outputs depend on them: {error}",)


class _Sweep:
    """One pass through the network."""

    def __init__(
        self,
        student: Graph,
        teacher: Graph,
        plan: PruningPlan | None,
        feeds: Sequence[Mapping[str, Array]],
        options: RefitOptions,
        masks: Mapping[str, Array],
        focus: Focus | None,
        sweep: int,
    ) -> None:
        self.student, self.feeds, self.options, self.sweep = student, feeds, options, sweep
        self.masks = _checked_masks(masks, student)
        self.found = find_layers(student, teacher, plan, residual=options.residual)
        if not self.found.layers:
            reasons = "; ".join(f"{r.where}: {r.reason}" for r in self.found.skipped[:3])
            raise ModelError(f"there is no layer to refit ({reasons or 'no Conv, Gemm or MatMul'})")
        layers = self.found.layers
        nodes = list(student.nodes)
        self.nodes = {layer.name: nodes[layer.index] for layer in layers}
        self.geometry = {n.name: Geometry(self.nodes[n.name], _constant(student, n.weight)) for n in layers}
        self.focus = focus
        share = options.memory_mb * 2**20 // 3
        self.rows_each = {n.name: self._rows_each(n, share) for n in layers}
        self.stream = Stream(student, feeds, wanted_tensors(layers), workers=options.workers, memory=share)
        self.teacher = _Teacher(self, teacher, share)
        self.new_biases: dict[str, Array] = {}
        self.done: list[RefitLayer] = []

    def run(self, progress: Progress | None) -> Graph:
        total = len(self.found.layers)
        for count, layer in enumerate(self.found.layers):
            if progress is not None:
                progress(self.sweep * total + count, self.options.sweeps * total)
            self._refit(layer)
        if progress is not None:
            progress((self.sweep + 1) * total, self.options.sweeps * total)
        return self._written()

    def places(self, layer: Layer, sample: int) -> Array:
        """The flat output positions that are taken from a sample: the same for student and teacher."""
        there, count = self.geometry[layer.name].positions, self.rows_each[layer.name]
        random = np.random.default_rng([self.options.seed, self.sweep, layer.index, sample])
        if self.focus is not None:
            return self.focus.draw(layer.name, sample, count, random)
        if count >= there:
            return np.arange(there)
        return np.sort(random.choice(there, count, replace=False, shuffle=False))

    def _rows_each(self, layer: Layer, memory: int) -> int:
        geometry = self.geometry[layer.name]
        groups, unknowns, _ = geometry.shape
        # Twice: the rows, and the part of them that is fitted.
        most = memory // (2 * 4 * groups * unknowns * len(self.feeds))
        useful = -(-max(FEWEST_ROWS, self.options.rows_per_unknown * unknowns) // len(self.feeds))
        there = geometry.positions if self.focus is None else self.options.positions
        return max(1, min(self.options.positions, there, most, useful))

    def _refit(self, layer: Layer) -> None:
        geometry = self.geometry[layer.name]
        x, offset = [], []
        wanted = [layer.source, *([layer.offset] if layer.offset else [])]
        for sample, tensors in enumerate(self.stream.at(layer.index, wanted)):
            where = self.places(layer, sample)
            x.append(geometry.rows(tensors[layer.source], where))
            if layer.offset:
                offset.append(target_rows(layer.channel_axis, tensors[layer.offset], where, None))
        rows = Rows(
            x=np.concatenate(x, 1),
            target=geometry.grouped(self.teacher.rows(layer)),
            offset=geometry.grouped(np.concatenate(offset)) if offset else None,
            held=self._held([part.shape[1] for part in x]),
        )
        weight = self.stream.weights[layer.weight]
        bias = self.stream.weights.get(layer.bias)
        outputs = np.zeros(geometry.shape[0] * geometry.shape[2])
        mask = self.masks.get(layer.weight)
        start = Parameters(
            weight=geometry.matrix(weight).astype(np.float64),
            bias=geometry.grouped(outputs[None] if bias is None else outputs + bias.reshape(1, -1)),
            mask=None if mask is None else geometry.matrix(mask),
            free_bias=layer.can_add_bias or bool(layer.bias),
        )
        options = self.options
        ridges = [options.ridge * r for r in RIDGES] if options.search else [options.ridge]
        solution = solve(rows, start, layer.activation, ridges, options.activation_steps)
        if solution.blend > 0:
            self._store(layer, solution)
        self._note(layer, solution, rows)

    def _held(self, counts: Sequence[int]) -> Array:
        """The last fifth of the samples; every fifth row where there are fewer samples than five.

        Files are often sorted by class or person: a run of them tells better than every fifth one how the fit
        does on what it has not seen.
        """
        if len(counts) >= HELD:
            return np.repeat(np.arange(len(counts)) >= len(counts) - len(counts) // HELD, counts)
        held = np.arange(sum(counts)) % HELD == HELD - 1
        # With a handful of rows there is nothing to spare: they fit and judge at once, and the ridge decides.
        return held if held.any() else np.ones(sum(counts), bool)

    def _store(self, layer: Layer, solution: Solution) -> None:
        weights, geometry = self.stream.weights, self.geometry[layer.name]
        weights[layer.weight] = geometry.weight(solution.weight)
        bias = solution.bias.reshape(-1).astype(np.float32)
        if layer.owns_bias:
            weights[layer.bias] = bias.reshape(weights[layer.bias].shape)
        elif layer.norm_mean:
            weights[layer.norm_mean] = weights[layer.norm_mean] - bias
        elif layer.can_add_bias:
            label = f"{layer.name}.refit_bias"
            self.new_biases[layer.name] = weights[label] = bias
            node = self.stream.nodes[layer.index]
            node.input[:] = [node.input[0], node.input[1], label]

    def _note(self, layer: Layer, solution: Solution, rows: Rows) -> None:
        aim = "sum" if layer.offset else "output"
        self.done.append(
            RefitLayer(
                node=layer.name,
                op=layer.op,
                before=solution.before,
                after=solution.after,
                ridge=solution.ridge,
                blend=solution.blend,
                rows=rows.x.shape[1],
                unknowns=rows.x.shape[2] + int(layer.can_add_bias or bool(layer.bias)),
                aim=f"{aim}, {layer.activation.name}",
            )
        )

    def _written(self) -> Graph:
        """The student with the weights found."""
        result = self.student.copy()
        main = result.model.graph
        nodes = list(main)
        for layer in self.found.layers:
            set_constant(main.initializers[layer.weight], self.stream.weights[layer.weight])
            for name in filter(None, (layer.bias if layer.owns_bias else "", layer.norm_mean)):
                set_constant(main.initializers[name], self.stream.weights[name])
            if layer.name in self.new_biases:
                _give_bias(main, nodes[layer.index], self.new_biases[layer.name])
        return result


class _Teacher:
    """The teacher's values at the sampled places, a few layers at a time so that memory stays bounded."""

    def __init__(self, sweep: _Sweep, graph: Graph, memory: int) -> None:
        self._sweep, self._graph, self._memory = sweep, graph, memory
        self._rows: dict[str, Array] = {}

    def rows(self, layer: Layer) -> Array:
        """The target of one layer, float32 ``[R, O]``; each can be asked for once, in order."""
        if layer.name not in self._rows:
            self._run(self._next(layer))
        return self._rows.pop(layer.name)

    def _next(self, first: Layer) -> list[Layer]:
        layers = self._sweep.found.layers
        chosen: list[Layer] = []
        used = 0
        for layer in layers[layers.index(first) :]:
            used += 4 * len(layer.keep) * self._sweep.rows_each[layer.name] * len(self._sweep.feeds)
            if chosen and used > self._memory:
                break
            chosen.append(layer)
        return chosen

    def _run(self, layers: Sequence[Layer]) -> None:
        targets = list(dict.fromkeys(layer.target for layer in layers))
        runner = open_runner(self._graph, threads=1, extra_outputs=targets)
        parts: dict[str, list[Array]] = {layer.name: [] for layer in layers}
        runs: Iterator[dict[str, Array]] = run_all(
            runner, self._sweep.feeds, workers=self._sweep.options.workers
        )
        for sample, tensors in enumerate(runs):
            for layer in layers:
                where = self._sweep.places(layer, sample)
                found = target_rows(layer.channel_axis, tensors[layer.target], where, layer.keep)
                parts[layer.name].append(np.ascontiguousarray(found))
        for name, found_rows in parts.items():
            self._rows[name] = np.concatenate(found_rows)


def _give_bias(main: ir.Graph, node: ir.Node, bias: Array) -> None:
    old = node.inputs[2] if len(node.inputs) > 2 else None
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, add_constant(main, f"{node.name}.refit_bias", bias))
    if old is not None and not old.uses():
        main.initializers.pop(str(old.name), None)


def _constant(graph: Graph, name: str) -> Array:
    found = array(graph.model.graph.initializers[name])
    if found is None:
        raise ModelError("is not constant", where=f"tensor '{name}'")
    return found


def _checked_masks(masks: Mapping[str, Array], graph: Graph) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, mask in masks.items():
        value = array(graph.model.graph.initializers.get(name))
        if value is None:
            raise UsageError(f"there is no weight '{name}' to mask", where="refit")
        if mask.shape != value.shape:
            raise UsageError(
                f"the mask is {list(mask.shape)}, the weight {list(value.shape)}", where=f"weight '{name}'"
            )
        found[name] = np.asarray(mask, bool)
    return found
