"""Carrying a pruning plan out on a graph, or only zeroing what it removes.

Both compute the same (to rounding), which :func:`verify` checks: :func:`apply` cuts, :func:`mask` keeps all
shapes and puts zeros where a removed channel is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Change, Graph, array
from edgekit.passes.edit import Names, add_constant, set_constant, static_shape
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.prune.channels import Ints, Labels, Role, analyse
from edgekit.prune.cut import Cut, drop_blocks, read_stage
from edgekit.prune.plan import PruningPlan, Stage
from edgekit.prune.rewrite import Rewriter

__all__ = ["Kept", "apply", "drop_blocks", "kept_positions", "mask", "verify"]

#: Largest relative difference between a pruned network and the masked one that counts as rounding.
TOLERANCE = 1e-4


def apply(graph: Graph, plan: PruningPlan) -> Graph:
    """The graph without what the plan removes; inputs and outputs stay as they are.

    Raises:
        ModelError: The plan was made on a network of another structure.
    """
    result = graph
    for stage in plan.parts:
        result, _ = _carry_out(result, stage)
    _check_outputs(graph, result)
    return Graph(result.model, graph.history).with_change(_change("prune", graph, plan, len(plan.tensors)))


def kept_positions(graph: Graph, plan: PruningPlan) -> Kept:
    """What stays of each tensor, computed ones included.

    Raises:
        ModelError: The plan was made on a network of another structure.
    """
    cuts = []
    result = graph
    for stage in plan.parts:
        result, cut = _carry_out(result, stage)
        cuts.append(cut)
    return Kept(tuple(cuts))


@dataclass(frozen=True)
class Kept:
    """What the stages of a plan keep, one after the other."""

    cuts: tuple[Cut, ...]

    def indices(self, tensor: str, axis: int) -> Ints | None:
        """Indices along an axis of a tensor of the original graph that stay; None where all do."""
        found: Ints | None = None
        for cut in self.cuts:
            kept = cut.kept(tensor, axis)
            if kept is not None:
                found = kept if found is None else found[kept]
        return found


def _carry_out(graph: Graph, stage: Stage) -> tuple[Graph, Cut]:
    cut = read_stage(graph, stage)
    result = cut.graph.copy()
    main = result.model.graph
    _cut_weights(main, cut)
    rewriter = Rewriter(main, cut)
    for node in list(main):
        rewriter.node(node)
    for node in main:
        for out in node.outputs:
            shape = static_shape(out)
            if out.name and shape is not None and str(out.name) in cut.channels.labels.axes:
                out.shape = ir.Shape(cut.shape(str(out.name), shape))
    for name, value in list(main.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del main.initializers[name]
    return infer_shapes(result), cut


def _cut_weights(main: ir.Graph, cut: Cut) -> None:
    for name, (_, axes) in cut.tensors().items():
        value = main.initializers[name]
        found = _constant(value)
        for axis, kept in axes.items():
            found = np.take(found, kept, axis)
        set_constant(value, np.ascontiguousarray(found))


def _constant(value: ir.Value) -> np.ndarray[Any, Any]:
    found = array(value)
    if found is None:
        raise ModelError("has no content", where=f"initializer '{value.name}'")
    return found


def _check_outputs(before: Graph, after: Graph) -> None:
    if before.inputs != after.inputs or before.outputs != after.outputs:
        raise ModelError(
            "pruning changed the shape of an output", hint="Please report this, with the model and the plan"
        )


def _change(name: str, graph: Graph, plan: PruningPlan, weights: int) -> Change:
    kept, total = sum(map(len, plan.groups.values())), sum(plan.sizes.values())
    same = graph.sha256() == plan.model_sha256
    details = {
        "units": total,
        "kept": kept,
        "weights": weights,
        "dropped": len(plan.dropped),
        "same_weights": same,
    }
    summary = f"{total - kept} of {total} units in {len(plan.groups)} groups removed"
    if plan.dropped:
        summary += f", {len(plan.dropped)} blocks left out"
    if not same:
        summary += "; the plan was made on other weights"
    return Change(name, summary, (), details)


def mask(graph: Graph, plan: PruningPlan) -> Graph:
    """The graph with zeros where the removed channels are read; all shapes stay. Dropped blocks are left out.

    Where two computed tensors are multiplied and summed over a removed axis, one is multiplied with zeros
    before.

    Raises:
        ModelError: The plan was made on a network of another structure.
    """
    keeps = kept_positions(graph, plan)
    result = drop_blocks(graph, plan.dropped).copy()
    main = result.model.graph
    labels = analyse(result, heads=plan.heads).labels
    zeroed = 0
    for use in labels.uses.values():
        kept = keeps.indices(use.tensor, use.axis)
        if use.role is Role.READS and kept is not None:
            value = main.initializers[use.tensor]
            found = _constant(value).copy()
            gone = np.setdiff1d(np.arange(found.shape[use.axis]), kept)
            np.moveaxis(found, use.axis, 0)[gone] = 0
            set_constant(value, found)
            zeroed += 1
    _mask_products(main, labels, keeps)
    return result.with_change(_change("mask", graph, plan, zeroed))


def _mask_products(main: ir.Graph, labels: Labels, keeps: Kept) -> None:
    names = Names(main)
    nodes = {str(node.outputs[0].name): node for node in main}
    for contraction in labels.contractions:
        kept = keeps.indices(contraction.tensor, contraction.axis)
        if kept is None:
            continue
        node = nodes[contraction.output]
        value = node.inputs[contraction.input]
        shape = None if value is None else static_shape(value)
        if value is None or shape is None:
            continue
        zeros = np.zeros(
            [size if axis == contraction.axis else 1 for axis, size in enumerate(shape)], np.float32
        )
        np.moveaxis(zeros, contraction.axis, 0)[kept] = 1
        name = names.fresh(f"{value.name}.masked")
        factor = add_constant(main, names.fresh(f"{value.name}.mask"), zeros)
        product = ir.Node("", "Mul", [value, factor], name=name)
        product.outputs[0].name = name
        product.outputs[0].type = value.type
        product.outputs[0].shape = ir.Shape(shape)
        main.insert_before(node, product)
        node.replace_input_with(contraction.input, product.outputs[0])


def verify(
    graph: Graph, plan: PruningPlan, *, tolerance: float = TOLERANCE, seeds: Sequence[int] = (0, 1)
) -> float:
    """Compare the pruned graph with the masked one on random inputs.

    Returns:
        The largest difference of any output, relative to its largest value.

    Raises:
        ModelError: It is above ``tolerance``, or the plan was made on another network.
    """
    from edgekit.passes.verify import compare, random_feeds
    from edgekit.session import open_runner

    pruned, masked = (open_runner(g, threads=1) for g in (apply(graph, plan), mask(graph, plan)))
    found = 0.0
    for seed in seeds:
        feeds = random_feeds(graph.inputs, seed)
        expected, outputs = masked.run(feeds), pruned.run(feeds)
        for name in expected:
            relative = compare(name, expected[name], outputs[name]).relative
            # Written so that NaN fails too.
            if not relative <= tolerance:
                raise ModelError(
                    f"the pruned network differs from the masked one by {relative:.2g} of its largest value",
                    where=f"output '{name}'",
                    hint="Please report this, with the model and the plan",
                )
            found = max(found, relative)
    return found
