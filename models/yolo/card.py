"""Puts the measured score into README.md: python -m edgekit.models.yolo.card.

Figures in the README are never typed: they come from score.json, and a test checks that they still do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

START, END = "<!-- measured: from score.json -->", "<!-- end -->"
FOLDER = Path(__file__).parent


def section(score: dict[str, Any]) -> str:
    """The README's table of measured figures, and the command behind them."""
    training, seeds = score["training"], score["seeds"]
    rows = {
        "mAP at an overlap of 0.5": f"**{score['map50']:.3f}**",
        "mAP over 0.5 to 0.95": f"**{score['map50_95']:.3f}**",
        "measured on": f"{score['images']} validation scenes (seed {seeds['validation']}), float32",
        "parameters": f"{score['parameters']:,}",
        "trained on": f"{training['images']:,} scenes (seed {seeds['training']}), {training['epochs']} times",
        "training time": f"{training['seconds'] / 60:.0f} minutes on two shared CPU cores, without a GPU",
        "versions": ", ".join(f"{name} {number}" for name, number in score["versions"].items()),
    }
    table = [
        "| what | figure |",
        "| --- | --- |",
        *(f"| {what} | {figure} |" for what, figure in rows.items()),
    ]
    return "\n".join([START, *table, "", "Trained with:", "", "```sh", training["command"], "```", END])


def with_section(text: str, score: dict[str, Any]) -> str:
    """The README's text with its measured section made anew."""
    before, found, rest = text.partition(START)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"README.md has no section between {START} and {END}")
    return before + section(score) + after


def main() -> None:
    """Rewrites the section in README.md."""
    readme = FOLDER / "README.md"
    score = json.loads((FOLDER / "score.json").read_text())
    readme.write_text(with_section(readme.read_text(), score))


if __name__ == "__main__":
    main()
