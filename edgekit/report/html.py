"""The report as one HTML page that opens offline: styles, charts and images inside it, no scripts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.report.view import page

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent / "templates"


def render(report: dict[str, Any], folder: Path) -> str:
    """The page for a report.

    Everything that comes from the report is escaped; parts that the report lacks are left out.

    Args:
        report: The report JSON, schema 1.
        folder: Folder that the overlay paths of the report start at. Images outside it are not read.
    """
    return _environment().get_template("report.html.j2").render(page=page(report, folder))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
