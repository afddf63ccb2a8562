"""A realistic report, built in code."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle folder with overlay images."""
    draw_overlays(tmp_path)
    return tmp_path


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report()


@pytest.fixture
def compressed() -> dict[str, Any]:
    return make_compressed()


def figure(value: float, unit: str, **spread: float) -> dict[str, Any]:
    return {"value": value, "unit": unit, "method": "host", "spread": spread, "note": ""}


def spread(runs: list[float]) -> dict[str, Any]:
    """The measurement that a list of runs in milliseconds makes."""
    ordered = sorted(runs)
    p50, p95 = ordered[len(runs) // 2], ordered[round(len(runs) * 0.95)]
    return figure(p50, "ms", p50=p50, p95=p95, min=ordered[0], max=ordered[-1], count=len(runs))


def change(name: str, summary: str, *refused: tuple[str, str]) -> dict[str, Any]:
    entries = [{"where": where, "reason": reason} for where, reason in refused]
    return {"pass_name": name, "summary": summary, "refused": entries, "details": {}}


def make_report(layers: int = 143) -> dict[str, Any]:
    """A detector quantized for the CPU of this machine, with everything a report can hold."""
    return {
        "schema": 1,
        "edgekit": "0.1.0",
        "created": "2025-11-24T05:40:12+00:00",
        "command": "edgekit run models/yolo/recipe.toml --out build/demo",
        "machine": {
            "cpu": "Intel Xeon Platinum 8481C",
            "cores": 2,
            "os": "Linux 6.1 x86_64",
            "python": "3.11.7",
            "onnxruntime": "1.32.0",
        },
        "model": _model(),
        "data": {
            "calibrate": "/data/coco/calib",
            "count": 126,
            "skipped": [
                {"name": "broken.jpg", "reason": "truncated file"},
                {"name": "notes.txt.png", "reason": "not an image"},
            ],
            "preprocess": {
                "resize": "letterbox",
                "anchor": "top-left",
                "pad": 114,
                "color": "bgr",
                "divide": 1.0,
            },
            "preprocess_note": "from the recipe",
        },
        "targets": [_target(layers)],
        "warnings": [
            "2 of 128 calibration images were skipped: they cannot be decoded.",
            "The latency of single runs varies by 31 %: another program was busy on this machine.",
        ],
        "budget": [
            {"name": "latency_ms", "limit": 20.0, "value": 9.81, "ok": True},
            {"name": "size_mb", "limit": 1.0, "value": 1.07, "ok": False},
        ],
    }


def _model() -> dict[str, Any]:
    changes = [
        change("upgrade_opset", "Opset 11 to 21."),
        change("fold_batchnorm", "Folded 68 batch normalizations into the convolutions before them."),
        change(
            "fold_constants",
            "Folded 212 nodes that compute constants.",
            ("/head/Range_1", "its size depends on an input"),
        ),
    ]
    return {
        "source": "/models/yolox_nano.onnx",
        "sha256": "6c2a5d0f6f1c0b4f6c3a0de1a1b9c2f9a2b64d55a7f8e3c1d0b9a8f7e6d5c4b3",
        "parameters": 905232,
        "macs": 540_300_000,
        "size_bytes": 3660092,
        "opset": 21,
        "inputs": [{"name": "images", "shape": [1, 3, 416, 416], "dtype": "float32"}],
        "outputs": [{"name": "output", "shape": [1, 3549, 85], "dtype": "float32"}],
        "capture": {"max_abs_difference": figure(3.1e-6, ""), "changes": changes},
    }


def _target(layers: int) -> dict[str, Any]:
    noise = random.Random(3)
    runs = {
        name: [
            median * (1 + abs(noise.gauss(0, 0.03)) + (noise.random() < 0.04) * noise.random())
            for _ in range(300)
        ]
        for name, median in (("float", 24.2), ("int8", 9.6))
    }
    runs["float"].append(131.0)
    return {
        "target": "ort-cpu:host",
        "title": "ONNX Runtime on this machine's CPU",
        "artifacts": {
            "float": {"path": "ort-cpu-host/float.onnx", "size_bytes": 3660092},
            "int8": {"path": "ort-cpu-host/int8.onnx", "size_bytes": 1071340},
        },
        "quantization": _quantization(),
        "placement": _placement(),
        "latency": {
            "threads": 1,
            "float": spread(runs["float"]),
            "int8": spread(runs["int8"]),
            "speedup": 2.51,
            "samples_ms": runs,
            "peak_memory": {"float": figure(61_200_000, "bytes"), "int8": figure(42_800_000, "bytes")},
        },
        "parity": {
            "samples": 64,
            "layer_samples": 4,
            "method": "host",
            "outputs": [
                {
                    "name": "output",
                    "cosine": 0.99871,
                    "cosine_min": 0.99642,
                    "sqnr_db": 25.9,
                    "max_steps": None,
                    "max_abs": 3.42,
                }
            ],
            "layers": _layers(layers),
        },
        "task": {
            "name": "detection",
            "images": 64,
            "float": {"mAP": figure(0.338, "mAP"), "mAP50": figure(0.5, "mAP")},
            "int8": {"mAP": figure(0.332, "mAP"), "mAP50": figure(0.493, "mAP")},
            "note": "64 images are few: a changed box moves mAP by about 0.01",
        },
        "overlays": [
            {"name": name, "float": f"overlays/{name}-float.png", "int8": f"overlays/{name}-int8.png"}
            for name in ("000000139", "000000285")
        ],
    }


def _quantization() -> dict[str, Any]:
    return {
        "calibrator": "mse",
        "seconds": {"calibrate": 21.4, "search": 48.9},
        "tensors_8bit": 236,
        "history": [
            change("calibrate", "Watched 241 tensors over 126 samples in one pass."),
            change(
                "equalize",
                "Balanced 19 pairs of layers.",
                ("/backbone/dark2/conv", "its output feeds an Add"),
            ),
            change("quantize", "236 tensors to 8 bits, 5 kept in a wider format."),
        ],
        "raised": [
            {
                "tensor": "/head/reg_preds.0/Conv_output_0",
                "op": "Conv",
                "format": "float32",
                "reason": "box sizes pass through Exp: one step is 9 pixels",
                "gain_db": 11.3,
            },
            {
                "tensor": "/head/Concat_9_output_0",
                "op": "Concat",
                "format": "uint16",
                "reason": "joins scores of 0…1 with coordinates of 0…416",
                "gain_db": 6.4,
            },
            {
                "tensor": "output",
                "op": "Transpose",
                "format": "float32",
                "reason": "graph output, read by the decoder",
                "gain_db": None,
            },
        ],
        "findings": [
            {
                "kind": "branch-range-clash",
                "where": "/head/Concat_9",
                "text": "Joins branches whose ranges differ 416-fold; the scores keep 1 of 256 steps.",
                "action": "Keep the boxes and the scores as two outputs and join them after decoding.",
                "ratio": 416.0,
            },
            {
                "kind": "channel-range-clash",
                "where": "/backbone/dark3/conv1/Conv",
                "text": "The widest channel is 58 times the median channel and takes the range for itself.",
                "action": "Equalized with the layer before it; retraining would remove the cause.",
                "ratio": 58.2,
            },
        ],
    }


def _placement() -> dict[str, Any]:
    left = [
        {"node": f"/head/sigmoid.{i}", "op": "Sigmoid", "reason": "ONNX Runtime has no 8-bit kernel for it"}
        for i in range(6)
    ]
    left += [
        {"node": "/head/Exp", "op": "Exp", "reason": "its input was kept in float32"},
        {
            "node": "/head/Concat_9",
            "op": "Concat",
            "reason": "kept in a wider format by the mixed-precision search",
        },
    ]
    return {
        "float": {"integer_nodes": 0, "float_nodes": 152, "conversions": 0, "ops": {"Conv": 78}, "left": []},
        "int8": {
            "integer_nodes": 131,
            "float_nodes": 8,
            "conversions": 14,
            "ops": {"QLinearConv": 78, "QLinearAdd": 9, "QLinearMul": 30, "Sigmoid": 6, "QuantizeLinear": 7},
            "left": left,
        },
    }


def _layers(count: int) -> list[dict[str, Any]]:
    noise = random.Random(7)
    layers = []
    for index in range(count):
        sqnr = 41 - 17 * index / count + noise.gauss(0, 3.2) - (index % 37 == 31) * 15
        stage = ("backbone/dark2", "backbone/dark3", "neck/C3_p4", "head/cls_convs.1")[index * 4 // count]
        exact = index % 23 == 11
        layers.append(
            {
                "name": f"/{stage}/{index % 9}/conv/Conv",
                "op": "MaxPool" if exact else ("Conv", "Mul", "Add")[index % 3],
                "cosine": 1.0 if exact else 1 - 10 ** (-sqnr / 10) / 2,
                "sqnr_db": None if exact else sqnr,
                "max_abs": 0.0 if exact else 4.0 * 10 ** (-sqnr / 20),
                "max_steps": 0 if exact else int(6 * 10 ** ((40 - sqnr) / 20)),
            }
        )
    return layers


def draw_overlays(folder: Path) -> None:
    """Pictures that stand for photographs with boxes."""
    (folder / "overlays").mkdir()
    for seed, name in enumerate(("000000139", "000000285")):
        for kind, shift in (("float", 0), ("int8", 3)):
            draw_overlay(seed, shift).save(folder / "overlays" / f"{name}-{kind}.png")


def draw_overlay(seed: int, shift: int) -> Image.Image:
    noise = random.Random(seed)
    image = Image.new("RGB", (320, 213), (88 + 40 * seed, 104, 120))
    draw = ImageDraw.Draw(image)
    for index in range(7):
        left, top = noise.randint(0, 240), noise.randint(0, 140)
        width, height = noise.randint(30, 90), noise.randint(30, 80)
        shade = noise.randint(60, 200)
        draw.rectangle((left, top, left + width, top + height), fill=(shade, shade - 20, shade - 40))
        if index > 4:
            box = (left - shift, top, left + width, top + height + shift)
            draw.rectangle(box, outline=(255, 196, 0), width=2)
    return image


def make_compressed(groups: int = 63) -> dict[str, Any]:
    """The same detector pruned, made sparse and distilled first, with figures of the original beside it."""
    report = make_report()
    report["budget"] = [{"name": "latency_ms", "limit": 20.0, "value": 5.02, "ok": True}]
    target = report["targets"][0]
    noise = random.Random(5)
    medians = {"original": 24.2, "original_int8": 9.6, "float": 12.4, "int8": 5.0}
    runs = {k: [m * (1 + abs(noise.gauss(0, 0.03))) for _ in range(300)] for k, m in medians.items()}
    target["latency"] |= {"threads": 2, "samples_ms": runs, **{k: spread(v) for k, v in runs.items()}}
    target["latency_1t"] = {"threads": 1, **{k: figure(1.7 * m, "ms") for k, m in medians.items()}}
    scores = {"original": 0.338, "original_int8": 0.332, "float": 0.331, "int8": 0.326}
    for kind, score in scores.items():
        target["task"][kind] = {"mAP": figure(score, "mAP"), "mAP50": figure(1.5 * score, "mAP")}
    target["artifacts"] = {
        "float": {"path": "ort-cpu-host/float.onnx", "size_bytes": 1_868_000},
        "int8": {"path": "ort-cpu-host/int8.onnx", "size_bytes": 602_000},
    }
    target["sizes"] = {
        "original": 3_660_092,
        "original_int8": 1_071_340,
        "float": 1_868_000,
        "int8": 602_000,
    }
    original = {"parameters": 905_232, "macs": 540_300_000, "size_bytes": 3_620_928}
    final = {"parameters": 452_600, "macs": 269_800_000, "size_bytes": 1_810_400}
    steps = [_prune(groups, original, final), _sparsify(), _distill()]
    report["compress"] = {"original": original, "final": final, "steps": steps}
    return report


def _prune(count: int, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    noise = random.Random(11)
    names = [
        f"backbone.{('dark2', 'dark3', 'dark4', 'neck')[i * 4 // count]}.{i // 3}.conv{i % 3 + 1}.weight"
        for i in range(count)
    ]
    sizes = [(16, 32, 64, 128, 256)[i * 5 // count] for i in range(count)]
    kept = [max(2, round(size * noise.uniform(0.2, 0.8)) // 2 * 2) for size in sizes]
    kept[::9] = sizes[::9]
    weights = [10 ** noise.uniform(-3, 0) for _ in range(count)]
    return {
        "pass": "prune",
        "seconds": 94.31,
        "summary": "Removed 51 % of the channels in 58 of 63 groups and bypassed 1 block.",
        "before": before,
        "after": after,
        "reached": {"measure": "macs", "asked": 0.5, "got": 0.4994},
        "importance": "fisher",
        "align": 16,
        "steps": 4,
        "groups": [
            {"name": name, "kind": "heads" if size == 16 else "channels", "before": size, "after": left}
            for name, size, left in zip(names, sizes, kept, strict=True)
        ],
        "dropped": [{"input": "/backbone/dark4/Add_output_0", "output": "/backbone/dark4/Add_1_output_0"}],
        "locked": [
            {"where": "head.cls_preds.0.weight", "reason": "makes the graph output 'output'"},
            {"where": "head.reg_preds.0.weight", "reason": "makes the graph output 'boxes'"},
            {"where": "/head/Gather", "reason": "its indices depend on an input"},
        ],
        "verify": 1.2e-6,
        "saved": None,
        "predicted": {
            "before": {"value": 41.1, "unit": "ms", "method": "model-estimate"},
            "after": {"value": 21.4, "unit": "ms", "method": "model-estimate"},
        },
        "refit": _refit_of(names, weights, noise),
        "sensitivity": _sensitivity_of(names, sizes, weights, noise),
        "distance": {"pruned": 0.3121, "recovered": 0.0516},
        "notes": ["Widths are multiples of 16 on this target, so 50 % cannot be met exactly."],
    }


def _refit_of(names: list[str], weights: list[float], noise: random.Random) -> dict[str, Any]:
    return {
        "seconds": 9.1,
        "layers": [
            {
                "name": f"/{name.removesuffix('.weight').replace('.', '/')}/Conv",
                "before": 0.9 * weight**0.25,
                "after": 0.9 * weight**0.25 * (1 if i % 17 == 5 else noise.uniform(0.1, 0.5)),
                "kept": i % 17 != 5,
                "note": "no better on held-out rows" if i % 17 == 5 else "",
            }
            for i, (name, weight) in enumerate(zip(names, weights, strict=True))
        ],
        "skipped": [{"where": "/head/Gather", "reason": "has no weights"}],
    }


def _sensitivity_of(
    names: list[str], sizes: list[int], weights: list[float], noise: random.Random
) -> list[dict[str, Any]]:
    return [
        {
            "group": name,
            "kind": "channels",
            "ratio": ratio,
            "distance": weight * ratio**1.7 * 2,
            "metric": 0.338 - 0.1 * weight * ratio,
            "macs_saved": size * ratio * share / 9000,
            "latency_saved_ms": size * ratio * share / 160,
        }
        for name, size, weight in zip(names, sizes, weights, strict=True)
        for share in (noise.uniform(-0.05, 1.6),)
        for ratio in (0.125, 0.25, 0.5)
    ]


def _sparsify() -> dict[str, Any]:
    return {
        "pass": "sparsify",
        "seconds": 1.2,
        "summary": "Set 50 % of the weights of 61 layers to zero, 2 of every 4.",
        "pattern": "2:4",
        "sparsity": 0.5,
        "layers": [{"name": f"backbone.{i}.weight", "sparsity": 0.5} for i in range(61)],
        "refused": [{"where": "stem.conv.weight", "reason": "has 3 inputs: no blocks of 4"}],
        "bytes": {
            "raw": 1_810_400,
            "zlib": 1_102_233,
            "lzma": 1_040_981,
            "bitmask": 961_775,
            "packed": 1_018_350,
        },
        "benefit": [
            {
                "target": "ort-cpu:host",
                "latency": False,
                "text": "It has no sparse kernels: zeros are multiplied.",
            }
        ],
        "distance": {"pruned": 0.081, "recovered": 0.062},
        "notes": [],
    }


def _distill() -> dict[str, Any]:
    return {
        "pass": "distill",
        "seconds": 1310.0,
        "summary": "Trained towards the original on 126 unlabelled images.",
        "kinds": {"output": "detector"},
        "epochs": [
            {"epoch": e, "loss": 0.5 / e**0.8, "held_out": 0.42 / e**0.6 + 0.004 * (e > 9) * e, "rate": 1e-3}
            for e in range(1, 13)
        ],
        "best_epoch": 9,
        "distance": {"before": 0.062, "after": 0.021},
        "saved": None,
        "notes": [],
    }
