"""Looking at what is there: timing, comparing and describing bundles and networks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import Bundle, open_bundle, replay
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.pipeline.layers import without_rescaled
from edgekit.pipeline.split import Watched
from edgekit.pipeline.state import plain
from edgekit.pipeline.steps import COMPARED, full_name, load_graph, reference_name
from edgekit.pipeline.unit_steps import coverage_json
from edgekit.progress import Reporter
from edgekit.registry import load_target
from edgekit.target import Covers, Lints, Prepares, Target

if TYPE_CHECKING:
    from edgekit.measure.latency import LatencyResult
    from edgekit.quantize.scheme import Scheme
    from edgekit.session import Arrays

#: Most nodes listed as the largest.
LARGEST = 10


def bench(
    what: str,
    *,
    against: str | None = None,
    target: str | None = None,
    threads: int = 0,
    runs: int = 100,
    reporter: Reporter | None = None,
) -> LatencyResult:
    """Time a bundle (float against int8) or a model; ``against`` gives the first, which speedups refer to.

    Args:
        what: Bundle folder, ``.onnx`` or ``.pt2`` file, or ``package.module:callable``.
        against: Another one.
        target: Target of a bundle; of a model, the profile that the figures are wanted for.
        threads: 0 takes the profile's.
        runs: Timed calls.
        reporter: Tells the user.

    Raises:
        InputError: A bundle or a model cannot be used.
        ToolError: The measurement failed.
    """
    from edgekit.measure.latency import Effort, compare

    reporter = reporter or Reporter()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        models, feeds, name = _timed(what, target, Path(folder), pair=against is None)
        if against is not None:
            others, other_feeds, _ = _timed(against, target, Path(folder), pair=False)
            models, feeds = _merge(others, models, against, what), _merge(other_feeds, feeds, against, what)
        effort = Effort(runs=runs, min_runs=min(20, runs))
        profile = load_target(name).profile if name else None
        reporter.step("latency")
        return compare(
            models, feeds=feeds, threads=threads, effort=effort, profile=profile, progress=reporter.update
        )


def parity(
    what: str | Path,
    data: Any = None,
    *,
    target: str | None = None,
    layers: bool = False,
    limit: int = COMPARED,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Replay a bundle's stored samples and compare its int8 artifacts with float on samples.

    Args:
        what: Bundle folder.
        data: Samples; without them the stored ones are all that is looked at.
        target: One target; by default all.
        layers: Also compare every layer.
        limit: Most samples.
        reporter: Tells the user.

    Returns:
        ``bundle``, ``ok`` (whether all stored outputs came out again), ``targets``: each with ``replay`` and
        ``parity``, and ``data`` with what was skipped. JSON-ready.

    Raises:
        InputError: The bundle or the samples cannot be used.
    """
    reporter = reporter or Reporter()
    bundle = open_bundle(what)
    names = bundle.targets if target is None else (bundle.target(target),)
    found: dict[str, Any] = {"bundle": str(bundle.folder), "targets": []}
    for name in names:
        reporter.step(f"replay on {name}")
        entry: dict[str, Any] = {"target": name, "replay": _replay(bundle, name)}
        if data is not None:
            reporter.step(f"parity on {name}")
            entry["parity"], found["data"] = _parity(bundle, name, data, layers, limit, reporter)
        found["targets"].append(entry)
    found["ok"] = all(row["ok"] for entry in found["targets"] for row in entry["replay"])
    return dict(plain(found))


def inspect(
    source: str,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    target: str | None = None,
    data: Any = None,
    preprocess: Preprocess | None = None,
    limit: int | None = 32,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Describe a network before anything is done to it.

    Args:
        source: The network.
        input_shapes: Shapes of inputs that it leaves open.
        target: Also say what stays in float on this target, and why; of an NPU, what will leave it.
        data: Samples; with them, range clashes are looked for.
        preprocess: How images become inputs.
        limit: Most samples.
        reporter: Tells the user.

    Returns:
        JSON-ready: ``source``, ``parameters``, ``macs``, ``inputs``, ``ops``, ``largest`` … and, with a
        target, ``float_nodes`` and ``leaves_unit``, which is None for a target without rules of its own;
        ``clashes`` is None where ranges are unknown.

    Raises:
        InputError: The network, the target or the samples cannot be used.
    """
    from edgekit.capture import capture
    from edgekit.stats import count

    reporter = reporter or Reporter()
    lowered = load_target(target) if target is not None else None
    reporter.step("capture")
    captured = capture(source, input_shapes=input_shapes)
    graph, stats = captured.graph, count(captured.graph)
    if isinstance(lowered, Prepares):
        graph = lowered.prepare(graph)
    content: dict[str, Any] = {"source": source, "sha256": captured.sha256, **asdict(stats)}
    nodes = content.pop("per_node")
    content["inputs"] = [spec.to_json() for spec in graph.inputs]
    content["outputs"] = [spec.to_json() for spec in graph.outputs]
    content["largest"] = sorted(nodes, key=lambda n: -n["macs"])[:LARGEST]
    content["changes"] = [asdict(change) for change in graph.history]
    content["clashes"] = None
    if lowered is not None:
        content |= _on_target(graph, lowered, reporter)
    if data is not None:
        scheme = lowered.scheme if lowered is not None else load_target("ort-cpu").scheme
        if scheme is None:
            raise UsageError(f"'{target}' does not quantize", where="target", hint="Leave --data out")
        reporter.step("ranges")
        content["clashes"] = _clashes(graph, scheme, data, preprocess or Preprocess(), limit, reporter)
    return dict(plain(content))


def _on_target(graph: Graph, target: Target, reporter: Reporter) -> dict[str, Any]:
    """What stays in float on a target, and what leaves its unit."""
    name = full_name(target)
    found: dict[str, Any] = {"target": name, "float_nodes": _float_nodes(graph, target.scheme)}
    found["leaves_unit"] = None
    if isinstance(target, Lints):
        reporter.step(f"rules of {name}")
        found["leaves_unit"] = [asdict(node) for node in target.check(graph)]
    if isinstance(target, Covers):
        reporter.step(f"coverage on {name}")
        found["coverage"] = coverage_json(target.try_coverage(graph))
    return found


def _timed(
    what: str, target: str | None, folder: Path, *, pair: bool
) -> tuple[dict[str, Path], dict[str, Arrays], str]:
    """Files and feeds by label, and the target that a bundle was made for."""
    from edgekit.measure.latency import random_feeds

    path = Path(what)
    if path.is_dir():
        bundle = open_bundle(path)
        name = bundle.target(target)
        kinds = list(bundle.manifest.artifacts[name])
        chosen = kinds if pair else kinds[-1:]
        stored = bundle.samples()
        paths = {kind: bundle.path(name, kind) for kind in chosen}
        feeds = {kind: stored[0].feeds if stored else random_feeds(file) for kind, file in paths.items()}
        return paths, feeds, name
    if path.suffix.lower() != ".onnx":
        from edgekit.capture import capture

        made = folder / f"{len(list(folder.iterdir()))}.onnx"
        capture(what).graph.save(made)
        path = made
    elif not path.is_file():
        raise UsageError("there is no such model or bundle", where=what)
    return {"model": path}, {"model": random_feeds(path)}, target or ""


def _merge(first: Mapping[str, Any], second: Mapping[str, Any], one: str, two: str) -> dict[str, Any]:
    """Both under the names that the user gave."""
    if one == two:
        raise UsageError("is compared with itself", where=one)
    return {one: next(iter(first.values())), two: next(iter(second.values()))}


def _replay(bundle: Bundle, name: str) -> list[dict[str, Any]]:
    target = load_target(name)
    rows = []
    stored = bundle.samples()
    for kind in bundle.manifest.artifacts[name]:
        runner = target.open(bundle.path(name, kind))
        for sample in stored:
            found = replay(sample.expected[name, kind], runner.run(sample.feeds))
            rows.append({"kind": kind, "sample": sample.name, **found})
    return rows


def _parity(
    bundle: Bundle, name: str, data: Any, layers: bool, limit: int, reporter: Reporter
) -> tuple[dict[str, Any], dict[str, Any]]:
    from edgekit.measure.parity import compare_layers

    float_graph, int8_graph = (load_graph(_graph_path(bundle, name, kind), ()) for kind in ("float", "int8"))
    preprocess = Preprocess.read(bundle.manifest.preprocess)
    watched = Watched(open_samples(data, float_graph.inputs, preprocess, limit=limit))
    found = compare_layers(
        float_graph, int8_graph, watched(), layers=layers, limit=limit, progress=reporter.update
    )
    skipped = [{"name": item, "reason": reason} for item, reason in watched.skipped.items()]
    content = without_rescaled(found.to_json(), float_graph, _history(bundle, name))
    return {**content, "method": "host"}, {"source": str(data), "skipped": skipped}


def _graph_path(bundle: Bundle, name: str, kind: str) -> Path:
    """The ONNX file of an artifact, or the one that it was made from."""
    path = bundle.path(name, kind)
    return path if path.suffix == ".onnx" else path.with_name(reference_name(kind))


def _history(bundle: Bundle, name: str) -> list[dict[str, Any]]:
    """What was done to the network for this target, from the bundle's report."""
    path = bundle.folder / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, Any] = next((t for t in report.get("targets", []) if t["target"] == name), {})
    return list(found.get("quantization", {}).get("history", []))


def _float_nodes(graph: Graph, scheme: Scheme | None) -> list[dict[str, str]]:
    if scheme is None:
        reason = "the target runs float only"
        return [{"node": str(n.name), "op": n.op_type, "reason": reason} for n in graph.nodes]
    from edgekit.quantize.plan import make_plan

    reasons = make_plan(graph, scheme).float_nodes
    return [
        {"node": str(n.name), "op": n.op_type, "reason": reasons[str(n.name)]}
        for n in graph.nodes
        if str(n.name) in reasons
    ]


def _clashes(
    graph: Graph, scheme: Scheme, data: Any, preprocess: Preprocess, limit: int | None, reporter: Reporter
) -> list[dict[str, Any]]:
    from edgekit.quantize.findings import find_clashes
    from edgekit.quantize.observe import observe
    from edgekit.quantize.plan import make_plan
    from edgekit.quantize.ranges import RangeOptions, choose_params

    samples = open_samples(data, graph.inputs, preprocess, limit=limit)
    plan = make_plan(graph, scheme)
    feeds = Watched(samples)
    calibration = observe(graph, plan.sources, feeds(), total=samples.count, progress=reporter.update)
    params = choose_params(graph, plan, scheme, calibration, RangeOptions())
    found = find_clashes(graph, plan, calibration.histograms, params, {})
    # Nothing has been quantized: what would be done about a clash is not known yet.
    return [{key: value for key, value in asdict(f).items() if key != "action"} for f in found]
