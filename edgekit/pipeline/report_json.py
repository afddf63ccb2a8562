"""The report, schema 1, put together from the steps' products."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import edgekit
from edgekit.measure.machine import machine
from edgekit.pipeline.compress import Compressed, compress_json
from edgekit.pipeline.state import Product, plain
from edgekit.pipeline.steps import UNSEEN, Context, Network, assumes_preprocessing
from edgekit.recipe import BudgetSection
from edgekit.report.summary import primary_metric
from edgekit.stats import count

#: Loss of a task metric (or of the cosine) that is pointed out.
NOTABLE_DROP = 0.02


@dataclass
class TargetProducts:
    """What the steps made for one target.

    Attributes:
        name: Target and profile.
        title: What a person calls it.
        folder: Its folder in the bundle.
        host: Whether latency measured here is the profile's.
        products: By step: ``compile``, ``placement``, ``quantize`` …
        before: Artifacts of the network before compression, by label.
    """

    name: str
    title: str
    folder: str
    host: bool
    products: dict[str, Product] = field(default_factory=dict)
    before: dict[str, Product] = field(default_factory=dict)

    def data(self, step: str, key: str, default: Any = None) -> Any:
        """One entry of a step's product; ``default`` where the step did not run."""
        return self.products[step].data.get(key, default) if step in self.products else default


def build_report(
    context: Context, network: Network, compressed: Compressed, targets: list[TargetProducts]
) -> dict[str, Any]:
    """The whole report, JSON-ready; fills ``context.warnings`` on the way."""
    job = context.job
    data = _data(context, network, targets)
    entries = [_target(target, compressed.network) for target in targets]
    for target, entry in zip(targets, entries, strict=True):
        _warn(context, target, entry, several=len(targets) > 1)
    budget = _budget(context, job.budget, targets, entries)
    return dict(
        plain(
            {
                "schema": 1,
                "edgekit": edgekit.__version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": job.command,
                "machine": machine(),
                "model": _model(network),
                "data": data,
                **_compression(context, network, compressed),
                "targets": entries,
                "warnings": context.warnings,
                "budget": budget,
            }
        )
    )


def drop(entry: dict[str, Any]) -> float | None:
    """Loss of the task metric in one target's report entry, of int8 against the network as it was given; of
    compared outputs, 1 minus the cosine.
    """
    task = entry.get("task") or {}
    name = primary_metric(entry)
    after = (task.get("int8") or {}).get(name)
    if name is None or after is None:
        return None
    if task.get("name") == "outputs":
        return 1.0 - float(task["int8"]["cosine"]["value"])
    before = (task.get("original") or task.get("float") or {}).get(name)
    return None if before is None else float(before["value"]) - float(after["value"])


def _model(network: Network) -> dict[str, Any]:
    stats = count(network.graph)
    data = network.data
    return {
        "source": data["source"],
        "sha256": data["sha256"],
        "parameters": stats.parameters,
        "macs": stats.macs,
        "size_bytes": stats.size_bytes,
        "opset": network.graph.model.opset_imports.get(""),
        "inputs": [spec.to_json() for spec in network.graph.inputs],
        "outputs": [spec.to_json() for spec in network.graph.outputs],
        "capture": {"max_abs_difference": data["difference"], "changes": data["history"]},
    }


def _data(context: Context, network: Network, targets: list[TargetProducts]) -> dict[str, Any]:
    job = context.job
    if assumes_preprocessing(job, network.graph.inputs):
        context.warn(
            f"Preprocessing was {job.preprocess_note}. Wrong preprocessing spoils int8 unseen: check it."
        )
    found: dict[str, Any] = {}
    for target in targets:
        found = target.data("quantize", "data") or target.data("parity", "data") or found
    skipped = found.get("skipped", [])
    if skipped:
        names = ", ".join(item["name"] for item in skipped[:3]) + (" …" if len(skipped) > 3 else "")
        context.warn(f"{len(skipped)} samples could not be read and were skipped: {names}")
    for note in found.get("notes", []):
        context.warn(f"Calibration samples: {note}")
    return {
        "calibrate": job.data,
        "count": found.get("count"),
        "skipped": skipped,
        "preprocess": job.preprocess.model_dump(mode="json"),
        "preprocess_note": job.preprocess_note,
    }


def _compression(context: Context, network: Network, compressed: Compressed) -> dict[str, Any]:
    found = compress_json(compressed, network.graph)
    if found is None:
        return {}
    for step in found["steps"]:
        # A training's notes say how it went; they stand beside it. Those of the others are warnings.
        notes = step["notes"] if step["pass"] != "distill" else []
        for note in notes:
            context.warn(f"{step['pass'].capitalize()}: {note}")
        if step.get("best_epoch") == 0:
            context.warn("Distill: no epoch was better than the start; the weights stay as they were")
    return {"compress": found}


def _target(target: TargetProducts, network: Network) -> dict[str, Any]:
    entry: dict[str, Any] = {"target": target.name, "title": target.title}
    entry["artifacts"] = {
        kind: {**item, "path": f"{target.folder}/{item['path']}"}
        for kind, item in target.data("compile", "artifacts", {}).items()
    }
    if target.before:
        entry["sizes"] = {label: _size(product) for label, product in target.before.items()} | {
            kind: item["size_bytes"] for kind, item in entry["artifacts"].items()
        }
    if "quantize" in target.products:
        quantization = {k: v for k, v in target.products["quantize"].data.items() if k != "data"}
        quantization["history"] = quantization["history"][len(network.data["history"]) :]
        entry["quantization"] = quantization
    if "placement" in target.products:
        entry["placement"] = target.products["placement"].data
    if "coverage" in target.products:
        entry["coverage"] = target.products["coverage"].data
    for step, key in (
        ("latency", "latency"),
        ("latency", "latency_1t"),
        ("latency", "estimate"),
        ("parity", "parity"),
        ("parity", "runtimes"),
        ("task", "task"),
        ("emulation", "emulator"),
    ):
        if target.data(step, key):
            entry[key] = target.data(step, key)
    overlays = [
        {"name": item["name"], **{k: f"overlays/{target.folder}-{v}" for k, v in item.items() if k != "name"}}
        for item in target.data("task", "overlays", [])
    ]
    if overlays:
        entry["overlays"] = overlays
    return entry


def _size(product: Product) -> int:
    return int(next(iter(product.data["artifacts"].values()))["size_bytes"])


def _warn(context: Context, target: TargetProducts, entry: dict[str, Any], *, several: bool) -> None:
    def warn(text: str) -> None:
        context.warn(f"{target.name}: {text}" if several else text)

    unmeasured = target.data("latency", "unmeasured")
    if unmeasured:
        warn(f"Latency was not measured: {unmeasured}.")
    for text in ((entry.get("estimate") or {}).get("int8") or {}).get("problems", []):
        warn(f"Does not run on the board: {text}.")
    for node in ((entry.get("estimate") or {}).get("int8") or {}).get("missing", []):
        remedy = f" {node['remedy']}." if node["remedy"] else ""
        warn(f"Leaves the NPU: {node['op']} '{node['node']}': {node['reason']}.{remedy}")
    for key in ("latency", "latency_1t"):
        for note in (entry.get(key) or {}).get("notes", []):
            warn(f"Latency{', 1 thread' if key.endswith('1t') else ''}: {note}")
    _warn_slower(warn, target, entry)
    speedup = (entry.get("latency") or {}).get("speedup")
    if speedup is not None and speedup < 1 and target.host:
        warn(f"Int8 is slower than float on this machine ({1 / speedup:.2f} times as long).")
    for text in (entry.get("parity") or {}).get("warnings", []):
        warn(f"Parity: {text}")
    _warn_runtimes(warn, entry.get("runtimes"))
    _warn_quantization(warn, entry.get("quantization"))
    lost = drop(entry)
    if lost is not None and lost > NOTABLE_DROP:
        metric = "cosine of the outputs" if entry["task"]["name"] == "outputs" else primary_metric(entry)
        warn(f"Int8 loses {lost:.3f} of the {metric}.")
    skipped = target.data("task", "skipped", [])
    if skipped:
        warn(f"{len(skipped)} evaluation samples could not be read and were skipped: {skipped[0]['name']} …")
    note = (entry.get("task") or {}).get("note")
    if note and note != UNSEEN:
        warn(f"Evaluation: {note}")


def _warn_runtimes(warn: Any, runtimes: dict[str, Any] | None) -> None:
    """Outputs that differ more between runtimes than one rounding explains are never passed over."""
    if runtimes is None or runtimes["ok"]:
        return
    budget = runtimes["budget_steps"]
    allowed = f"{budget} step{'' if budget == 1 else 's'}"
    for runtime, rows in runtimes["outputs"].items():
        over = [row for row in rows if row["max_steps"] > budget]
        if over:
            worst = max(over, key=lambda row: row["rms_steps"])
            warn(
                f"{len(over)} of {len(rows)} outputs are more than {allowed} off in {runtime} (compared "
                f"with {runtimes['reference']}): a code that one kernel rounds the other way moves others "
                f"behind it. Worst: '{worst['tensor']}', {worst['rms_steps']:.1f} steps RMS, "
                f"{worst['max_steps']} at most."
            )


def _warn_slower(warn: Any, target: TargetProducts, entry: dict[str, Any]) -> None:
    """A compressed network that is slower than the original is never passed over."""
    for key, threads in (("latency", ""), ("latency_1t", " on 1 thread")):
        latency = entry.get(key) or {}
        for before, after, name in (("original", "float", "float"), ("original_int8", "int8", "int8")):
            if before in latency and after in latency and target.host:
                times = latency[after]["value"] / latency[before]["value"]
                if times > 1:
                    warn(
                        f"Compressed {name} is slower than the original{threads} ({times:.2f} times as long)."
                    )


def _warn_quantization(warn: Any, quantization: dict[str, Any] | None) -> None:
    if quantization is None:
        warn("Nothing was quantized: this target runs float only, or the recipe switches quantization off.")
        return
    db, wanted = quantization.get("db"), quantization["target_db"]
    if db is not None and db < wanted:
        warn(f"After all repairs the outputs are at {db:.1f} dB, below the {wanted:g} dB that were aimed at.")
    limit, raised = quantization["raised_limit"], len(quantization["raised"])
    if raised and raised >= limit:
        warn(f"The limit of {limit} raised tensors was reached.")


def _budget(
    context: Context, limits: BudgetSection, targets: list[TargetProducts], entries: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One line for each limit: the worst target's value; None where a target has none, which is a miss."""
    lines = []
    for name, limit in limits.model_dump(exclude_none=True).items():
        found = [(_budget_value(name, t, e), t.name) for t, e in zip(targets, entries, strict=True)]
        lacking = [target for value, target in found if value is None]
        if lacking:
            context.warn(
                f"Budget {name} cannot be checked on {', '.join(lacking)}: no such figure was measured."
            )
            lines.append({"name": name, "limit": limit, "value": None, "ok": False, "target": lacking[0]})
            continue
        value, target_name = max((value, target) for value, target in found if value is not None)
        lines.append(
            {"name": name, "limit": limit, "value": value, "ok": value <= limit, "target": target_name}
        )
    return lines


def _budget_value(name: str, target: TargetProducts, entry: dict[str, Any]) -> float | None:
    kind = "int8" if "int8" in entry["artifacts"] else "float"
    if name == "size_mb":
        return float(entry["artifacts"][kind]["size_bytes"]) / 1e6
    if name == "latency_ms":
        measured = (entry.get("latency") or {}).get(kind)
        # What this machine takes says nothing about another; what a compiler estimates is for the profile.
        counts = measured is not None and (target.host or measured["method"] != "host")
        return float(measured["value"]) if measured is not None and counts else None
    return drop(entry) if kind == "int8" else 0.0
