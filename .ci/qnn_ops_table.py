"""Writes docs/qnn-ops.md: python .ci/qnn_ops_table.py [--check | --prove].

``--prove`` first asks the toolchain again about every operator (minutes; needs the extra qnn) and writes
targets/qnn_htp/ops.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgekit.targets.qnn_htp.ops_page import ops_page

PAGE = Path(__file__).parent.parent / "docs" / "qnn-ops.md"


def prove() -> None:
    """Write ``ops.json`` anew."""
    from edgekit.targets.qnn_htp.cases import all_cases
    from edgekit.targets.qnn_htp.verdicts import htp_scheme, prove, store, versions

    store(prove(all_cases(), htp_scheme()), versions())


if __name__ == "__main__":
    if "--prove" in sys.argv:
        prove()
    if "--check" in sys.argv:
        stored = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        sys.exit(0 if stored == ops_page() else f"{PAGE.name} is out of date")
    PAGE.write_text(ops_page(), encoding="utf-8")
