"""Writes docs/executor-ops.md from the kernels: python .ci/ops_table.py [--check]."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekit.train.executor import ops_table

PAGE = Path(__file__).parent.parent / "docs" / "executor-ops.md"
HEAD = """# Operators that can be trained through

Made by `python .ci/ops_table.py` from the kernels. Each passes all node tests that the `onnx` package has for
it, but for those in the last column.

| operator | remarks | node tests not passed, or why there are none |
| --- | --- | --- |
"""


def page() -> str:
    """The page's text."""
    lines = []
    for row in ops_table():
        name = f"{row['domain']}.{row['op']}" if row["domain"] else row["op"]
        lines.append(f"| {name} | {row['notes']} | {row['tested']} |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE.name} is out of date")
    PAGE.write_text(page(), encoding="utf-8")
