"""The rungs of the int8 ladder on a real model, each by itself, beside what other quantizers reached.

    python tests/bench/quality.py yolox MODEL.onnx --data DIR --preprocess …
        --images DIR --annotations FILE.json
    python tests/bench/quality.py face MODEL.onnx --data DIR --preprocess … [--held-out 100]

Of ``face`` the last samples are held out: people that no rung has seen. The others' figures are recorded in
``quality_peers.toml`` with tool, version and settings. Peak memory is that of the whole process so far.
"""

from __future__ import annotations

import argparse
import resource
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.capture import capture
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.graph import Graph
from edgekit.measure.decode import decoder
from edgekit.measure.detection import evaluate_detection
from edgekit.pipeline.qat_step import refine
from edgekit.pipeline.steps import input_ranges
from edgekit.quantize.quantize import Options, QuantizeResult, quantize
from edgekit.recipe import QatSection
from edgekit.registry import load_target
from edgekit.session import open_runner, run_all

PEERS = Path(__file__).with_name("quality_peers.toml")
#: Options of each way, and whether a training follows.
WAYS: Mapping[str, tuple[dict[str, Any], bool]] = {
    "plain": ({"max_raised": 0, "reconstruct_seconds": 0.0}, False),
    "reconstruct": ({"max_raised": 0, "target_db": 99.0}, False),
    "mixed": ({"reconstruct_seconds": 0.0}, False),
    "the ladder": ({}, False),
    "plain, then qad": ({"max_raised": 0, "reconstruct_seconds": 0.0}, True),
}


@dataclass(frozen=True)
class Bench:
    """One model with what it is calibrated and measured on."""

    args: argparse.Namespace
    graph: Graph
    preprocess: Preprocess

    def made(self, options: Mapping[str, Any], train: bool) -> QuantizeResult:
        """The network, quantized in one way."""
        samples = open_samples(self.args.data, self.graph.inputs, self.preprocess, limit=self._known())
        scheme = load_target(self.args.target).scheme
        if scheme is None:
            raise SystemExit(f"{self.args.target} does not quantize")
        chosen = Options(**{"reconstruct_seconds": self.args.seconds, **options})
        result = quantize(
            self.graph,
            scheme,
            lambda: (sample.feeds for sample in samples),
            chosen,
            input_ranges=input_ranges(self.graph.inputs, self.preprocess, samples),
            total=samples.count,
        )
        if train:
            section = QatSection(seconds=self.args.qad_seconds, rate=self.args.rate)
            result, _ = refine(result, self.graph, samples, section, preprocess=self.preprocess)
        return result

    def _known(self) -> int | None:
        if self.args.task == "yolox":
            return None
        count = open_samples(self.args.data, self.graph.inputs, self.preprocess).count
        return None if count is None else count - self.args.held_out

    def figures(self, graph: Graph) -> dict[str, float]:
        """mAP, or the cosine to float of unseen people."""
        if self.args.task == "yolox":
            samples = open_samples(self.args.images, self.graph.inputs, self.preprocess)
            found = evaluate_detection(
                open_runner(graph), samples, self.args.annotations, decoder("yolox")
            ).measurements()
            return {name: found[name].value for name in ("mAP", "mAP50")}
        unseen = [s.feeds for s in open_samples(self.args.data, self.graph.inputs, self.preprocess)]
        unseen = unseen[len(unseen) - self.args.held_out :]
        cosines = np.array(list(_cosines(self.graph, graph, unseen)))
        return {"cosine": float(cosines.mean()), "least": float(cosines.min())}


def main() -> None:
    args = _arguments()
    graph = capture(str(args.model)).graph
    bench = Bench(args, graph, Preprocess.parse(args.preprocess))
    reference = bench.figures(graph)
    print(f"{args.task}: {args.model.name} for {args.target}, float {_shown(reference)}", flush=True)
    for name, (options, train) in WAYS.items():
        if args.ways and name not in args.ways:
            continue
        start = time.perf_counter()
        result = bench.made(options, train)
        seconds = time.perf_counter() - start
        found = bench.figures(result.graph)
        if "mAP" in found:
            found["lost"] = reference["mAP"] - found["mAP"]
        raised = f"{len(result.raised)} tensors above 8 bits" if result.raised else "8 bits"
        rungs = " → ".join(f"{rung.name} {rung.db:.1f} dB {rung.seconds:.0f} s" for rung in result.ladder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(
            f"  edgekit, {name}: {_shown(found)}, {seconds:.0f} s, {raised}, {peak:.0f} MB; {rungs}",
            flush=True,
        )
    print(f"recorded, see {PEERS.name}:")
    for entry in tomllib.loads(PEERS.read_text(encoding="utf-8"))[args.task]:
        kept = "8 bits" if entry["eight_bits"] else "some in more than 8 bits"
        shown = {key: entry[key] for key in ("lost", "cosine", "least") if key in entry}
        time_text = f", {entry['seconds']:.0f} s" if "seconds" in entry else ""
        print(f"  {entry['tool']}, {entry['how']}: {_shown(shown)}{time_text}, {kept}")


def _cosines(reference: Graph, candidate: Graph, feeds: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    one, other = open_runner(reference, threads=1), open_runner(candidate, threads=1)
    for a, b in zip(run_all(one, feeds), run_all(other, feeds), strict=True):
        x, y = next(iter(a.values())).ravel(), next(iter(b.values())).ravel()
        yield float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _shown(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("yolox", "face"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", required=True)
    parser.add_argument("--images")
    parser.add_argument("--annotations")
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--target", default="ort-cpu:host-1t")
    parser.add_argument("--seconds", type=float, default=240.0, help="for reconstruction")
    parser.add_argument("--qad-seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=None, help="of the training")
    parser.add_argument("--ways", nargs="*", choices=tuple(WAYS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
