"""Writes docs/tflite-ops.md from the table of operators: python .ci/tflite_ops_table.py [--check]."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekit.tflite.ops import ops_page

PAGE = Path(__file__).parent.parent / "docs" / "tflite-ops.md"

if __name__ == "__main__":
    if "--check" in sys.argv:
        stored = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        sys.exit(0 if stored == ops_page() else f"{PAGE.name} is out of date")
    PAGE.write_text(ops_page(), encoding="utf-8")
