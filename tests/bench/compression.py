"""What pruning costs and what refitting and distillation bring back, on a real model with unlabelled images.

    python tests/bench/compression.py detection MODEL.onnx --data IMAGES --images VAL --annotations VAL.json \
        --decode yolox --macs 0.9 0.8 --seconds 0 60 240 [--preprocess …]
    python tests/bench/compression.py verification MODEL.onnx --data PEOPLE --people 10 --macs 0.65 0.5 \
        --seconds 0 90 [--preprocess …]

``verification`` trains on the first so many people's folders and tests on the others. Every budget of seconds
is a training of its own, after the same pruning and refit; 0 is the refit alone. The last column is the
latency of the original over that of the pruned network, float, 1 thread, timed in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edgekit
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.graph import Graph
from edgekit.measure.decode import decoder
from edgekit.measure.detection import evaluate_detection
from edgekit.measure.latency import Effort, compare
from edgekit.measure.verification import evaluate_verification
from edgekit.progress import PlainReporter, Reporter
from edgekit.session import open_runner

Score = Callable[[Graph], dict[str, float]]


def main() -> None:
    args = _arguments()
    graph = edgekit.load(args.model)
    preprocess = Preprocess.parse(args.preprocess) if args.preprocess else Preprocess()
    with tempfile.TemporaryDirectory() as folder:
        data, score = _material(args, graph, preprocess, Path(folder))
        _row("original", 0.0, graph, graph, score(graph), None)
        reporter = PlainReporter() if args.verbose else Reporter()
        for share in args.macs:
            _curve(args, graph, share, data, preprocess, score, reporter)


def _curve(
    args: argparse.Namespace,
    graph: Graph,
    share: float,
    data: str,
    preprocess: Preprocess,
    score: Score,
    reporter: Reporter,
) -> None:
    start = time.perf_counter()
    options: dict[str, Any] = {"macs": share, "preprocess": preprocess, "reporter": reporter}
    options |= {key: value for key, value in (("steps", args.steps), ("align", args.align)) if value}
    if args.bare:
        bare = edgekit.prune(graph, data, recover="none", **options)
        _row(
            f"{share:.0%} MACs, pruned",
            time.perf_counter() - start,
            graph,
            bare.graph,
            score(bare.graph),
            None,
        )
        start = time.perf_counter()
    pruned = edgekit.prune(graph, data, **options)
    spent = time.perf_counter() - start
    times = _faster(graph, pruned.graph)
    _row(f"{share:.0%} MACs, refit", spent, graph, pruned.graph, score(pruned.graph), times)
    for seconds in args.seconds:
        if not seconds:
            continue
        start = time.perf_counter()
        made = edgekit.distill(
            pruned.graph,
            graph,
            data,
            plan=pruned.plan,
            seconds=seconds,
            preprocess=preprocess,
            reporter=reporter,
        )
        total = spent + time.perf_counter() - start
        _row(f"{share:.0%} MACs, distilled {seconds:g} s", total, graph, made.graph, score(made.graph), None)


def _material(
    args: argparse.Namespace, graph: Graph, preprocess: Preprocess, folder: Path
) -> tuple[str, Score]:
    """Where the unlabelled images are, and what a network scores."""
    if args.task == "detection":
        decode = decoder(args.decode)

        def detection(candidate: Graph) -> dict[str, float]:
            samples = open_samples(args.images, graph.inputs, preprocess)
            found = evaluate_detection(open_runner(candidate, threads=1), samples, args.annotations, decode)
            return {"mAP": found.map, "mAP50": found.map50}

        return args.data, detection
    people = sorted(path for path in Path(args.data).iterdir() if path.is_dir())
    for name, part in (("train", people[: args.people]), ("test", people[args.people :])):
        (folder / name).mkdir()
        for person in part:
            (folder / name / person.name).symlink_to(person.absolute())

    def verification(candidate: Graph) -> dict[str, float]:
        samples = open_samples(str(folder / "test"), graph.inputs, preprocess)
        found = evaluate_verification(open_runner(candidate, threads=1), samples)
        return {"AUC": found.auc, "TAR@FAR1e-3": found.tar}

    return str(folder / "train"), verification


def _faster(original: Graph, pruned: Graph) -> float:
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("original", "pruned")}
        original.save(paths["original"])
        pruned.save(paths["pruned"])
        found = compare(paths, threads=1, effort=Effort(runs=200), memory=False)
    return found.speedup["pruned"].value


def _row(
    label: str, seconds: float, original: Graph, graph: Graph, scores: dict[str, float], times: float | None
) -> None:
    from edgekit.stats import count

    before, after = count(original), count(graph)
    figures = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    faster = "" if times is None else f"  {times:.2f}x as fast"
    print(
        f"{label:28s} {seconds:6.0f} s  MACs {after.macs / before.macs:6.1%}  "
        f"parameters {after.parameters / before.parameters:6.1%}  {figures}{faster}",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=("detection", "verification"))
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="unlabelled images")
    parser.add_argument("--preprocess", default="")
    parser.add_argument("--images", help="to test a detector on")
    parser.add_argument("--annotations")
    parser.add_argument("--decode", default="yolox")
    parser.add_argument(
        "--people", type=int, default=10, help="folders to train on; the others are tested on"
    )
    parser.add_argument("--macs", type=float, nargs="+", default=[0.65, 0.5], help="shares to keep")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0, 60], help="of training")
    parser.add_argument("--steps", type=int, help="prune and refit in so many steps")
    parser.add_argument("--align", type=int, help="keep channels in multiples of this")
    parser.add_argument("--bare", action="store_true", help="also without any recovery")
    parser.add_argument("--verbose", action="store_true", help="show progress")
    return parser.parse_args()


if __name__ == "__main__":
    main()
