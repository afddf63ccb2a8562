"""What the steps of a compression come to: the view's parts, and the lines on a terminal."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from edgekit.report.charts import ColumnData, column_chart, xy_chart
from edgekit.report.compression import compression, percent, seconds_text, step_view
from edgekit.report.compression_parts import (
    because,
    byte_rows,
    curve,
    groups_view,
    refit_view,
    sensitivity,
    short_names,
)
from edgekit.report.compression_text import compression_lines
from edgekit.report.terminal import summary


def steps(report: dict[str, Any]) -> list[dict[str, Any]]:
    return list(report["compress"]["steps"])


def test_a_report_without_compression_has_none(report: dict[str, Any]) -> None:
    assert compression(report) is None
    assert compression({"compress": {}}) is None


def test_all_steps_are_added_up(compressed: dict[str, Any]) -> None:
    found = compression(compressed)
    assert found is not None
    assert [step.name for step in found.steps] == ["prune", "sparsify", "distill"]
    assert [step.number for step in found.steps] == [1, 2, 3]
    assert found.seconds == "23 min 26 s"
    assert [(s.before, s.after, s.change) for s in found.sizes] == [
        ("905 k", "453 k", "−50 %"),
        ("540 M", "270 M", "−50 %"),
        ("3.62 MB", "1.81 MB", "−50 %"),
    ]


def test_a_missed_aim_is_marked(compressed: dict[str, Any]) -> None:
    step = steps(compressed)[0]
    assert not step_view(step).missed
    step["reached"] = {"measure": "latency", "asked": 0.5, "got": 0.61}
    view = step_view(step)
    assert view.missed
    assert view.aim == "latency: 50 % asked, 61 % reached"
    assert "Latency: 50 % asked, 61 % reached – missed" in compression_lines(step)


def test_an_expected_slowdown_is_marked(compressed: dict[str, Any]) -> None:
    step = steps(compressed)[0]
    step["predicted"]["after"]["value"] = 50.0
    assert step_view(step).sizes[-1].change == "1.22× slower"
    assert step_view(step).sizes[-1].tone == "bad"


def test_sizes_that_stay_are_left_out(compressed: dict[str, Any]) -> None:
    step = steps(compressed)[2]
    step["before"] = step["after"] = {"parameters": 5, "macs": 7, "size_bytes": 20}
    assert step_view(step).sizes == []
    step["after"] = {"parameters": 4, "macs": 7, "size_bytes": 20}
    assert [size.label for size in step_view(step).sizes] == ["Parameters"]


def test_groups_keep_their_order_and_sum(compressed: dict[str, Any]) -> None:
    view = groups_view(steps(compressed)[0]["groups"])
    assert view is not None
    assert [row.name for row in view.rows] == [g["name"] for g in steps(compressed)[0]["groups"]]
    assert view.text == "110 of 208 heads and 3,168 of 5,920 channels"
    assert view.chart is not None
    first = view.chart.columns[1]
    assert first.front_height == pytest.approx(first.back_height * view.rows[1].kept / 100)
    assert groups_view([{"name": "a", "before": 0, "after": 0}]) is None
    gone = groups_view([{"name": "a", "before": 8, "after": 0}])
    assert gone is not None
    assert gone.rows[0].kept == 0


def test_the_cheapest_groups_come_first() -> None:
    def entry(group: str, ratio: float, distance: float | None, macs: float) -> dict[str, Any]:
        return {"group": group, "kind": "channels", "ratio": ratio, "distance": distance, "macs_saved": macs}

    view = sensitivity(
        [
            entry("dear", 0.5, 0.5, 0.01),
            entry("idle", 0.5, 0.001, 0.0),
            entry("cheap", 0.25, 0.001, 0.01),
            entry("cheap", 0.5, 0.01, 0.02),
            entry("broken", 0.5, None, 0.02),
        ]
    )
    assert view is not None
    assert [(row.group, row.ratio, row.idle) for row in view.rows] == [
        ("cheap", "50 %", False),
        ("dear", "50 %", False),
        ("idle", "50 %", True),
    ]
    assert (view.timed, view.metric, view.broken) == (False, False, 1)
    assert view.chart is not None
    assert view.chart.logarithmic
    assert [len(series.points) for series in view.chart.series] == [1, 1, 2]
    assert sensitivity([]) is None


def test_latency_decides_where_all_of_it_is_known(compressed: dict[str, Any]) -> None:
    entries = steps(compressed)[0]["sensitivity"]
    view = sensitivity(entries)
    assert view is not None
    assert view.timed
    entries[0]["latency_saved_ms"] = None
    view = sensitivity(entries)
    assert view is not None
    assert not view.timed


def test_layers_that_were_left_are_marked() -> None:
    view = refit_view(
        {
            "layers": [
                {"name": "a", "before": 0.8, "after": 0.2, "kept": True},
                {"name": "b", "before": 0.4, "after": 0.5, "kept": False, "note": "worse"},
            ]
        }
    )
    assert view is not None
    assert view.left == 1
    assert view.chart is not None
    good, left = view.chart.columns
    assert (good.data.tone, left.data.tone) == ("", "warn")
    assert left.front_height == left.back_height == pytest.approx(good.back_height / 2)
    assert "left as it was (worse)" in left.data.text
    assert refit_view({}) is None


def test_the_curve_marks_the_best_epoch(compressed: dict[str, Any]) -> None:
    epochs = steps(compressed)[2]["epochs"]
    view = curve(epochs, 9)
    assert view is not None
    assert view.text == "12 epochs, loss on held-out samples 0.420 → 0.112"
    assert view.chart is not None
    assert view.chart.mark is not None
    held = next(series for series in view.chart.series if series.name == "held-out samples")
    assert view.chart.mark.at == held.points[8].x
    assert min(held.points, key=lambda point: -point.y).x == view.chart.mark.at
    assert [series.name for series in view.chart.series] == ["training", "held-out samples"]
    beyond = curve(epochs, 90)
    assert beyond is not None
    assert beyond.chart is not None
    assert beyond.chart.mark is None
    alone = curve([{"loss": 0.5}], None)
    assert alone is not None
    assert alone.text == "1 epoch"
    assert curve([], None) is None


def test_bytes_are_compared_with_the_plain_ones() -> None:
    rows = byte_rows({"raw": 1000, "zlib": 500, "my_own": 250, "none": None})
    assert [(row.name, row.text, row.share, row.change) for row in rows] == [
        ("as they are", "1.00 kB", 100.0, "100 %"),
        ("zlib", "500 B", 50.0, "50 %"),
        ("my own", "250 B", 25.0, "25 %"),
    ]


def test_reasons_that_differ_in_names_are_one() -> None:
    found = because(
        [
            {"where": "a", "reason": "its reader 'x' stays"},
            {"where": "b", "reason": "makes an output"},
            {"where": "c", "reason": "its reader 'y' stays"},
        ]
    )
    assert [(entry.reason, entry.places) for entry in found] == [
        ("its reader stays", ("a", "c")),
        ("makes an output", ("b",)),
    ]


def test_names_are_shortened_to_what_differs() -> None:
    assert short_names(["model.a.conv.weight", "model.b.conv.weight"]) == ["a", "b"]
    assert short_names(["model.a.weight", "model.a.bias"]) == ["weight", "bias"]
    assert short_names(["/net/a/Conv", "/net/b/x/Conv"]) == ["a", "b/x"]
    assert short_names(["conv.weight"]) == ["conv.weight"]
    assert short_names(["", "a"]) == ["", "a"]
    (long,) = short_names(["x" * 30 + "end"], limit=10)
    assert long == "…xxxxxxend"
    assert short_names([]) == []


def test_columns_fill_the_width_or_scroll() -> None:
    few, many = (column_chart([ColumnData("n", "t", 1, 0.5, "3")] * n, ((1, "1"),)) for n in (4, 200))
    assert few is not None
    assert many is not None
    assert few.width < 300
    assert many.width > 2000
    assert few.columns[0].data.value == "3"
    assert many.columns[0].data.value == ""
    assert column_chart([], ()) is None


def test_points_lie_inside_the_chart() -> None:
    points = [(x, y, "", "") for x in (-1.0, 0.0, 3.0) for y in (0.0, 1e-9, 0.5, 2.0)]
    for logarithmic in (True, False, None):
        chart = xy_chart([("a", points)], lines=True, logarithmic=logarithmic)
        assert chart is not None
        for point in chart.series[0].points:
            assert 0 <= point.x <= 100
            assert 0 <= point.y <= 100
        for tick in (*chart.x_ticks, *chart.y_ticks):
            assert 0 <= tick.at <= 100
    assert xy_chart([("a", [])], lines=False) is None


def test_a_wide_span_is_logarithmic_and_epochs_are_whole() -> None:
    def drawn(values: list[float]) -> Any:
        return xy_chart(
            [("a", [(i + 1.0, v, "", "") for i, v in enumerate(values)])], lines=True, counted=True
        )

    assert drawn([1.0, 0.01]).logarithmic
    assert not drawn([1.0, 0.5]).logarithmic
    assert not drawn([1.0, 0.0]).logarithmic
    for count in (1, 2, 3, 8, 100):
        labels = [tick.label for tick in drawn([1.0] * count).x_ticks]
        assert labels
        assert all(label.isdigit() for label in labels)
    assert [tick.label for tick in drawn([1.0, 0.05]).y_ticks] == ["0.05", "0.1", "0.2", "0.5", "1"]


def test_durations_and_shares_read_well() -> None:
    texts = [seconds_text(s) for s in (0.31, 59.9, 59.99, 94.3, 3599.7, 7380)]
    assert texts == ["0.3 s", "59.9 s", "1 min 0 s", "1 min 34 s", "1 h 0 min", "2 h 3 min"]
    assert [percent(s) for s in (0.5, 0.4974, 0.1)] == ["50 %", "49.7 %", "10 %"]


def test_one_step_is_printed_for_a_person(compressed: dict[str, Any]) -> None:
    lines = compression_lines(steps(compressed)[0])
    assert lines[0] == "prune  1 min 34 s"
    assert any(re.fullmatch(r"Parameters +905 k → +453 k  −50 %", line) for line in lines)
    for expected in (
        "Multiply-accumulates: 50 % asked, 49.9 % reached",
        "Distance to the original: 0.31 after pruning, 0.052 after recovery",
        "Ranked by: fisher",
        "Kept 110 of 208 heads and 3,168 of 5,920 channels; 56 of 63 groups narrower",
        "  … and 51 more with --json",
        "Bypassed 1 block",
        "Refit: 63 layers, median error 0.33 → 0.10; 4 left as they were",
        "Sensitivity, cheapest first",
        "3 parts left whole",
        "- head.cls_preds.0.weight and 1 more: makes the graph output",
        "- Widths are multiples of 16 on this target, so 50 % cannot be met exactly.",
    ):
        assert expected in lines
    lines = compression_lines(steps(compressed)[1])
    assert any(re.fullmatch(r"zlib +1\.10 MB +61 %", line) for line in lines)
    assert "ort-cpu:host: not faster" in lines
    assert "Training: 12 epochs, loss on held-out samples 0.420 → 0.112" in compression_lines(
        steps(compressed)[2]
    )


def test_a_step_may_lack_anything(compressed: dict[str, Any]) -> None:
    assert compression_lines({}) == ["step"]
    for step in steps(compressed):
        for key in step:
            smaller = {name: value for name, value in step.items() if name != key}
            assert all(isinstance(line, str) for line in compression_lines(smaller))
            odd_values: tuple[object, ...] = (None, [], {}, "text", float("nan"), -1)
            for odd in odd_values:
                compression_lines({**step, key: odd})


def test_the_summary_holds_the_steps_and_the_networks(compressed: dict[str, Any]) -> None:
    lines = summary(compressed).splitlines()
    assert lines[0].startswith("Compression in 23 min 26 s: parameters 905 k → 453 k (−50 %)")
    assert "1 prune  1 min 34 s" in lines
    assert "  Distance to the original: 0.062 before, 0.021 after" in lines
    pattern = r"compressed int8 +602 kB 6\.08× +8\.50 ms 4\.84× +5\.09 ms 4\.86× +0\.326 −0\.012"
    assert any(re.fullmatch(pattern, line) for line in lines)
    assert any(line.startswith("  by compression ") for line in lines)
    assert any(re.match(r"compressed +float +int8$", line) for line in lines)


def test_networks_stand_in_columns(compressed: dict[str, Any]) -> None:
    compressed["targets"][0]["latency"]["int8"]["value"] = 90.0
    lines = summary(compressed).splitlines()
    head = next(line for line in lines if "Latency, 1 thread" in line)
    at = head.index("Latency, 1 thread")
    for line in lines[lines.index(head) + 1 :][:4]:
        assert line[at - 2 : at] == "  "
        assert "ms" in line[at : at + 8]
    assert any("slower" in line and line.startswith("compressed int8") for line in lines)


def test_colours_change_nothing_but_colour(compressed: dict[str, Any]) -> None:
    coloured = summary(compressed, colour=True)
    assert "\033[32m" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == summary(compressed)
    for step in steps(compressed):
        text = "\n".join(compression_lines(step, colour=True))
        assert re.sub(r"\033\[\d+m", "", text) == "\n".join(compression_lines(step))


def test_compression_cannot_steer_the_terminal(compressed: dict[str, Any]) -> None:
    hostile = hostile_copy(compressed, "a\033[2J\r\nb")
    hostile["compress"]["steps"][1]["bytes"] = {"\033[2J": 3}
    texts = [summary(hostile), *("\n".join(compression_lines(step)) for step in steps(hostile))]
    for text in texts:
        assert "\033" not in text
        assert "\r" not in text


def hostile_copy(value: Any, text: str) -> Any:
    """The same with every string replaced."""
    if isinstance(value, dict):
        return {key: hostile_copy(entry, text) for key, entry in value.items()}
    if isinstance(value, list):
        return [hostile_copy(entry, text) for entry in value]
    return text if isinstance(value, str) else copy.copy(value)
