"""``targets``, ``models`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.commands.shell import Answer, Shell, columns, command

#: Packages that every command needs, and those of single reference models.
REQUIRED = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "torch",
    "pillow",
    "pydantic",
    "faster-coco-eval",
)
OPTIONAL = {
    "safetensors": ("the YOLO reference model", "yolo"),
    "scikit-learn": ("the YOLO reference model's data", "yolo"),
    "ai-edge-litert": ("the targets litert, ethos-u and tflm", "litert"),
    "ethos-u-vela": ("the target ethos-u", "ethos-u"),
    "tflite-micro": ("the target tflm", "tflm"),
    "onnxruntime-qnn": ("the target qnn-htp", "qnn"),
}
_DOT_PRODUCT = ("AVX-512 VNNI", "AVX-VNNI", "AMX int8", "NEON dot product")
_FREE_BYTES = 2e9
_LINE = 45  # characters of a table that still fits on one line


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, "targets", "What can be deployed to.")(targets)
    command(app, "models", "The reference models.")(models)
    command(app, "doctor", "What is installed, what this machine can measure.")(doctor)


def targets(
    shell: Shell,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One target, or target:profile.")
    ] = None,
) -> Answer:
    """List the targets, or show one: its hardware, number formats and where each figure comes from."""
    from edgekit.registry import list_targets, load_target

    if name is None:
        found = list_targets()
        rows: list[tuple[str, ...]] = []
        for summary in found:
            rows.append((summary.name, summary.title, "" if summary.quantizes else "float only"))
            for profile, title in summary.profiles.items():
                default = "default" if profile == summary.default else ""
                rows.append((f"  {summary.name}:{profile}", title, default))
        return Answer({"targets": [summary.to_json() for summary in found]}, "\n".join(columns(rows)))
    content = load_target(name).describe()
    return Answer(content, "\n".join(_tree(_readable(content))))


def _readable(content: dict[str, Any]) -> dict[str, Any]:
    """A target's description without what says nothing: 0 is "the machine's own", {} "no condition"."""
    profile = {
        key: "no" if value is False else value
        for key, value in content["profile"].items()
        if value is False or value not in (0, {})
    }
    if not content.get("scheme"):
        return {**content, "profile": profile}
    ops = {
        op: {key: value for key, value in rule.items() if value != {} and key not in ("wide", "wide_range")}
        | ({} if rule["wide"] else {"bits": 8})
        for op, rule in content["scheme"]["ops"].items()
    }
    return {**content, "profile": profile, "scheme": {**content["scheme"], "ops": ops}}


def models(
    shell: Shell, name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model.")] = None
) -> Answer:
    """List the reference models, or show one: its recipe and measured scores."""
    from edgekit.registry import describe_model, model_names

    if name is None:
        found = [describe_model(model) for model in model_names()]
        rows = [(model["name"], model["summary"][:100] or model["recipe"]) for model in found]
        return Answer({"models": found}, "\n".join(columns(rows)) or "There are no reference models.")
    content = describe_model(name)
    return Answer(content, "\n".join(_tree(content)))


def doctor(shell: Shell) -> Answer:
    """Show what is installed and what this machine can measure; exit code 1 when something is missing."""
    import edgekit
    from edgekit.measure.machine import machine

    info = machine()
    checks = [*_packages(), _symlinks(), _instructions(info["features"]), _disk()]
    ok = all(check["state"] != "missing" for check in checks)
    document = {"edgekit": edgekit.__version__, "ok": ok, "machine": info, "checks": checks}
    head = [
        ("edgekit", edgekit.__version__),
        ("python", info["python"]),
        ("system", info["os"]),
        ("cpu", f"{info['cpu']}, {info['cores']} cores"),
        ("instructions", ", ".join(info["features"]) or "unknown"),
    ]
    rows = [(check["state"], check["name"], check["text"]) for check in checks]
    return Answer(document, "\n".join([*columns(head), "", *columns(rows)]), 0 if ok else 1)


def _packages() -> Iterator[dict[str, str]]:
    from importlib import metadata

    for name in (*REQUIRED, *OPTIONAL):
        try:
            yield {"name": name, "state": "ok", "text": metadata.version(name)}
        except metadata.PackageNotFoundError:
            if name in OPTIONAL:
                purpose, extra = OPTIONAL[name]
                text = f"only for {purpose}: pip install 'edgekit[{extra}]'"
                yield {"name": name, "state": "absent", "text": text}
            else:
                yield {"name": name, "state": "missing", "text": "not installed: pip install edgekit"}


def _symlinks() -> dict[str, str]:
    from edgekit.registry import model_names, target_names

    found = f"{len(target_names())} targets, {len(model_names())} models"
    if target_names():
        return {"name": "targets and models", "state": "ok", "text": found}
    text = "none found: clone with git clone -c core.symlinks=true"
    return {"name": "targets and models", "state": "missing", "text": text}


def _instructions(features: list[str]) -> dict[str, str]:
    entry = {
        "name": "int8 instructions",
        "state": "ok",
        "text": ", ".join(f for f in features if f in _DOT_PRODUCT),
    }
    if entry["text"]:
        return entry
    if not features:
        return {**entry, "state": "warning", "text": "this system does not list its CPU's instructions"}
    if any(name.startswith("AVX") for name in features):
        text = (
            "no VNNI: u8 x s8 products are summed in 16 bits, which saturate: int8 outputs may differ "
            "from those of the device; int8 gains little speed"
        )
        return {**entry, "state": "warning", "text": text}
    return {**entry, "state": "warning", "text": "no dot product: int8 gains little speed over float"}


def _disk() -> dict[str, str]:
    import shutil

    free = shutil.disk_usage(Path.cwd()).free
    state = "ok" if free > _FREE_BYTES else "warning"
    return {"name": "disk", "state": state, "text": f"{free / 1e9:.1f} GB free here"}


def _tree(content: Any, indent: str = "") -> Iterator[str]:
    """Nested tables as indented lines; what is empty or false is left out."""
    simple = [(key, _shown(value)) for key, value in content.items() if not _is_table(value)]
    yield from columns([(key, text) for key, text in simple if text], indent=indent)
    for key, value in content.items():
        if _is_table(value):
            yield f"{indent}{key}"
            yield from _tree(value, indent + "  ")


def _is_table(value: Any) -> bool:
    """Whether a value gets lines of its own: a table of tables, or one that is too long for a line."""
    return isinstance(value, dict) and (any(map(_holds, value.values())) or len(_shown(value)) > _LINE)


def _holds(value: Any) -> bool:
    return isinstance(value, dict)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {text}" for key, entry in value.items() if (text := _shown(entry))) or "yes"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None or value is False else "yes" if value is True else str(value)
