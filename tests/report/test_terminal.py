"""The closing lines of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgekit.report.terminal import summary


def test_the_summary_holds_the_table_and_the_warnings(report: dict[str, Any]) -> None:
    text = summary(report, report_path=Path("build/demo/report.html"))
    lines = text.splitlines()
    assert lines[0] == "yolox_nano.onnx on ort-cpu:host"
    assert any(re.fullmatch(r"mAP +0\.338 host +0\.332 host +−0\.006", line) for line in lines)
    assert any(re.fullmatch(r"Size +3\.66 MB file +1\.07 MB file +3\.42× smaller", line) for line in lines)
    assert "2 range clashes" in lines
    assert "3 tensors in a wider format" in lines
    assert "Budget missed  size 1.07 MB, limit 1 MB" in lines
    assert "2 warnings" in lines
    assert lines[-1] == "Report: build/demo/report.html"


def test_figures_stand_in_columns(report: dict[str, Any]) -> None:
    lines = summary(report).splitlines()
    head = next(line for line in lines if line.strip().startswith("float"))
    start, end = head.index("float") + len("float"), head.index("int8") + len("int8")
    for line in lines[lines.index(head) + 1 :][:8]:
        assert line[start - 1] != " "
        assert line[end - 1] != " "
        assert line[end] == " "


def test_plain_text_has_no_escape_codes(report: dict[str, Any]) -> None:
    assert "\033" not in summary(report)
    coloured = summary(report, colour=True)
    assert "\033[31m" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == summary(report)


def test_lines_are_wrapped(report: dict[str, Any]) -> None:
    report["warnings"] = ["word " * 60]
    assert max(len(line) for line in summary(report, width=72).splitlines()) <= 72


def test_names_cannot_steer_the_terminal(report: dict[str, Any]) -> None:
    report["warnings"] = ["\033[2J\rgone"]
    report["targets"][0]["target"] = "a\nb\033[1m"
    report["model"]["source"] = "net\033]0;title\a.onnx"
    text = summary(report)
    assert "\033" not in text
    assert "\r" not in text
    assert "\a" not in text
    assert "gone" in text


def test_long_lists_are_cut_and_counted(report: dict[str, Any]) -> None:
    report["targets"][0]["quantization"]["raised"] *= 10
    assert "  … and 25 more in the report" in summary(report).splitlines()


def test_absent_parts_are_left_out(report: dict[str, Any]) -> None:
    assert summary({}) == ""
    assert "float" in summary({"targets": [{"artifacts": {"float": {"size_bytes": 1}}}]})
    del report["targets"][0]["quantization"]
    del report["targets"][0]["parity"]
    report["warnings"] = []
    assert "clash" not in summary(report)
    assert "warning" not in summary(report)


def test_several_targets_have_a_table_each(report: dict[str, Any]) -> None:
    report["targets"] = [report["targets"][0], {**report["targets"][0], "target": "null:host"}]
    text = summary(report)
    assert "on ort-cpu:host" in text
    assert "on null:host" in text
    assert text.count("Peak memory") == 2


def test_cut_tails_are_one_line_after_what_was_acted_on(report: dict[str, Any]) -> None:
    def entry(kind: str, where: str, action: str, ratio: float) -> dict[str, Any]:
        return {
            "kind": kind,
            "where": where,
            "text": f"reaches -{ratio:g}, deep",
            "action": action,
            "ratio": ratio,
        }

    report["targets"][0]["quantization"]["findings"] = [
        entry("channel-range-clash", "idle", "none needed: its effect is small", 90),
        entry("channel-range-clash", "done", "raised to float32", 40),
        entry("pre-activation-tail", "t1", "range cut at -4", 20),
        entry("pre-activation-tail", "t2", "range cut at -5", 108),
    ]
    lines = summary(report).splitlines()
    start = lines.index("4 range clashes")
    assert lines[start + 1].startswith("- done: ")
    assert lines[start + 3].startswith("- idle: ")
    assert lines[start + 5] == "- 2 pre-activation tails cut (largest: t2, reaches -108)"


def test_outputs_are_shown_once_with_the_worst_sample(report: dict[str, Any]) -> None:
    target = report["targets"][0]
    assert re.search(r"\n  worst sample +– +0\.99642 host\n", summary(report))
    target["task"] = {
        "name": "outputs",
        "images": 32,
        "int8": {
            "cosine": {"value": 0.9987, "unit": "cosine", "method": "host", "spread": {"min": 0.9951}},
            "sqnr_db": {"value": 24.0, "unit": "dB", "method": "host"},
            "top1": {"value": 0.9, "unit": "", "method": "host"},
        },
    }
    text = summary(report)
    assert text.count("Cosine to float") == text.count("worst sample") == text.count("Signal to noise") == 1
    assert re.search(r"\n  worst sample +– +0\.99510 host\n", text)
    assert "largest" not in text
