"""How much each unit of each channel group matters.

A unit is removed by zeroing it where it is read (:func:`edgekit.prune.apply.mask`), so what counts is how the
outputs change then. ``fisher`` estimates exactly that, without labels: put a gate on the unit's channels; its
derivative is the sum of weight x gradient over the weights that read them. To first order the outputs change
by ``-J`` when the gate closes, ``J`` the derivative of all outputs, and the squared change ``|J|^2`` is the
mean of ``(v . J)^2`` over random ``v``. Outputs are taken in the metric of
:class:`edgekit.train.match.Match`. (The plain Taylor score of the distance to the teacher is zero at the
start, and so says nothing.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.graph import Graph, array
from edgekit.prune.options import Importance

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from edgekit.prune.groups import ChannelGroup, Groups, Site
    from edgekit.train.match import Match

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Progress = Callable[[int, int | None], None]


def importance(
    graph: Graph,
    groups: Groups,
    method: Importance,
    feeds: Sequence[Feeds],
    seed: int = 0,
    *,
    projections: int = 2,
    match: Match | None = None,
    teacher: Graph | None = None,
    progress: Progress | None = None,
) -> dict[str, Array]:
    """Score every unit; the least important have the lowest scores, comparable across groups.

    Args:
        graph: The graph.
        groups: Its groups.
        method: How.
        feeds: Samples; the magnitudes do not need any.
        seed: Of the random projections.
        projections: For each sample (``fisher``).
        match: What the outputs are (``fisher``); by default guessed.
        teacher: The graph whose outputs weight the metric (``fisher``); by default ``graph``.
        progress: Called with samples done and in all.

    Returns:
        One array [size] for each group by name. Groups that ``bn-gamma`` says nothing about are missing.

    Raises:
        UsageError: The method needs samples and there are none, or BatchNormalization nodes and there are
        none.
    """
    if method in (Importance.ACTIVATION, Importance.FISHER) and not feeds:
        raise UsageError(f"'{method}' needs samples", where="importance")
    if method is Importance.FISHER:
        return _fisher(graph, groups, feeds, seed, projections, match, teacher, progress)
    if method is Importance.ACTIVATION:
        return _activation(graph, groups, feeds, progress)
    if method is Importance.BN_GAMMA:
        found = {g.name: s for g in groups.groups if (s := _gammas(graph, g)) is not None}
        if groups.groups and not found:
            raise UsageError(
                "no BatchNormalization node is left in the graph",
                where="importance = bn-gamma",
                hint="Capture without folding batch normalization, or choose another importance",
            )
        return found
    return {g.name: _magnitude(graph, g, method) for g in groups.groups}


def unit_sums(values: Array, site: Site) -> Array:
    """Sum what lies at each unit's positions: ``values`` [axis length] -> [units]."""
    units, positions = flat_positions(site)
    return np.bincount(units, weights=values[positions], minlength=len(site.positions))


def flat_positions(site: Site) -> tuple[Array, Array]:
    """All (unit, position) pairs of a site, as two arrays."""
    units = np.repeat(np.arange(len(site.positions)), [len(p) for p in site.positions])
    positions = np.fromiter((i for p in site.positions for i in p), np.int64, count=len(units))
    return units, positions


def _magnitude(graph: Graph, group: ChannelGroup, method: Importance) -> Array:
    """Norm of each unit's producing weights over the group's mean; vectors (biases, slopes) do not count."""
    total = np.zeros(group.size)
    power = 1 if method is Importance.MAGNITUDE_L1 else 2
    for site in _distinct(group.producers):
        weight = array(graph.model.graph.initializers.get(site.tensor))
        if weight is not None and weight.ndim > 1:
            total += unit_sums(_sums(np.abs(weight.astype(np.float64)) ** power, site.axis), site)
    return _relative(total ** (1.0 / power))


def _gammas(graph: Graph, group: ChannelGroup) -> Array | None:
    scales = {
        (str(node.inputs[1].name), str(node.name))
        for node in graph.nodes
        if node.op_type == "BatchNormalization" and node.inputs[1] is not None
    }
    total, found = np.zeros(group.size), False
    for site in _distinct(group.producers):
        gamma = array(graph.model.graph.initializers.get(site.tensor))
        if (site.tensor, site.node) in scales and gamma is not None:
            total += unit_sums(np.abs(gamma.astype(np.float64)), site)
            found = True
    return total if found else None


def _activation(
    graph: Graph, groups: Groups, feeds: Sequence[Feeds], progress: Progress | None
) -> dict[str, Array]:
    """Mean absolute value of the channels where they are read, over the group's mean."""
    from edgekit.session import open_runner

    read = {g.name: _read_activations(graph, g) for g in groups.groups}
    names = sorted({site.tensor for sites in read.values() for site in sites})
    inputs = {spec.name for spec in graph.inputs}
    runner = open_runner(graph, threads=1, extra_outputs=[n for n in names if n not in inputs])
    total = {g.name: np.zeros(g.size) for g in groups.groups}
    for done, feed in enumerate(feeds, start=1):
        values = {**feed, **runner.run(feed)}
        for name, sites in read.items():
            for site in sites:
                per_index = np.abs(values[site.tensor].astype(np.float64))
                total[name] += unit_sums(_sums(per_index, site.axis) / per_index.size, site)
        if progress is not None:
            progress(done, len(feeds))
    return {name: _relative(score) for name, score in total.items()}


def _read_activations(graph: Graph, group: ChannelGroup) -> list[Site]:
    """Sites of the tensors that the group's consumers read; all of its tensors where none is."""
    readers = {site.node for site in group.consumers}
    read = {str(v.name) for node in graph.nodes if node.name in readers for v in node.inputs if v is not None}
    distinct = _distinct(group.activations)
    return [site for site in distinct if site.tensor in read] or distinct


def _fisher(
    graph: Graph,
    groups: Groups,
    feeds: Sequence[Feeds],
    seed: int,
    projections: int,
    match: Match | None,
    teacher: Graph | None,
    progress: Progress | None,
) -> dict[str, Array]:
    import torch

    from edgekit.train.executor import Executor
    from edgekit.train.match import Match
    from edgekit.train.threads import side_by_side

    match = match or Match(graph)
    student = Executor(graph).eval()
    gates = _Gates(groups, student.weights())
    master = None if teacher is None else Executor(teacher).eval()

    def squares(item: tuple[int, Feeds]) -> list[tuple[str, Array]]:
        """Of one sample; it has random numbers of its own, so that the order of the work does not matter."""
        index, feed = item
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in feed.items()}
        outputs = student(tensors)
        wanted = {name: value.detach() for name, value in outputs.items()}
        if master is not None:
            with torch.no_grad():
                wanted = master(tensors)
        features = match.features(outputs, wanted).flatten()
        found = []
        for count in range(projections):
            v = torch.randn(features.shape, generator=generator)
            keep = count + 1 < projections
            gradients = torch.autograd.grad(
                (features * v).sum(), gates.weights, retain_graph=keep, allow_unused=True
            )
            found += [(name, derivative**2) for name, derivative in gates.derivatives(gradients)]
        return found

    total = {g.name: np.zeros(g.size) for g in groups.groups}
    for done, found in enumerate(side_by_side(squares, enumerate(feeds)), start=1):
        for name, square in found:
            total[name] += square
        if progress is not None:
            progress(done, len(feeds))
    return {name: score / (len(feeds) * projections) for name, score in total.items()}


class _Gates:
    """Derivatives with respect to a gate on each unit, from gradients of weights."""

    def __init__(self, groups: Groups, weights: Mapping[str, torch.nn.Parameter]) -> None:
        import torch

        self._sites: list[tuple[str, int, str, int, torch.Tensor, torch.Tensor]] = []
        names: dict[str, None] = {}
        for group in groups.groups:
            for site in _gate_sites(group, weights):
                units, positions = (torch.from_numpy(a) for a in flat_positions(site))
                self._sites.append((group.name, group.size, site.tensor, site.axis, units, positions))
                names[site.tensor] = None
        self._names = list(names)
        self.weights = [weights[name] for name in self._names]

    def derivatives(self, gradients: Sequence[torch.Tensor | None]) -> Iterator[tuple[str, Array]]:
        """For each group the derivative by unit: summed over all weights that read it, then to be squared."""
        import torch

        found: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            products = {
                name: weight * gradient
                for name, weight, gradient in zip(self._names, self.weights, gradients, strict=True)
                if gradient is not None
            }
            sums: dict[tuple[str, int], torch.Tensor] = {}
            for group, size, tensor, axis, units, positions in self._sites:
                if tensor not in products:
                    continue
                if (tensor, axis) not in sums:
                    product = products[tensor]
                    others = [a for a in range(product.ndim) if a != axis % product.ndim]
                    sums[tensor, axis] = product.double().sum(others) if others else product.double()
                parts = found.setdefault(group, torch.zeros(size, dtype=torch.float64))
                parts.index_add_(0, units, sums[tensor, axis][positions])
        for name, derivative in found.items():
            yield name, derivative.numpy()


def _gate_sites(group: ChannelGroup, weights: Mapping[str, Any]) -> list[Site]:
    """The weights whose gradients make up the gate's derivative.

    Every reader counts. A group that no weight reads (both operands of a contraction are computed) has its
    gate where the channels are made: at the weight and the bias of one node, the last that has any.
    """
    consumers = [site for site in _distinct(group.consumers) if site.tensor in weights]
    if consumers:
        return consumers
    made = [site for site in _distinct(group.producers) if site.tensor in weights]
    return [site for site in made if site.node == made[-1].node]


def _distinct(sites: Sequence[Site]) -> list[Site]:
    """A tensor that several nodes read, or that was reached on two ways, counts once."""
    return list({(s.tensor, s.axis, s.positions): s for s in sites}.values())


def _sums(values: Array, axis: int) -> Array:
    """Sum over all axes but one."""
    return np.asarray(values.sum(tuple(a for a in range(values.ndim) if a != axis % values.ndim)))


def _relative(scores: Array) -> Array:
    mean = float(scores.mean()) if scores.size else 0.0
    return scores / mean if mean > 0 else scores
