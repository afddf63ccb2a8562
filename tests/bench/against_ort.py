"""edgekit's int8 file against that of ONNX Runtime's own quantizer, from the same model and images.

    python tests/bench/against_ort.py MODEL.onnx --data CALIBRATION [--preprocess …]
        [--images DIR --annotations FILE.json --decode yolox]     detection: mAP of the three
        [--held-out N]                                            else: cosine to float on the last N samples

ONNX Runtime's quantizer runs as its documentation recommends: pre-processed, QDQ, weights per channel, u8
activations, min-max calibration. Latency: 1 thread, the three files in turn in one fresh process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.capture import capture
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.graph import Graph
from edgekit.measure.decode import decoder
from edgekit.measure.detection import evaluate_detection
from edgekit.measure.latency import measure_latency
from edgekit.pipeline.steps import input_ranges
from edgekit.quantize.quantize import Options, QuantizeResult, quantize
from edgekit.registry import load_target
from edgekit.session import open_runner, run_all

Feeds = list[dict[str, Any]]


def main() -> None:
    args = _arguments()
    graph = capture(args.model).graph
    preprocess = Preprocess.parse(args.preprocess) if args.preprocess else Preprocess()
    samples = open_samples(args.data, graph.inputs, preprocess)
    feeds = [s.feeds for s in samples]
    unseen = feeds[len(feeds) - args.held_out :] if args.held_out else []
    calibration = feeds[: len(feeds) - args.held_out] if args.held_out else feeds
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("float", "onnxruntime", "edgekit")}
        graph.save(files["float"])
        start = time.perf_counter()
        quantize_with_ort(Path(args.model), files["onnxruntime"], calibration)
        print(f"onnxruntime: {time.perf_counter() - start:.1f} s to quantize, {len(calibration)} images")
        start = time.perf_counter()
        result = _quantize(graph, calibration, input_ranges(graph.inputs, preprocess, samples))
        load_target("ort-cpu").lower(result.graph).save(files["edgekit"])
        print(f"edgekit:     {time.perf_counter() - start:.1f} s to quantize")
        for item in result.raised:
            print(f"  {item.tensor} ({item.op}) stays {item.format}, {item.gain_db:.1f} dB: {item.reason}")
        _print_quality(args, files, graph, preprocess, unseen)
        latency = measure_latency(files, feeds[0], threads=1, runs=args.runs, memory=False)
    for name, measured in latency.latency.items():
        p95 = measured.spread["p95"]
        print(f"  {name:12s} {measured.value:6.2f} ms median, {p95:.2f} ms p95 ({measured.method})")
    medians = {name: m.value for name, m in latency.latency.items()}
    print(f"  edgekit / onnxruntime {medians['edgekit'] / medians['onnxruntime']:.2f}")
    print(f"  float / edgekit       {medians['float'] / medians['edgekit']:.2f}")


def quantize_with_ort(source: Path, target: Path, feeds: Feeds) -> None:
    """What a user of onnxruntime.quantization would run on the model as it came."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    prepared = target.with_suffix(".prepared.onnx")
    model = onnx.load(source)
    if model.opset_import[0].version < 13:  # weights per channel need opset 13
        model = onnx.version_converter.convert_version(model, 17)
    onnx.save(model, prepared)
    quant_pre_process(str(prepared), str(prepared))
    quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _quantize(graph: Graph, feeds: Feeds, ranges: Any) -> QuantizeResult:
    scheme = load_target("ort-cpu").scheme
    if scheme is None:
        raise SystemExit("ort-cpu has no number formats")
    return quantize(
        graph,
        scheme,
        lambda: feeds,
        Options(reconstruct_seconds=0),
        input_ranges=ranges,
        total=len(feeds),
        status=lambda text: print(f"    {text}"),
    )


def _print_quality(
    args: argparse.Namespace, files: dict[str, Path], graph: Graph, preprocess: Preprocess, unseen: Feeds
) -> None:
    if args.annotations:
        images = open_samples(args.images, graph.inputs, preprocess)
        for name, path in files.items():
            found = evaluate_detection(
                open_runner(path), images, Path(args.annotations), decoder(args.decode)
            )
            print(f"  {name:12s} mAP {found.map:.4f}, mAP50 {found.map50:.4f} on {found.images} images")
    for name, path in files.items() if unseen else ():
        cosines = _cosines(files["float"], path, unseen)
        print(f"  {name:12s} cosine to float: mean {cosines.mean():.5f}, min {cosines.min():.5f}")


def _cosines(reference: Path, candidate: Path, feeds: Feeds) -> np.ndarray[Any, Any]:
    found = []
    pairs = zip(
        run_all(open_runner(reference, threads=1), feeds),
        run_all(open_runner(candidate, threads=1), feeds),
        strict=True,
    )
    for a, b in pairs:
        x, y = (
            np.concatenate([v.ravel() for v in outputs.values()]).astype(np.float64) for outputs in (a, b)
        )
        found.append(float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))))
    return np.array(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", default="")
    parser.add_argument("--images")
    parser.add_argument("--annotations")
    parser.add_argument("--decode", default="yolox")
    parser.add_argument("--held-out", type=int, default=0)
    parser.add_argument("--runs", type=int, default=100)
    return parser.parse_args()


if __name__ == "__main__":
    main()
