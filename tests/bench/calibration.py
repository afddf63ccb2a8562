"""What calibration costs: time against running the float network, peak memory against the number of images.

    python tests/bench/calibration.py MODEL.onnx --data DIR [--preprocess …] [--images N] [--threads N]

Time: all four calibrators for every tensor from one pass, against ONNX Runtime running the float model on the
same preprocessed images, in one process, with the same threads, in turn; decoding is on neither side. Memory:
peak resident size of a fresh process that calibrates a few and all images, decoding included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgekit.capture import capture
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import Samples, open_samples
from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.registry import load_target
from edgekit.session import cores, open_runner, run_all


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", default="")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--few", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        graph = capture(args.model).graph
        calibrate(graph, _samples(args, graph, args.peak_of), args.threads)
        print(json.dumps({"peak_bytes": _peak_bytes()}))
        return
    _time(args)
    few, all_ = (_peak_in_fresh_process(n) for n in (args.few, args.images))
    print(
        f"peak memory: {few / 1e6:.0f} MB for {args.few} images, {all_ / 1e6:.0f} MB for {args.images} "
        f"(ratio {all_ / few:.2f})"
    )


def calibrate(graph: Graph, feeds: Any, threads: int) -> None:
    """One pass, then the parameters of every tensor by each calibrator."""
    scheme = load_target("ort-cpu").scheme
    if scheme is None:
        raise SystemExit("ort-cpu has no number formats")
    plan = make_plan(graph, scheme)
    # The range of an image input is known from the preprocessing; any will do here.
    inputs = {spec.name: (0.0, 1.0) for spec in graph.inputs}
    found = observe(graph, unknown_ranges(graph, scheme, plan, inputs), feeds, threads=threads)
    for method in Calibrator:
        choose_params(graph, plan, scheme, found, RangeOptions(method, inputs=inputs))


def _samples(args: argparse.Namespace, graph: Graph, limit: int) -> Any:
    preprocess = Preprocess.parse(args.preprocess) if args.preprocess else Preprocess()
    samples: Samples = open_samples(args.data, graph.inputs, preprocess, limit=limit)
    return (sample.feeds for sample in samples)


def _time(args: argparse.Namespace) -> None:
    graph = capture(args.model).graph
    feeds = list(_samples(args, graph, args.images))
    times: dict[str, list[float]] = {"float": [], "float, side by side": [], "calibration": []}
    for _ in range(args.rounds):
        start = time.perf_counter()
        runner = open_runner(graph, threads=args.threads)
        for feed in feeds:
            runner.run(feed)
        times["float"].append(time.perf_counter() - start)
        del runner
        start = time.perf_counter()
        for _ in run_all(open_runner(graph, threads=1), feeds, workers=args.threads):
            pass
        times["float, side by side"].append(time.perf_counter() - start)
        start = time.perf_counter()
        calibrate(graph, feeds, args.threads)
        times["calibration"].append(time.perf_counter() - start)
    print(f"{len(feeds)} images, {args.threads} threads, {args.rounds} rounds")
    for label, values in times.items():
        print(f"  {label:22s} best {min(values):5.2f} s, median {statistics.median(values):5.2f} s")
    for label in ("float", "float, side by side"):
        # Whatever else the machine does only adds time: the best rounds are the fair ones.
        print(
            f"  calibration / {label}: {min(times['calibration']) / min(times[label]):.2f}, best against best"
        )


def _peak_in_fresh_process(images: int) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _peak_bytes() -> int:
    """High-water mark of the resident size, which Linux counts from the start of this program."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    main()
