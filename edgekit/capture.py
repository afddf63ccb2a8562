"""Turning whatever the user has into a :class:`Graph`: float32, static shapes, one opset, nothing
superfluous.

The result is compared with the original on random inputs before anything is built on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.measure.result import Measurement, Method
from edgekit.passes.edit import has_subgraph, is_false, static_shape
from edgekit.passes.focus_to_conv import focus_to_conv
from edgekit.passes.fold_batchnorm import fold_batchnorm
from edgekit.passes.fold_constants import fold_constants
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.mean_to_pool import mean_to_pool
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.pin_shapes import pin_shapes
from edgekit.passes.remove_identities import remove_identities
from edgekit.passes.remove_unused import remove_unused
from edgekit.passes.remove_zero_bias import remove_zero_bias
from edgekit.passes.strip_notes import strip_notes
from edgekit.passes.upgrade_opset import upgrade_opset
from edgekit.passes.verify import Difference, compare, random_feeds, worst
from edgekit.passes.weight_inputs import weight_inputs
from edgekit.passes.widen_floats import OTHER_FLOATS, widen_floats
from edgekit.sources import Arrays, Source, read

#: Largest difference from the original that counts as rounding, relative to the output's largest value.
TOLERANCE = 1e-3

#: The same where the original computes in float16, whose own steps are about this large after many layers.
TOLERANCE_FLOAT16 = 3e-2

_RUNS = 2


@dataclass(frozen=True)
class Captured:
    """A network ready for all further passes.

    Attributes:
        graph: Float32, static shapes, at :data:`edgekit.graph.OPSET`; its history says what was changed.
        source: Where it came from, as the user wrote it.
        sha256: Hash of the file and its weight files; for a callable, of the exported model.
        difference: Largest absolute difference from the original over all outputs.
    """

    graph: Graph
    source: str
    sha256: str
    difference: Measurement


def capture(
    source: str,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    folder: Path | None = None,
    fold: bool = True,
) -> Captured:
    """Read a network and bring it into the form that everything else works on.

    Args:
        source: A ``.onnx`` or ``.pt2`` file, or ``package.module:callable`` returning an ``nn.Module``.
        input_shapes: Shape by input name, for dimensions that the model leaves open. A module needs all of
            them, in the order of its ``forward``.
        folder: What relative paths start from, and where a callable's package may lie.
        fold: Fold batch normalizations into the layers before them; without it they stay and can train.

    Raises:
        UsageError: ``source`` or ``input_shapes`` has a wrong value.
        ModelError: The network cannot be read or used, or it no longer computes the same after cleaning.
    """
    origin = read(source, input_shapes, folder)
    graph = clean(origin.graph, input_shapes, fold=fold)
    return Captured(graph, source, origin.sha256, _difference(origin, graph))


def clean(
    graph: Graph, input_shapes: Mapping[str, tuple[int, ...]] | None = None, *, fold: bool = True
) -> Graph:
    """The straight line from a graph as exported to one that all other passes can rely on.

    With ``fold`` False batch normalizations stay.

    Raises:
        UsageError: ``input_shapes`` does not fit the model.
        ModelError: Sizes stay unknown, or the network has control flow that depends on its input.
    """
    graph = weight_inputs(graph)
    graph = pin_shapes(graph, input_shapes)
    graph = widen_floats(graph)
    graph = fold_constants(graph)
    _check_straight(graph)
    graph = upgrade_opset(graph)
    graph = remove_identities(graph)
    graph = fold_batchnorm(graph) if fold else remove_zero_bias(graph)
    graph = remove_unused(graph)
    graph = strip_notes(graph)
    graph = name_nodes(graph)
    graph = infer_shapes(graph)
    _check_static(graph)
    graph = mean_to_pool(graph)
    return focus_to_conv(graph)


def _check_straight(graph: Graph) -> None:
    for node in graph.nodes:
        if has_subgraph(node):
            raise ModelError(
                f"{node.op_type} depends on the input; only a network without control flow can be deployed",
                where=f"node '{node.name or node.outputs[0].name}'",
                hint="Export the part of the network without it, or rewrite it without such branches",
            )
        if node.op_type == "Dropout" and len(node.inputs) > 2 and not is_false(array(node.inputs[2])):
            raise ModelError(
                "Dropout is in training mode",
                where=f"node '{node.name or node.outputs[0].name}'",
                hint="Call model.eval() before export",
            )


def _check_static(graph: Graph) -> None:
    """Name the first node whose output size is not known before the network runs."""
    for node in graph.nodes:
        for out in node.outputs:
            if out.name and (out.dtype is None or static_shape(out) is None):
                raise ModelError(
                    f"the size of its output '{out.name}' depends on the data",
                    where=f"{node.op_type} node '{node.name}'",
                    hint="End the network before this node and do the rest outside",
                )


def _difference(origin: Source, graph: Graph) -> Measurement:
    """Run original and result on the same seeded inputs."""
    from edgekit.session import open_runner

    inputs = {str(v.name): v for v in origin.graph.model.graph.inputs}
    runner = open_runner(graph, threads=1)
    runs: list[dict[str, Difference]] = []
    for seed in range(_RUNS):
        feeds = random_feeds(graph.inputs, seed)
        original_feeds = {}
        for name, values in feeds.items():
            dtype = inputs[name].dtype
            if dtype in OTHER_FLOATS:
                original_feeds[name] = values.astype(dtype.numpy())
                feeds[name] = original_feeds[name].astype(np.float32)
            else:
                original_feeds[name] = values
        expected = _run_original(origin, original_feeds)
        found = runner.run(feeds)
        runs.append({name: compare(name, expected[name], found[name]) for name in found})
    differences = worst(runs)
    tolerance = TOLERANCE_FLOAT16 if _computes_in_float16(origin.graph) else TOLERANCE
    for difference in differences:
        # Written so that NaN fails too. Integers (an arg max) may flip where two values tie: one in 100.
        if not difference.relative <= (0.01 if difference.mismatched else tolerance):
            raise ModelError(
                f"the converted network differs from the original by {difference.max_absolute:.3g} "
                f"(values reach {difference.magnitude:.3g}); a conversion went wrong",
                where=f"output '{difference.output}'",
                hint="Please report this, with the model",
            )
    return Measurement(
        value=max((d.max_absolute for d in differences), default=0.0),
        unit="",
        method=Method.HOST,
        spread={"max_relative": max((d.relative for d in differences), default=0.0), "runs": float(_RUNS)},
        note=f"largest difference of any output from {origin.runner}, on {_RUNS} seeded random inputs",
    )


def _run_original(origin: Source, feeds: Arrays) -> Arrays:
    try:
        return origin.run(feeds)
    except ModelError:
        raise
    # The runtime's own classes share no public base, and a module may raise anything.
    except Exception as error:
        lines = str(error).strip().splitlines()
        shapes = ", ".join(f"{name} {'x'.join(map(str, values.shape))}" for name, values in feeds.items())
        raise ModelError(
            f"the original does not run with these inputs ({shapes}): {lines[0] if lines else error!r}",
            hint="Exported models often work only with the sizes they were exported with: set --input-shape",
        ) from error


def _computes_in_float16(graph: Graph) -> bool:
    main = graph.model.graph
    values = (*main.inputs, *main.initializers.values())
    return any(v.dtype == ir.DataType.FLOAT16 for v in values)
