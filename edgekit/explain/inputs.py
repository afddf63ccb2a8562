"""Whether images become inputs as the network wants them, told from the float network alone.

Every candidate preprocessing is run without labels and judged by what training leaves in a network.

1. *Scale, mean and std*: batch normalization, also folded into the weights, centred every channel before its
   activation: over images like those of the training, the mean of a channel is small beside its standard
   deviation. With inputs of another scale the biases no longer fit. The *imbalance* is the median over the
   layers of each layer's median of |mean| / std; the right scaling has the least. A candidate is named when
   its imbalance is smaller by a margin, in every quarter of the images.
2. *Order of the colours*: the imbalance hardly moves, since red and blue are alike in most photographs. The
   other order is named when it has the smaller imbalance in every quarter and the network is surer of its
   answers, by paired differences over the images: the logarithm of the largest scores behind a Sigmoid or
   Softmax, of the length of anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgekit.data.base import Sample
from edgekit.data.preprocess import Preprocess, image_shape
from edgekit.graph import Graph, array
from edgekit.quantize.judge import MOVES, output_branches
from edgekit.quantize.probe import Probe
from edgekit.session import open_runner, run_all

Array = np.ndarray[Any, Any]

#: Largest scores of a branch that are looked at.
TOP = 20
#: Imbalance over that of the given preprocessing below which another scale is named.
SCALE_RATIO = 0.87
#: Imbalance over the least up to which a candidate is as good, so that a plainer one is taken.
PLAIN = 1.05
#: Paired differences over their standard error from which an order of colours makes the answers surer; the
#: same over the layers for the imbalance.
SURE = 1.5
SURE_LAYERS = 2.0
#: Images that scales and orders of colours are compared on, and the fewest that say anything.
LOOKED_AT, LOOKED_AT_COLOR, FEWEST = 16, 96, 4
#: Convolutions below which a network has too few layers to tell.
FEWEST_LAYERS = 3

#: Outputs of the probed graph.
_MEANS, _SQUARES = "edgekit.means", "edgekit.squares"

_SCALES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("0 to 255", {"divide": 1.0, "mean": 0.0, "std": 1.0}),
    ("0 to 1", {"divide": 255.0, "mean": 0.0, "std": 1.0}),
    ("-1 to 1", {"divide": 255.0, "mean": 0.5, "std": 0.5}),
    (
        "ImageNet mean and std",
        {"divide": 255.0, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    ),
    ("ImageNet mean, 0 to 255", {"divide": 1.0, "mean": (123.68, 116.78, 103.94), "std": 1.0}),
)


@dataclass(frozen=True)
class Candidate:
    """One way to make inputs.

    Attributes:
        label: In words.
        option: For ``--preprocess``; empty where the samples are arrays.
        preprocess: For images; None for arrays.
        convert: For arrays: from the given input to this one's; None for images.
    """

    label: str
    option: str
    preprocess: Preprocess | None = None
    convert: Callable[[Array], Array] | None = None


@dataclass(frozen=True)
class Mismatch:
    """A preprocessing that fits the network better than the given one.

    Attributes:
        candidate: The better one.
        reasons: What speaks for it, in words.
        samples: Images compared.
        imbalance: By candidate; ``given`` is the given one.
        evidence: The other figures, by name.
    """

    candidate: Candidate
    reasons: tuple[str, ...]
    samples: int
    imbalance: dict[str, float]
    evidence: dict[str, float]


def find_mismatch(
    graph: Graph,
    samples: Sequence[Sample],
    given: Preprocess,
    *,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Mismatch | None:
    """The preprocessing that fits clearly better than the given one; None when there is none.

    Args:
        graph: The float network.
        samples: Images, or arrays of an image's shape; of anything else nothing is said.
        given: How they are preprocessed.
        threads: Samples that run at the same time; 0 is one per core.
        progress: Called with candidates done and candidates in all.
    """
    scales, swap = candidates(graph, samples, given)
    if len(samples) < FEWEST or not (scales or swap):
        return None
    judge = _Judge(graph, threads)
    if judge.layers < FEWEST_LAYERS:
        return None
    few = samples[:: -(-len(samples) // LOOKED_AT)]
    start = Candidate("given", "", given if samples[0].image is not None else None)
    found = [(c, judge.look(c, few)) for c in (start, *scales)]
    if progress is not None:
        progress(len(found), len(found) + 1)
    before = found[0][1]
    table = {c.label: look.imbalance for c, look in found}
    least = min(look.imbalance for _, look in found)
    # The plainest of those that are equally good; they come first.
    best, look = next((c, look) for c, look in found if look.imbalance <= PLAIN * least)
    reasons, evidence = [], {}
    fits = look.imbalance <= SCALE_RATIO * before.imbalance
    if best is not start and fits and (look.quarters < before.quarters).all():
        evidence["imbalance_given"], evidence["imbalance"] = before.imbalance, look.imbalance
        reasons.append(
            f"channels lie {look.imbalance:.2f} of their spread off centre, {before.imbalance:.2f} as given"
        )
    else:
        best = start
    if swap is not None:
        many = samples[:: -(-len(samples) // LOOKED_AT_COLOR)]
        best = _swapped(judge, best, swap(best), many, reasons, evidence)
    return Mismatch(best, tuple(reasons), len(few), table, evidence) if reasons else None


def _swapped(
    judge: _Judge,
    now: Candidate,
    other: Candidate,
    samples: Sequence[Sample],
    reasons: list[str],
    evidence: dict[str, float],
) -> Candidate:
    """``other``, which swaps the colours of ``now``, if it is better; the reasons are added."""
    a, b = judge.look(now, samples), judge.look(other, samples)
    layers = _sureness(np.log(a.layers) - np.log(b.layers))
    answers = b.certainty - a.certainty
    sure = _sureness(answers)
    if layers < SURE_LAYERS or sure < SURE or not (b.quarters < a.quarters).all():
        return now
    gain = float(np.exp(answers.mean()) - 1.0)
    evidence.update(color_answers=gain, color_sureness=sure, color_sureness_layers=layers)
    reasons.append(
        f"with red and blue the other way round its answers are {gain:.0%} surer ({sure:.1f} standard "
        f"errors, on {len(samples)} images) and its channels better centred ({layers:.1f})"
    )
    return other


def _sureness(gains: Array) -> float:
    spread = float(gains.std(ddof=1)) / np.sqrt(len(gains))
    return float(gains.mean() / max(spread, 1e-9)) if abs(gains.mean()) > 1e-7 else 0.0


def candidates(
    graph: Graph, samples: Sequence[Sample], given: Preprocess
) -> tuple[list[Candidate], Callable[[Candidate], Candidate] | None]:
    """What else the samples could have been scaled to, and what swaps the colours of a candidate."""
    inputs = graph.inputs
    image = image_shape(inputs[0].shape, given.layout) if len(inputs) == 1 else None
    if image is None or not samples:
        return [], None
    floating = np.issubdtype(inputs[0].dtype, np.floating)
    if samples[0].image is None:
        axis = 1 if image.channels_first else 3
        return (_array_scales() if floating else []), _array_swap(axis) if image.channels == 3 else None
    found: list[Candidate] = []
    for label, scale in _SCALES if floating else ():
        if image.channels == 1 and any(isinstance(v, tuple) for v in scale.values()):
            continue
        values = {k: _ordered(v, given.color) for k, v in scale.items()}
        candidate = _image_candidate(label, given, values)
        if candidate.preprocess != given:
            found.append(candidate)
    return found, _swap_image if image.channels == 3 else None


def _swap_image(now: Candidate) -> Candidate:
    how = now.preprocess
    if how is None:
        raise ValueError("a candidate for images has a preprocessing")
    color = "bgr" if how.color == "rgb" else "rgb"
    swapped = {"color": color, "mean": how.mean[::-1], "std": how.std[::-1]}
    label = f"{now.label}, {color.upper()}" if now.label != "given" else color.upper()
    return _image_candidate(label, how, swapped)


def _ordered(value: Any, color: str) -> Any:
    return value[::-1] if isinstance(value, tuple) and color == "bgr" else value


def _image_candidate(label: str, given: Preprocess, values: Mapping[str, Any]) -> Candidate:
    made = Preprocess.read({**given.model_dump(), **values})
    return Candidate(label, option_text(made), preprocess=made)


def option_text(preprocess: Preprocess) -> str:
    """A preprocessing as ``--preprocess`` takes it; what is as by default is left out."""
    plain, parts = Preprocess(), []
    for key in Preprocess.model_fields:
        value = getattr(preprocess, key)
        if value == getattr(plain, key):
            continue
        if isinstance(value, tuple):
            numbers = value[:1] if len(set(value)) == 1 else value
            value = "/".join(f"{v:g}" for v in numbers)
        parts.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    return ",".join(parts) or "color=rgb,divide=255"


def _array_scales() -> list[Candidate]:
    def scaled(factor: float, shift: float = 0.0) -> Callable[[Array], Array]:
        return lambda x: (x * np.float32(factor) + np.float32(shift)).astype(x.dtype)

    return [
        Candidate("values times 255", "", convert=scaled(255.0)),
        Candidate("values divided by 255", "", convert=scaled(1 / 255)),
        Candidate("values from 0 to 1 brought to -1 to 1", "", convert=scaled(2.0, -1.0)),
        Candidate("values from -1 to 1 brought to 0 to 1", "", convert=scaled(0.5, 0.5)),
    ]


def _array_swap(axis: int) -> Callable[[Candidate], Candidate]:
    def swap(now: Candidate) -> Candidate:
        before = now.convert or (lambda x: x)
        words = "channels in the other order"
        label = words if now.label == "given" else f"{now.label}, {words}"
        return Candidate(label, "", convert=lambda x: np.ascontiguousarray(np.flip(before(x), axis)))

    return swap


def _made(candidate: Candidate, sample: Sample, graph: Graph) -> Array:
    spec = graph.inputs[0]
    if candidate.preprocess is not None and sample.image is not None:
        return candidate.preprocess.apply(sample.image, spec.shape, spec.dtype)[0]
    given = sample.feeds[spec.name]
    return candidate.convert(given) if candidate.convert is not None else given


@dataclass(frozen=True)
class _Look:
    """How the network takes one candidate.

    Attributes:
        layers: Imbalance of each layer.
        quarters: Imbalance on each quarter of the samples.
        certainty: Of each sample's answers.
    """

    layers: Array
    quarters: Array
    certainty: Array

    @property
    def imbalance(self) -> float:
        return float(np.median(self.layers))


def convert(candidate: Candidate, sample: Sample, graph: Graph) -> Sample:
    """A sample as a candidate makes it."""
    return replace(sample, feeds={**sample.feeds, graph.inputs[0].name: _made(candidate, sample, graph)})


class _Judge:
    def __init__(self, graph: Graph, threads: int) -> None:
        self.graph, self.threads = graph, threads
        probe = Probe(graph)
        layers = [
            n.outputs[0]
            for n in probe.main
            if n.op_type == "Conv" and array(n.inputs[1]) is not None and len(n.outputs[0].shape or ()) == 4
        ]
        shapes = [probe.shape(str(v.name)) for v in layers]
        self.layers = len(layers)
        self.starts = np.cumsum([s[1] for s in shapes])[:-1]
        self.sizes = np.repeat([s[2] * s[3] for s in shapes], [s[1] for s in shapes])
        values = graph.values()
        self.branches = output_branches(graph)
        self.scores = [b for b in self.branches if _is_score(values[b])]
        if not layers:
            return
        model = probe.finish(
            {
                _MEANS: [probe.reduce("ReduceMean", v, 4) for v in layers],
                _SQUARES: [probe.reduce("ReduceSumSquare", v, 4) for v in layers],
            }
        )
        self.runner = open_runner(model, threads=1, extra_outputs=self.scores or self.branches)

    def look(self, candidate: Candidate, samples: Sequence[Sample]) -> _Look:
        spec = self.graph.inputs[0]
        feeds = ({**s.feeds, spec.name: _made(candidate, s, self.graph)} for s in samples)
        runs = list(run_all(self.runner, feeds, workers=self.threads))
        means = np.stack([r[_MEANS] for r in runs]).astype(np.float64)
        squares = np.stack([r[_SQUARES] for r in runs]).astype(np.float64) / self.sizes
        quarters = [float(np.median(self._imbalance(means[i::4], squares[i::4]))) for i in range(4)]
        return _Look(
            self._imbalance(means, squares), np.array(quarters), np.array([self._certainty(r) for r in runs])
        )

    def _imbalance(self, means: Array, squares: Array) -> Array:
        mean = means.mean(0)
        spread = np.sqrt(np.maximum(squares.mean(0) - mean**2, 1e-12))
        ratios = np.nan_to_num(np.abs(mean) / spread, nan=1e6)
        return np.array([max(float(np.median(part)), 1e-6) for part in np.split(ratios, self.starts)])

    def _certainty(self, run: Mapping[str, Array]) -> float:
        if self.scores:
            return float(np.mean([_largest(run[b]) for b in self.scores]))
        return float(np.mean([np.log(max(float(np.linalg.norm(run[b])), 1e-9)) for b in self.branches]))


def _is_score(value: Any) -> bool:
    producer = value.producer()
    while producer is not None and producer.op_type in MOVES and producer.op_type != "Concat":
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type in ("Sigmoid", "Softmax")


def _largest(scores: Array) -> float:
    flat = scores.ravel()
    top = np.sort(flat)[-min(TOP, max(1, len(flat) // 10)) :]
    return float(np.log(max(float(np.nan_to_num(top).mean()), 1e-9)))
