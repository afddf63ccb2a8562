"""Single weights set to zero, the shape of the network kept.

Unstructured sparsity takes the weights that score lowest wherever they are. N:M sparsity keeps N of every M
successive weights along the input channels, for each output and each kernel tap by itself: the form that
sparse matrix units read (NVIDIA's want 2:4, arXiv:2104.08378). In a convolution's weight ``[O, I, kh, kw]``
the groups of M lie along ``I`` (per channel group), in a Gemm's and MatMul's along the inner axis: in each
case the innermost axis of the matrix product that a channels-last convolution becomes.

What it buys is a matter of where the network runs, see :mod:`edgekit.prune.compressed`. First and last layers
are treated like all others; ``exclude`` leaves weights whole.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import DataError, ModelError, UsageError
from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import int_attribute, set_constant

Array = np.ndarray[Any, Any]
#: Given a sparse graph and its masks, returns the graph with other weights, zeros in the same places.
Recover = Callable[[Graph, Mapping[str, Array]], Graph]
UNSTRUCTURED = "unstructured"
_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class SparsityScope(StrEnum):
    """Between which weights the lowest are found.

    Attributes:
        GLOBAL: All of the network's.
        LAYER: Those of each layer, which all get the same sparsity.
    """

    GLOBAL = "global"
    LAYER = "layer"


class Criterion(StrEnum):
    """What a weight is worth.

    Attributes:
        MAGNITUDE: ``|w|``.
        ACTIVATION: ``|w| rms(x) / rms(y)``, ``x`` the input channel it multiplies, ``y`` the layer's output:
            what is lost of the output, as a share. Within a layer the order is that of Sun et al. 2023
            (arXiv:2306.11695). Needs samples.
    """

    MAGNITUDE = "magnitude"
    ACTIVATION = "activation"


@dataclass(frozen=True)
class SparsifyOptions:
    """How many weights become zero, and which.

    Attributes:
        sparsity: Share of the weights that become zero, 0 to 1, those that are zero already included; biases
            and excluded weights do not count. None where the pattern says it.
        pattern: ``unstructured``, or ``N:M``: of every M weights along the input channels N stay.
        scope: Where the lowest weights are looked for; without meaning for N:M.
        criterion: What a weight is worth.
        exclude: Shell patterns of weight or node names that stay whole.
        steps: Reach it in so many steps by the cubic schedule, recovering in between.
    """

    sparsity: float | None = None
    pattern: str = UNSTRUCTURED
    scope: SparsityScope | str = SparsityScope.GLOBAL
    criterion: Criterion | str = Criterion.MAGNITUDE
    exclude: tuple[str, ...] = ()
    steps: int = 1

    def __post_init__(self) -> None:
        for name, kind in (("scope", SparsityScope), ("criterion", Criterion)):
            if getattr(self, name) not in list(kind):
                raise UsageError(
                    f"'{getattr(self, name)}' is unknown", where=name, valid=[k.value for k in kind]
                )
        structure = self.structure
        if structure is None and self.sparsity is None:
            raise UsageError("says nothing", where="sparsity", valid=("a share between 0 and 1",))
        if self.sparsity is not None and not 0.0 < self.sparsity < 1.0:
            raise UsageError(f"is {self.sparsity}", where="sparsity", valid=("a share between 0 and 1",))
        if structure is not None and self.sparsity is not None:
            share = 1 - structure[0] / structure[1]
            if abs(self.sparsity - share) > 1e-9:
                raise UsageError(
                    f"is {self.sparsity}, but {self.pattern} makes it {share:g}", where="sparsity"
                )
        if self.steps < 1:
            raise UsageError(f"is {self.steps}", where="steps", valid=("1 or more",))

    @property
    def structure(self) -> tuple[int, int] | None:
        """N and M; None for unstructured sparsity.

        Raises:
            UsageError: The pattern is neither.
        """
        if self.pattern == UNSTRUCTURED:
            return None
        found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", self.pattern)
        if found is None or int(found[1]) >= int(found[2]):
            valid = (UNSTRUCTURED, "2:4", "N:M with N below M")
            raise UsageError(f"'{self.pattern}' is no pattern", where="pattern", valid=valid)
        return int(found[1]), int(found[2])


@dataclass(frozen=True)
class SparsifyResult:
    """A sparse graph.

    Attributes:
        graph: The graph.
        masks: By weight name a bool array of its shape, False where it is zero; training and refit hold them.
        sparsity: Share of zeros among the weights that were considered.
        layers: The same for each weight.
        refused: Weights that were left whole and why.
        schedule: Sparsity after each step.
    """

    graph: Graph
    masks: dict[str, Array]
    sparsity: float
    layers: dict[str, float]
    refused: tuple[Refusal, ...] = ()
    schedule: tuple[float, ...] = field(default=())


def sparsify(
    graph: Graph,
    options: SparsifyOptions,
    feeds: Sequence[Mapping[str, Array]] = (),
    *,
    recover: Recover | None = None,
    threads: int = 0,
) -> SparsifyResult:
    """Set the least important weights to zero.

    Args:
        graph: A captured float graph; stays as it is.
        options: How many and which.
        feeds: Samples, for ``criterion = activation``.
        recover: Called after each step but the last, which the caller recovers.
        threads: Samples that run at the same time; 0 is one per core.

    Raises:
        UsageError: The pattern or share is impossible, or a pattern of ``exclude`` matches nothing.
        DataError: The criterion needs samples and there are none.
        ModelError: There is no weight to make sparse.
    """
    weights, refused = find_weights(graph, options)
    if not weights:
        reasons = "; ".join(f"{r.where}: {r.reason}" for r in refused[:3])
        raise ModelError(
            f"no weight can be made sparse{f' ({reasons})' if reasons else ''}", where="sparsify"
        )
    work, masks, schedule = graph, dict[str, Array](), list[float]()
    for step in range(1, options.steps + 1):
        scores = _scores(work, weights, options, feeds, threads)
        # What is zero stays zero, whatever recovery made of it.
        for name, mask in masks.items():
            scores[name] = np.where(mask, scores[name], -1.0)
        masks = _masks(scores, weights, options, step)
        work = apply_masks(work, masks)
        schedule.append(_share(masks))
        if recover is not None and step < options.steps:
            work = apply_masks(recover(work, masks), masks)
    layers = {name: 1.0 - float(mask.mean()) for name, mask in masks.items()}
    result = SparsifyResult(work, masks, schedule[-1], layers, tuple(refused), tuple(schedule))
    return _with_change(result, options)


def cubic(step: int, total: int, start: float, end: float) -> float:
    """Sparsity after ``step`` of ``total`` steps: Zhu & Gupta 2017 (arXiv:1710.01878), equation 1.

    It rises quickly while there is much to spare and slowly towards the end.

    Raises:
        UsageError: ``total`` is below 1, or ``step`` outside 0 to ``total``.
    """
    if total < 1:
        raise UsageError(f"{total} steps", where="schedule", valid=("1 or more",))
    if not 0 <= step <= total:
        raise UsageError(f"step {step} of {total}", where="schedule", valid=(f"0 to {total}",))
    return end + (start - end) * (1.0 - step / total) ** 3


def apply_masks(graph: Graph, masks: Mapping[str, Array]) -> Graph:
    """Set the weights to zero where their mask is False.

    Raises:
        UsageError: A weight does not exist or has another shape.
    """
    result = graph.copy()
    for name, mask in masks.items():
        value = result.model.graph.initializers.get(name)
        data = array(value)
        if value is None or data is None:
            raise UsageError(f"there is no weight '{name}'", where="mask")
        if data.shape != mask.shape:
            raise UsageError(
                f"the mask is {list(mask.shape)}, the weight {list(data.shape)}", where=f"weight '{name}'"
            )
        set_constant(value, np.where(mask, data, 0).astype(data.dtype))
    return result


@dataclass(frozen=True)
class Weight:
    """A weight that can be made sparse.

    Attributes:
        name: Its name.
        source: The tensor it multiplies.
        output: What comes out.
        axis: The axis along which its input channels lie.
        groups: Channel groups; along ``axis`` they follow each other only in a transposed convolution.
        channel_axis: Where the channels of ``source`` and ``output`` are.
        size: How many numbers it holds.
    """

    name: str
    source: str
    output: str
    axis: int
    groups: int
    channel_axis: int
    size: int


def find_weights(graph: Graph, options: SparsifyOptions) -> tuple[list[Weight], list[Refusal]]:
    """The weights that the options ask for, in execution order, and those left whole.

    Raises:
        UsageError: A pattern of ``exclude`` matches no weight.
    """
    found: dict[str, Weight] = {}
    refused: list[Refusal] = []
    unused = set(options.exclude)
    for node in graph.nodes:
        if node.op_type not in _OPS or node.domain or node.inputs[1] is None:
            continue
        name = str(node.inputs[1].name)
        matching = {
            p for p in options.exclude if any(fnmatch.fnmatchcase(n, p) for n in (name, str(node.name)))
        }
        unused -= matching
        if matching or name in found:
            continue
        weight = _weight(node, options.structure)
        if isinstance(weight, Weight):
            found[name] = weight
        else:
            refused.append(Refusal(name, weight))
    if unused:
        raise UsageError(
            f"{sorted(unused)} match no weight",
            where="exclude",
            valid=[*found, *(r.where for r in refused)][:20],
        )
    return list(found.values()), refused


def input_axis(node: ir.Node, rank: int) -> int:
    """The axis of a node's weight along which its input channels lie."""
    if node.op_type == "Conv":
        return 1
    if node.op_type == "ConvTranspose":
        return 0
    if node.op_type == "Gemm":
        return 1 if int_attribute(node, "transB", 0) else 0
    return rank - 2


def _weight(node: ir.Node, structure: tuple[int, int] | None) -> Weight | str:
    value, source = node.inputs[1], node.inputs[0]
    data = array(value)
    if data is None or value is None or source is None:
        return "is computed, not constant"
    if data.dtype.kind != "f":
        return f"is {data.dtype}, not floating-point"
    if data.ndim < 2:
        return "is a vector"
    axis, groups = input_axis(node, data.ndim), int_attribute(node, "group", 1)
    inputs = data.shape[axis] // (groups if node.op_type == "ConvTranspose" else 1)
    if structure is not None and inputs % structure[1]:
        each = " for each output" if groups > 1 else ""
        return f"has {inputs} input channel{'s' if inputs > 1 else ''}{each}: no blocks of {structure[1]}"
    channel_axis = 1 if node.op_type.startswith("Conv") else -1
    return Weight(
        str(value.name), str(source.name), str(node.outputs[0].name), axis, groups, channel_axis, data.size
    )


def _masks(
    scores: Mapping[str, Array], weights: Sequence[Weight], options: SparsifyOptions, step: int
) -> dict[str, Array]:
    structure = options.structure
    if structure is not None:
        kept, block = structure
        removed = round(cubic(step, options.steps, 0.0, float(block - kept)))
        return {w.name: block_mask(scores[w.name], block - removed, block, w.axis) for w in weights}
    share = cubic(step, options.steps, 0.0, options.sparsity or 0.0)
    if options.scope == SparsityScope.LAYER:
        return {
            w.name: _lowest(scores[w.name].reshape(-1), share).reshape(scores[w.name].shape) for w in weights
        }
    joined = _lowest(np.concatenate([scores[w.name].reshape(-1) for w in weights]), share)
    parts = np.split(joined, np.cumsum([w.size for w in weights])[:-1])
    return {w.name: part.reshape(scores[w.name].shape) for w, part in zip(weights, parts, strict=True)}


def _lowest(scores: Array, share: float) -> Array:
    """False for that share of the lowest scores, rounded to whole weights."""
    count = round(share * scores.size)
    mask = np.ones(scores.size, bool)
    mask[np.argsort(scores, kind="stable")[:count]] = False
    return mask


def block_mask(scores: Array, kept: int, block: int, axis: int) -> Array:
    """True for the ``kept`` highest of every ``block`` successive scores along ``axis``; the first of equals.

    Raises:
        UsageError: The axis is no multiple of ``block`` long.
    """
    if scores.shape[axis] % block:
        raise UsageError(f"{scores.shape[axis]} weights do not make blocks of {block}", where=f"axis {axis}")
    moved = np.moveaxis(scores, axis, -1)
    blocks = moved.reshape(-1, block)
    mask = np.zeros(blocks.shape, bool)
    np.put_along_axis(mask, np.argsort(-blocks, axis=1, kind="stable")[:, :kept], True, axis=1)
    return np.ascontiguousarray(np.moveaxis(mask.reshape(moved.shape), -1, axis))


def _scores(
    graph: Graph,
    weights: Sequence[Weight],
    options: SparsifyOptions,
    feeds: Sequence[Mapping[str, Array]],
    threads: int,
) -> dict[str, Array]:
    constants = graph.model.graph.initializers
    found = {}
    for weight in weights:
        data = array(constants[weight.name])
        if data is None:
            raise ModelError("is not constant", where=f"weight '{weight.name}'")
        found[weight.name] = np.abs(data.astype(np.float32))
    if options.criterion == Criterion.MAGNITUDE:
        return found
    if not len(feeds):
        raise DataError("there are no samples", where="criterion = activation")
    names = list(dict.fromkeys(name for w in weights for name in (w.source, w.output)))
    power = _power(
        graph, names, {n: w.channel_axis for w in weights for n in (w.source, w.output)}, feeds, threads
    )
    for weight in weights:
        gain = np.sqrt(power[weight.source] / max(float(power[weight.output].mean()), 1e-30))
        found[weight.name] *= _along(gain, weight, found[weight.name].shape)
    return found


def _along(gain: Array, weight: Weight, shape: tuple[int, ...]) -> Array:
    """A figure for each input channel, laid out to multiply the weight."""
    rank = len(shape)
    if weight.channel_axis == 1 and weight.axis == 1 and weight.groups > 1:
        # A grouped convolution's output o reads the channels of its own group.
        split = gain.reshape(weight.groups, shape[1])
        return np.repeat(split, shape[0] // weight.groups, axis=0).reshape(*shape[:2], *([1] * (rank - 2)))
    return gain.reshape([-1 if axis == weight.axis else 1 for axis in range(rank)]).astype(np.float32)


def _power(
    graph: Graph,
    names: Sequence[str],
    axes: Mapping[str, int],
    feeds: Sequence[Mapping[str, Array]],
    threads: int,
) -> dict[str, Array]:
    """Mean square of every channel of some tensors, over samples and positions."""
    from edgekit.session import open_runner, run_all

    given = {spec.name for spec in graph.inputs}
    runner = open_runner(graph, threads=1, extra_outputs=[n for n in names if n not in given])
    total = dict.fromkeys(names, np.zeros(1))
    for feed, outputs in zip(feeds, run_all(runner, feeds, workers=threads), strict=True):
        for name in names:
            values = np.asarray(feed[name] if name in given else outputs[name], np.float64)
            rest = tuple(a for a in range(values.ndim) if a != axes[name] % values.ndim)
            total[name] = total[name] + (values**2).mean(rest) / len(feeds)
    return total


def _share(masks: Mapping[str, Array]) -> float:
    """Share of the weights that are masked."""
    return 1.0 - sum(int(m.sum()) for m in masks.values()) / sum(m.size for m in masks.values())


def _with_change(result: SparsifyResult, options: SparsifyOptions) -> SparsifyResult:
    summary = f"{result.sparsity:.1%} of {sum(m.size for m in result.masks.values())} weights set to zero"
    details = {
        "options": asdict(options),
        "sparsity": result.sparsity,
        "layers": result.layers,
        "schedule": list(result.schedule),
    }
    change = Change("sparsify", f"{summary}, {options.pattern}", result.refused, details)
    return SparsifyResult(
        result.graph.with_change(change),
        result.masks,
        result.sparsity,
        result.layers,
        result.refused,
        result.schedule,
    )
