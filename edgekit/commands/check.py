"""``bench``, ``parity`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from edgekit.commands.shell import (
    Answer,
    InputShapes,
    Limit,
    Model,
    OptionalData,
    PreprocessText,
    Runs,
    Shell,
    columns,
    command,
    read_shapes,
    shape_text,
)
from edgekit.errors import UsageError

Target = Annotated[str | None, typer.Option("--target", metavar="T", help="Target, or target:profile.")]
#: Nodes or clashes that the screen shows; --json has all.
SHOWN = 15


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, "bench", "Time a bundle or a model.")(bench)
    command(app, "parity", "Compare a bundle's int8 with its float.")(parity)
    command(app, "inspect", "Size, operators and trouble spots of a model.")(inspect)


def bench(
    shell: Shell,
    what: Annotated[str, typer.Argument(metavar="BUNDLE|MODEL", help="A bundle's folder, or a model.")],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="OTHER", help="Bundle or model that it is compared with."),
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=0, help="CPU threads; 0 takes the target's.")
    ] = 0,
    runs: Runs = 100,
    target: Target = None,
) -> Answer:
    """Time a bundle (float against int8) or a model, side by side in a process of its own.

    Of two bundles the int8 artifacts are compared.
    """
    from edgekit import api

    with shell.reporter() as reporter:
        found = api.bench(what, against, target=target, threads=threads, runs=runs, reporter=reporter)
    rows: list[tuple[str, ...]] = [("", "median", "p95", "min", "peak memory", "")]
    for label, latency in found.latency.items():
        memory = found.peak_memory.get(label)
        speedup = found.speedup.get(label)
        rows.append(
            (
                label,
                f"{latency.value:.3f} ms",
                f"{latency.spread['p95']:.3f} ms",
                f"{latency.spread['min']:.3f} ms",
                f"{memory.value / 1e6:.1f} MB" if memory else "–",
                f"{speedup.value:.2f}x as fast" if speedup else "",
            )
        )
    notes = [f"- {note}" for note in found.notes]
    head = f"{found.cpu}, {found.threads} thread{'' if found.threads == 1 else 's'}, measured on this machine"
    text = "\n".join([head, *columns(rows, right=(1, 2, 3, 4)), *notes])
    return Answer({"what": what, "against": against, **found.to_json()}, text)


def parity(
    shell: Shell,
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    data: OptionalData = None,
    layers: Annotated[bool, typer.Option("--layers", help="Compare every layer as well.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Use at most so many samples.")
    ] = 32,
    target: Target = None,
) -> Answer:
    """Check that a bundle still computes what it did, and compare int8 with float on samples.

    Without --data only the stored samples are replayed. Exit code 1 when a stored output does not come out
    again.
    """
    from edgekit import api

    with shell.reporter() as reporter:
        found = api.parity(bundle, data, target=target, layers=layers, limit=limit, reporter=reporter)
    return Answer(found, "\n".join(_parity_lines(found)), 0 if found["ok"] else 1)


def inspect(
    shell: Shell,
    model: Model,
    target: Target = None,
    data: OptionalData = None,
    preprocess: PreprocessText = None,
    input_shape: InputShapes = None,
    limit: Limit = 32,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 when a node will leave the target's unit.")
    ] = False,
) -> Answer:
    """Show a model's size, work, operators and largest layers; with a target, what stays in float and why.

    For an NPU the nodes are listed that will leave it, each with the rule that it breaks and what to change.
    Range clashes are looked for when --data is given.
    """
    from edgekit import api

    if strict and target is None:
        raise UsageError("needs a target", where="--strict", hint="Add --target, such as ethos-u:u55-256")
    with shell.reporter() as reporter:
        found = api.inspect(
            model,
            target,
            data=data,
            preprocess=preprocess,
            input_shapes=read_shapes(input_shape),
            limit=limit,
            reporter=reporter,
        )
    leaves = found.get("leaves_unit")
    left = leaves if leaves is not None else found.get("float_nodes", [])
    return Answer(found, "\n".join(_inspect_lines(found)), 1 if strict and left else 0)


def _parity_lines(found: dict[str, Any]) -> Iterator[str]:
    for entry in found["targets"]:
        yield f"{entry['target']}: stored samples"
        rows = [
            (
                r["sample"],
                r["kind"],
                f"{r['max_abs']:.3g}",
                f"{r['cosine']:.6f}",
                "ok" if r["ok"] else "DIFFERS",
            )
            for r in entry["replay"]
        ]
        head = [("sample", "artifact", "max difference", "cosine", "")]
        yield from columns([*head, *rows], right=(2, 3), indent="  ")
        if "parity" in entry:
            yield from _comparison_lines(entry["target"], entry["parity"])
    for item in found.get("data", {}).get("skipped", []):
        yield f"skipped {item['name']}: {item['reason']}"


def _comparison_lines(name: str, parity: dict[str, Any]) -> Iterator[str]:
    yield f"{name}: int8 against float on {parity['samples']} samples"
    head = ("tensor", "cosine", "worst sample", "signal to noise", "max difference")
    rows = [_row(row) for row in parity["outputs"]]
    yield from columns([head, *rows], right=(1, 2, 3, 4), indent="  ")
    if parity.get("layers"):
        yield f"{name}: layers, on {parity['layer_samples']} samples, worst first"
        known = sorted(
            parity["layers"], key=lambda row: row["sqnr_db"] if row["sqnr_db"] is not None else 1e9
        )
        yield from columns([head, *(_row(row) for row in known[:SHOWN])], right=(1, 2, 3, 4), indent="  ")
        yield from _more(len(known))
        yield from _skipped_lines(parity["skipped"])
    for text in parity.get("warnings", []):
        yield f"- {text}"


def _skipped_lines(skipped: list[dict[str, str]]) -> Iterator[str]:
    grouped: dict[str, list[str]] = {}
    for item in skipped:
        grouped.setdefault(item["reason"], []).append(item["name"])
    for reason, names in sorted(grouped.items(), key=lambda item: -len(item[1])):
        yield f"  {len(names)} not compared: {reason} ({_some(names)})"


def _some(names: list[str]) -> str:
    """The first two, and how many more there are."""
    return ", ".join(names[:2]) + (f", … {len(names) - 2} more" if len(names) > 2 else "")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    noise = "exact" if row["identical"] else f"{shown(row['sqnr_db'], '.1f')} dB"
    label = f"{row['name']} ({row['op']})" if row.get("op") else row["name"]
    return (
        label,
        shown(row["cosine"], ".5f"),
        shown(row["cosine_min"], ".5f"),
        noise,
        f"{row['max_abs']:.3g}",
    )


def _inspect_lines(found: dict[str, Any]) -> Iterator[str]:
    from edgekit.report.numbers import bytes_text, count_text

    yield from columns(
        [
            ("source", found["source"]),
            ("parameters", count_text(found["parameters"])),
            ("multiply-accumulates", count_text(found["macs"])),
            ("weights", bytes_text(found["size_bytes"])),
            ("activations, peak", bytes_text(found["peak_activation_bytes"])),
            *(("input", f"{s['name']} {shape_text(s['shape'])} {s['dtype']}") for s in found["inputs"]),
            *(("output", f"{s['name']} {shape_text(s['shape'])} {s['dtype']}") for s in found["outputs"]),
        ]
    )
    yield from ("", "Operators")
    yield from columns(list(found["ops"].items()), right=(1,), indent="  ")
    yield from ("", "Largest layers")
    rows = [
        (node["name"], node["op"], count_text(node["macs"]), shape_text(node["output_shape"]))
        for node in found["largest"]
        if node["macs"]
    ]
    yield from columns([("node", "op", "MACs", "output"), *rows], right=(2,), indent="  ")
    if "float_nodes" in found:
        yield from _float_lines(found["target"], found["float_nodes"])
    if found.get("leaves_unit") is not None:
        yield from _leaving_lines(found["target"], found["leaves_unit"])
    if found.get("coverage"):
        yield ""
        yield from coverage_lines(found["coverage"])
    yield from _clash_lines(found["clashes"])


def coverage_lines(found: dict[str, Any]) -> Iterator[str]:
    """What runs on the unit: the summary, then a row for each operator."""
    from edgekit.report.text import painter
    from edgekit.report.unit import coverage
    from edgekit.report.unit import coverage_lines as summary

    covered = coverage(found)
    if covered is None:
        return
    yield from summary(covered, painter(colour=False), 100)
    rows = [(op, str(nodes), str(placed), kernels) for op, nodes, placed, kernels in covered.ops]
    yield from columns([("operator", "nodes", f"on {covered.unit}", "as"), *rows], right=(1, 2), indent="  ")


def _float_lines(target: str, nodes: list[dict[str, str]]) -> Iterator[str]:
    yield from (
        "",
        f"{len(nodes)} nodes stay in float on {target}" if nodes else f"All of it is integer on {target}",
    )
    yield from _grouped_lines(nodes)


def _leaving_lines(target: str, nodes: list[dict[str, str]]) -> Iterator[str]:
    """What will run on a CPU beside the NPU."""
    yield ""
    if not nodes:
        yield f"Nothing leaves the NPU on {target}"
        return
    yield f"{len(nodes)} node{' leaves' if len(nodes) == 1 else 's leave'} the NPU on {target}"
    yield from _grouped_lines(nodes)


def _grouped_lines(nodes: list[dict[str, str]]) -> Iterator[str]:
    """Nodes with one operator, one reason and one remedy on one line, the most of them first."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for node in nodes:
        grouped.setdefault((node["op"], node["reason"], node.get("remedy", "")), []).append(node["node"])
    for (op, reason, remedy), names in sorted(grouped.items(), key=lambda item: -len(item[1])):
        yield f"- {len(names)} x {op}: {reason} ({_some(names)})"
        if remedy:
            yield f"    → {remedy}"


def _clash_lines(clashes: list[dict[str, Any]] | None) -> Iterator[str]:
    yield ""
    if clashes is None:
        yield "Range clashes: unknown without samples; give --data"
        return
    yield f"{len(clashes) or 'No'} range clash{'' if len(clashes) == 1 else 'es'}"
    for clash in clashes[:SHOWN]:
        yield f"- {clash['where']}: {clash['text']}"
    yield from _more(len(clashes))


def _more(count: int) -> Iterator[str]:
    if count > SHOWN:
        yield f"  … and {count - SHOWN} more, see --json"
