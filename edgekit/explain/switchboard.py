"""One session in which every rounding has a switch, and scales that are fed.

Of each site, ``X -> QuantizeLinear -> DequantizeLinear`` becomes ``Where(on, dequantized, X)``, and its scale
and zero point become inputs of the graph. Any of them can then be rounded, in any way, without another
session: making one takes longer than a few samples. The other sites are left as they are, or out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.explain.sites import Site, Weight, dequantizers, strip, with_weights
from edgekit.graph import Graph
from edgekit.passes.edit import add_constant
from edgekit.quantize.judge import output_branches
from edgekit.quantize.probe import channel_axis
from edgekit.session import Arrays, open_runner, run_all

Array = np.ndarray[Any, Any]
Feeds = Sequence[Mapping[str, Array]]

#: What a site rounds with: step and code of 0.0, scalars or one for each channel.
Params = tuple[Array, Array]
_ON, _SCALE, _ZERO, _AFTER = "edgekit.on:", "edgekit.scale:", "edgekit.zero:", ".switched"
#: Noise below this is none.
FLOOR = 1e-9


@dataclass(frozen=True)
class Noise:
    """What rounding does to the outputs.

    Attributes:
        branches: By output branch: error energy over signal energy, at most 1, mean over the samples.
        samples: The same by sample, mean over the branches.
        cosine: Cosine similarity to the float answers, mean over branches and samples.
        cosine_min: The worst branch of the worst sample.
    """

    branches: dict[str, float]
    samples: tuple[float, ...]
    cosine: float
    cosine_min: float

    @property
    def mean(self) -> float:
        """Of the mean branch, 0 to 1."""
        return float(np.mean(list(self.branches.values())))

    @property
    def typical(self) -> float:
        """Of the middle sample: one that is unlike the others does not count."""
        return float(np.median(self.samples))

    @property
    def db(self) -> float:
        """Signal-to-noise ratio of the mean branch."""
        return decibels(self.mean)


def decibels(noise: float) -> float:
    return float(-10.0 * np.log10(max(noise, FLOOR)))


class Bench:
    """A QDQ graph, its float answers on a few samples, and boards to switch its roundings on.

    Args:
        graph: The QDQ graph.
        sites: Of :func:`~edgekit.explain.sites.read_sites`.
        weights: Of :func:`~edgekit.explain.sites.read_weights`.
        original: The float graph; without one, the graph with no activation rounded stands for it.
        feeds: The samples that are judged on; kept.
        threads: Samples that run at the same time; 0 is one per core.
    """

    def __init__(
        self,
        graph: Graph,
        sites: Sequence[Site],
        weights: Sequence[Weight],
        original: Graph | None,
        feeds: Feeds,
        *,
        threads: int = 0,
    ) -> None:
        self.sites = {s.key: s for s in sites}
        self.source = (graph, tuple(weights), original)
        self.feeds, self.threads = feeds, threads
        self.variants = {
            True: with_weights(graph, weights, original, rounded=True),
            False: with_weights(graph, weights, original, rounded=False),
        }
        self.plain = strip(self.variants[False])
        reference = original or self.plain
        values = self.plain.values()
        branches = [b for b in output_branches(reference) if b in values]
        self.branches = branches or [spec.name for spec in reference.outputs]
        runner = open_runner(reference, threads=1, extra_outputs=self.branches)
        self.wanted = [
            {b: outputs[b] for b in self.branches} for outputs in run_all(runner, feeds, workers=threads)
        ]

    def board(self, keys: Collection[str], *, others: bool, rounded: bool) -> Board:
        """A session with a switch for some sites.

        Args:
            keys: The sites that can be switched.
            others: Whether all other sites round.
            rounded: Whether the weights are rounded.
        """
        kept = set(self.sites) if others else set(keys)
        graph = strip(self.variants[rounded], kept)
        built, names = _with_switches(graph, {k: self.sites[k] for k in keys}, self.sites)
        return Board(self, built, {b: names.get(b, b) for b in self.branches}, tuple(keys))

    def full(self) -> Noise:
        """Of the int8 network as it is."""
        return self.board((), others=True, rounded=True).noise(())

    def noise_of(self, graph: Graph) -> Noise:
        """Of any graph with the same outputs; branches may have the names that a QDQ graph gives them."""
        values = graph.values()
        found = {b: f"{b}_dequantized" if f"{b}_dequantized" in values else b for b in self.branches}
        runner = open_runner(graph, threads=1, integer=False, extra_outputs=list(found.values()))
        runs = run_all(runner, self.feeds, workers=self.threads)
        return compare(self.wanted, [{b: outputs[n] for b, n in found.items()} for outputs in runs])

    def without(self, nodes: Collection[str], rounding: Collection[str]) -> Noise:
        """Of the int8 network with the weights of some nodes in float and only some of the sites rounding."""
        graph, weights, original = self.source
        few = [w for w in weights if w.node in nodes]
        mixed = with_weights(graph, few, original, rounded=False)
        built, names = _with_switches(strip(mixed, set(rounding)), {}, self.sites)
        return Board(self, built, {b: names.get(b, b) for b in self.branches}, ()).noise(())

    def with_weight(self, node: str, weight: Array) -> Noise:
        """Of the float network with other weights in one node."""
        graph = self.plain.copy()
        for found in graph.nodes:
            if str(found.name) == node:
                value = add_constant(graph.model.graph, f"{node}.other", weight.astype(np.float32))
                found.replace_input_with(1, value)
        return self.noise_of(graph)


class Board:
    """A session with switches; made by :meth:`Bench.board`."""

    def __init__(self, bench: Bench, graph: Graph, names: Mapping[str, str], keys: tuple[str, ...]) -> None:
        self.bench, self.names, self.keys = bench, dict(names), keys
        self.runner = open_runner(graph, threads=1, integer=False, extra_outputs=list(names.values()))

    def noise(self, on: Collection[str], params: Mapping[str, Params] | None = None) -> Noise:
        """Round some of its sites and compare with the float answers.

        Args:
            on: Keys of the sites to round.
            params: What to round with where it is not what the graph says, by key.
        """
        switches: Arrays = {}
        for key in self.keys:
            site = self.bench.sites[key]
            scale, zero = (params or {}).get(key, (site.scale, site.zero))
            switches[_ON + key] = np.array(key in on)
            switches[_SCALE + key] = np.asarray(scale, np.float32)
            switches[_ZERO + key] = np.asarray(zero, site.zero.dtype)
        fed = ({**feed, **switches} for feed in self.bench.feeds)
        runs = run_all(self.runner, fed, workers=self.bench.threads)
        got = [{b: outputs[name] for b, name in self.names.items()} for outputs in runs]
        return compare(self.bench.wanted, got)


def compare(wanted: Sequence[Arrays], got: Sequence[Arrays]) -> Noise:
    """Noise of answers."""
    shares = np.ones((len(wanted), len(wanted[0])))
    cosines = np.zeros_like(shares)
    for i, (a, b) in enumerate(zip(wanted, got, strict=True)):
        for j, branch in enumerate(a):
            signal, found = a[branch].astype(np.float64).ravel(), b[branch].astype(np.float64).ravel()
            energy = max(float(signal @ signal), 1e-12)
            error = float(((found - signal) ** 2).sum()) / energy
            if np.isfinite(error):
                shares[i, j] = min(error, 1.0)
                cosines[i, j] = float(signal @ found) / max(np.sqrt(energy * float(found @ found)), 1e-12)
    branches = dict(zip(wanted[0], shares.mean(0).tolist(), strict=True))
    return Noise(branches, tuple(shares.mean(1).tolist()), float(cosines.mean()), float(cosines.min()))


def _with_switches(
    graph: Graph, switched: Mapping[str, Site], sites: Mapping[str, Site]
) -> tuple[Graph, dict[str, str]]:
    """The graph with switches, and what readers of a site's tensor read in it, by tensor."""
    result = graph.copy()
    main = result.model.graph
    names: dict[str, str] = {}
    for quantize in [n for n in main if n.op_type == "QuantizeLinear"]:
        key = str(quantize.outputs[0].name)
        behind = dequantizers(quantize)
        if key in sites and key not in switched:
            names.setdefault(sites[key].tensor, str(behind[0].outputs[0].name))
        if key not in switched:
            continue
        site = switched[key]
        chosen = _switch(main, quantize, behind, site)
        names.setdefault(site.tensor, chosen)
    return result, names


def _switch(main: ir.Graph, quantize: ir.Node, behind: Sequence[ir.Node], site: Site) -> str:
    """Put the switch of one site behind its DequantizeLinear nodes; the name of what readers read."""
    source = quantize.inputs[0]
    on = _input(main, _ON + site.key, ir.DataType.BOOL, ir.Shape([]))
    scale = _input(main, _SCALE + site.key, ir.DataType.FLOAT, None)
    zero = _input(main, _ZERO + site.key, ir.DataType.from_numpy(site.zero.dtype), None)
    rank = len(source.shape) if source is not None and source.shape is not None else 4
    made = []
    for number, node in enumerate(behind):
        real = node.outputs[0]
        uses = list(real.uses())
        choose = ir.node("Where", [on, real, source], name=f"{site.key}.switch.{number}")
        chosen = choose.outputs[0]
        chosen.name, chosen.shape, chosen.type = f"{site.key}{_AFTER}.{number}", real.shape, real.type
        main.insert_after(node, choose)
        for use in uses:
            use.node.replace_input_with(use.idx, chosen)
        if real.is_graph_output():
            position = next(i for i, v in enumerate(main.outputs) if v is real)
            chosen.name, real.name = real.name, f"{real.name}.rounded"
            main.outputs[position] = chosen
        made.append(str(chosen.name))
        _feed(node, scale, zero, rank)
    _feed(quantize, scale, zero, rank)
    return made[0]


def _feed(node: ir.Node, scale: ir.Value, zero: ir.Value, rank: int) -> None:
    node.replace_input_with(1, scale)
    if len(node.inputs) > 2:
        node.replace_input_with(2, zero)
    if "axis" not in node.attributes:
        node.attributes["axis"] = ir.AttrInt64("axis", channel_axis(rank))


def _input(main: ir.Graph, label: str, kind: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    value = ir.Value(name=label, shape=shape, type=ir.TensorType(kind))
    main.inputs.append(value)
    return value
