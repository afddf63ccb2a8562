"""Check the file list of a wheel: ``python .ci/wheel_contents.py build/wheel/edgekit-….whl``.

``edgekit/targets`` and ``edgekit/models`` are symlinks in the source tree. A checkout without symlinks, or a
build backend that does not follow them, would drop both folders and say nothing.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

REQUIRED = (
    "edgekit/cli.py",
    "edgekit/py.typed",
    "edgekit/report/templates/report.html.j2",
    "edgekit/targets/null/hardware.toml",
    "edgekit/targets/ort_cpu/hardware.toml",
    "edgekit/targets/litert/hardware.toml",
    "edgekit/targets/ethos_u/hardware.toml",
    "edgekit/targets/ethos_u/npu.toml",
    "edgekit/targets/tflm/hardware.toml",
    "edgekit/models/yolo/recipe.toml",
    "edgekit/models/yolo/weights.safetensors",
    "edgekit/models/yolo/compressed/plan.json",
    "edgekit/models/yolo/compressed/distilled.npz",
    "edgekit/models/yolo/compressed/refined.npz",
    "edgekit/models/yolo/compressed/sharpened.npz",
    "edgekit/models/resnet/recipe.toml",
    "edgekit/models/resnet/weights.safetensors",
    "edgekit/report/templates/compression.html.j2",
    "edgekit/report/templates/unit.html.j2",
)
FORBIDDEN_TOP = ("targets", "models", "tests", "docs")


def faults(names: list[str]) -> list[str]:
    """What is wrong with a wheel that holds these files; empty when it is right."""
    found = [f"missing: {name}" for name in REQUIRED if name not in names]
    top = {name.split("/")[0] for name in names}
    found += [f"must not be in the wheel: {name}/" for name in FORBIDDEN_TOP if name in top]
    found += [f"must not be in the wheel: {name}" for name in names if "__pycache__" in name]
    return found


def main(paths: list[str]) -> int:
    """Print the faults of each wheel; 0 when there are none."""
    if not paths:
        print("usage: wheel_contents.py WHEEL…", file=sys.stderr)
        return 2
    bad = False
    for path in map(Path, paths):
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
        for fault in faults(names):
            print(f"{path.name}: {fault}", file=sys.stderr)
            bad = True
        print(f"{path.name}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
