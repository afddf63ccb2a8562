"""Original and compressed networks side by side, and the sentence about them."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.report.stages import stages
from edgekit.report.summary import primary_metric, rows, verdicts


def table(report: dict[str, Any]) -> dict[str, list[tuple[str, str, str]]]:
    """Text, change and tone of every cell, by the row's name."""
    target = report["targets"][0]
    found = stages(target, primary_metric(target))
    assert found is not None
    return {
        row.name: [("" if c.figure is None else c.figure.text, c.change, c.tone) for c in row.cells]
        for row in (*found.rows, *found.splits)
    }


def test_every_network_is_compared_with_the_original(compressed: dict[str, Any]) -> None:
    found = table(compressed)
    assert list(found) == [
        "original float",
        "original int8",
        "compressed float",
        "compressed int8",
        "by compression",
        "by int8",
        "against original int8",
    ]
    assert [text for text, _, _ in found["original float"]] == ["3.66 MB", "41.1 ms", "24.7 ms", "0.338"]
    assert [change for _, change, _ in found["original float"]] == [""] * 4
    assert found["compressed int8"][0] == ("602 kB", "6.08× smaller", "good")
    assert found["compressed int8"][3] == ("0.326", "−0.012", "bad")
    assert found["by int8"][0] == ("", "3.10× smaller", "good")
    assert found["against original int8"][2] == ("", "1.92× faster", "good")


def test_the_parts_multiply_to_the_whole(compressed: dict[str, Any]) -> None:
    found = table(compressed)
    for column in range(3):
        part, other, whole = (
            float(found[name][column][1].split("×")[0])
            for name in ("by compression", "by int8", "compressed int8")
        )
        assert part * other == pytest.approx(whole, rel=0.01)


def test_slower_and_larger_are_said(compressed: dict[str, Any]) -> None:
    target = compressed["targets"][0]
    target["latency"]["int8"]["value"] = 50.0
    target["sizes"]["float"] = 4_000_000
    found = table(compressed)
    assert found["compressed int8"][2] == ("50.0 ms", "2.02× slower", "bad")
    assert found["compressed float"][0] == ("4.00 MB", "1.09× larger", "bad")
    verdict = verdicts(compressed)[0]
    assert verdict.tone == "warn"
    assert verdict.text.startswith("Compressed int8 is 2.02× slower and 6.08× smaller than the original")
    assert "By compression: 1.95× faster, 1.09× larger, mAP −0.007." in verdict.detail


def test_the_verdict_names_what_each_step_brought(compressed: dict[str, Any]) -> None:
    verdict = verdicts(compressed)[0]
    assert verdict.text == (
        "Compressed int8 is 4.86× faster and 6.08× smaller than the original float "
        "and takes mAP from 0.338 to 0.326."
    )
    assert verdict.detail == (
        "By compression: 1.95× faster, 1.96× smaller, mAP −0.007. "
        "By int8: 2.49× faster, 3.10× smaller, mAP −0.005. "
        "Against original int8: 1.92× faster, 1.78× smaller, mAP −0.006."
    )
    task = compressed["targets"][0]["task"]
    task["int8"]["mAP"]["value"] = 0.338
    assert "keeps its mAP of 0.338" in verdicts(compressed)[0].text
    assert verdicts(compressed)[0].tone == "good"
    task["int8"]["mAP"]["value"] = 0.2
    assert verdicts(compressed)[0].tone == "bad"


def test_a_missed_budget_stays_in_the_verdict(compressed: dict[str, Any]) -> None:
    compressed["budget"] = [{"name": "latency_ms", "limit": 1.0, "value": 5.0, "ok": False}]
    verdict = verdicts(compressed)[0]
    assert verdict.text.endswith("It misses the budget for latency.")
    assert verdict.tone == "bad"
    assert verdict.detail


def test_the_original_int8_may_be_unmeasured(compressed: dict[str, Any]) -> None:
    target = compressed["targets"][0]
    for part in ("latency", "latency_1t", "task", "sizes"):
        del target[part]["original_int8"]
    found = table(compressed)
    assert "original int8" not in found
    assert "against original int8" not in found


def test_float_alone_is_compared_too(compressed: dict[str, Any]) -> None:
    target = compressed["targets"][0]
    for part in ("latency", "latency_1t", "task", "sizes", "artifacts"):
        target[part].pop("int8")
    assert verdicts(compressed)[0].text.startswith("Compressed float is 1.95× faster and 1.96× smaller")


def test_without_figures_of_the_original_the_reference_is_named(compressed: dict[str, Any]) -> None:
    target = compressed["targets"][0]
    for part in ("latency", "latency_1t", "task", "sizes"):
        for kind in ("original", "original_int8"):
            del target[part][kind]
    assert stages(target, "mAP") is None
    assert verdicts(compressed)[0].text.startswith(
        "Int8 is 2.49× faster and 3.10× smaller than the compressed float"
    )
    assert stages({}, None) is None


def test_without_figures_of_the_compressed_network_nothing_is_claimed(compressed: dict[str, Any]) -> None:
    target = compressed["targets"][0]
    for part in ("latency", "latency_1t", "task", "sizes", "artifacts"):
        for kind in ("float", "int8"):
            target[part].pop(kind, None)
    verdict = verdicts(compressed)[0]
    assert verdict.text == "Of the compressed network nothing was measured."
    assert verdict.tone == "warn"


def test_different_methods_are_not_compared(compressed: dict[str, Any]) -> None:
    compressed["targets"][0]["latency"]["int8"]["method"] = "model-estimate"
    target = compressed["targets"][0]
    found = stages(target, "mAP")
    assert found is not None
    assert [column.method for column in found.columns] == ["file", "host", "", "host"]
    assert table(compressed)["compressed int8"][2][1:] == ("methods differ", "")
    assert "faster" not in verdicts(compressed)[0].text


def test_one_latency_is_shown_once(compressed: dict[str, Any]) -> None:
    target = compressed["targets"][0]
    target["latency"]["threads"] = 1
    found = stages(target, "mAP")
    assert found is not None
    assert [column.label for column in found.columns] == ["Size", "Latency, 1 thread", "mAP"]
    assert found.index("speed") == 1
    assert found.index("heat") is None


def test_the_main_score_is_found_whatever_was_measured(compressed: dict[str, Any]) -> None:
    task = compressed["targets"][0]["task"]
    assert primary_metric({"task": {"original": task["original"]}}) == "mAP"
    assert primary_metric({"task": {"original_int8": {"AUC": 0.9}}}) == "AUC"
    assert primary_metric({"task": {"float": {"accuracy": 0.9}, "original": {"mAP": 0.9}}}) == "mAP"


def test_compared_outputs_name_what_they_are_compared_with(compressed: dict[str, Any]) -> None:
    def cosine(value: float) -> dict[str, Any]:
        return {"cosine": {"value": value, "unit": "cosine", "method": "host"}}

    target = compressed["targets"][0]
    target["task"] = {"name": "outputs", "float": cosine(0.995), "int8": cosine(0.991)}
    assert rows(target)[0].label == "Cosine to original"
    assert [cell[0] for cell in (row[-1] for row in table(compressed).values())][:4] == [
        "",
        "",
        "0.99500",
        "0.99100",
    ]
    assert "follows the original with a cosine of 0.99100" in verdicts(compressed)[0].text
    target["task"] = {"name": "outputs", "reference": "original", "int8": cosine(0.991)}
    assert "follows the original with a cosine of 0.99100" in verdicts(compressed)[0].text
    target["task"] = {"name": "outputs", "int8": cosine(0.7)}
    assert rows(target)[0].label == "Cosine to float"
    verdict = verdicts(compressed)[0]
    assert "follows the compressed float with a cosine of 0.70000" in verdict.text
    assert verdict.tone == "bad"
