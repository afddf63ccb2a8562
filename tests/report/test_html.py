"""The HTML page: complete, self-contained, escaped, and calm about parts that are absent."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgekit.report.charts import latency_chart, layer_bars, quantile, ticks
from edgekit.report.html import render
from edgekit.report.numbers import bytes_text, count_text, signed, significant, with_unit
from edgekit.report.summary import rows, verdicts

VOID = {"meta", "img", "br", "path"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects text and every address."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += " ".join(data.split()) + " "


def test_the_page_says_what_the_report_says(report: dict[str, Any], folder: Path) -> None:
    text = Page(render(report, folder)).text
    for expected in (
        "yolox_nano.onnx",
        "3.42× smaller than float and loses 0.006 mAP. It misses the budget for size.",
        "24 November 2025, 05:40 UTC",
        "0.338",
        "3.66 MB",
        "0.99871",
        "25.9 dB",
        "416 : 1",
        "Keep the boxes and the scores as two outputs",
        "ONNX Runtime has no 8-bit kernel for it",
        "Folded 68 batch normalizations",
        "its size depends on an input",
        "2 of 128 calibration images were skipped",
        "truncated file",
        "images 1×3×416×416 float32",
        "outputs differ by 3.1e-06 at most",
        "All 143 layers",
    ):
        assert expected in text


def test_every_figure_has_its_method(report: dict[str, Any], folder: Path) -> None:
    html = render(report, folder)
    cells = re.findall(r'<td class="value" data-method="([^"]*)"', html)
    assert len(cells) == 15
    assert set(cells) == {"host", "file"}


def test_the_page_loads_nothing(report: dict[str, Any], folder: Path) -> None:
    html = render(report, folder)
    page = Page(html)
    assert len(page.addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "url(" not in html
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html


def test_whatever_the_report_holds_is_escaped(report: dict[str, Any], folder: Path) -> None:
    attack = "<script>alert(1)</script>\" onload='x'"
    html = render(replaced(report, attack), folder)
    assert "<script" not in html
    assert "onload='x'" not in html
    assert "&lt;script&gt;" in html
    Page(html)


def replaced(value: Any, text: str) -> Any:
    """The same report with every string replaced."""
    if isinstance(value, dict):
        return {key: replaced(entry, text) for key, entry in value.items()}
    if isinstance(value, list):
        return [replaced(entry, text) for entry in value]
    return text if isinstance(value, str) else value


def test_any_part_may_be_absent(report: dict[str, Any], folder: Path) -> None:
    for smaller in without_one_key(report):
        Page(render(smaller, folder))
    Page(render({}, folder))
    Page(render({"schema": 1, "targets": [{}]}, folder))


def without_one_key(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The report without one of its keys, for each key down to a target's parts."""
    report["targets"][0]["parity"]["layers"] = report["targets"][0]["parity"]["layers"][:12]
    for path in key_paths(report, 4):
        smaller = copy.deepcopy(report)
        table: Any = smaller
        for key in path[:-1]:
            table = table[key]
        del table[path[-1]]
        yield smaller


def key_paths(value: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict) and depth:
        for key, entry in value.items():
            yield (key,)
            yield from ((key, *rest) for rest in key_paths(entry, depth - 1))
    elif isinstance(value, list) and value and isinstance(value[0], dict) and depth:
        yield from ((0, *rest) for rest in key_paths(value[0], depth - 1))


ODD: list[object] = [None, float("nan"), float("inf"), "text", [], {}, -1, 0]


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_do_not_break_the_page(report: dict[str, Any], folder: Path, odd: object) -> None:
    target = report["targets"][0]
    target["latency"]["float"] = odd
    target["latency"]["samples_ms"] = {"float": [odd] * 10, "int8": odd}
    target["task"]["int8"]["mAP"] = odd
    target["artifacts"]["int8"]["size_bytes"] = odd
    target["parity"]["layers"][0] = {"name": "a", "op": "Conv", "sqnr_db": odd, "cosine": odd}
    target["parity"]["outputs"] = odd
    target["placement"]["int8"]["ops"] = odd
    target["quantization"]["findings"][0]["ratio"] = odd
    report["budget"][0]["value"] = odd
    report["created"] = odd
    Page(render(report, folder))


def test_images_outside_the_folder_are_not_read(report: dict[str, Any], folder: Path) -> None:
    inner = folder / "bundle"
    inner.mkdir()
    (folder / "secret.png").write_bytes(b"secret")
    (inner / "notes.txt").write_text("notes", encoding="utf-8")
    report["targets"][0]["overlays"] = [
        {"name": "a", "float": "../secret.png", "int8": "notes.txt"},
        {"name": "b", "float": str(folder / "secret.png"), "int8": "missing.png"},
    ]
    page = Page(render(report, inner))
    assert page.addresses == []
    assert page.text.count("no image") == 4


def test_long_lists_are_folded(report: dict[str, Any], folder: Path) -> None:
    quantization = report["targets"][0]["quantization"]
    quantization["raised"] *= 10
    quantization["findings"] *= 10
    text = Page(render(report, folder)).text
    assert "20 more" in text
    assert "14 more" in text


def test_the_verdict_follows_the_figures(report: dict[str, Any]) -> None:
    report.pop("budget")
    target = report["targets"][0]
    assert verdicts(report)[0].tone == "good"
    target["task"]["int8"]["mAP"]["value"] = 0.30
    assert verdicts(report)[0].tone == "warn"
    target["task"]["int8"]["mAP"]["value"] = 0.08
    assert verdicts(report)[0].tone == "bad"
    target["task"]["int8"]["mAP"]["value"] = 0.338
    target["latency"]["int8"]["value"] = 60.0
    verdict = verdicts(report)[0]
    assert verdict.tone == "warn"
    assert "slower" in verdict.text
    assert "keeps its mAP" in verdict.text
    target["latency"]["int8"] = target["latency"]["float"]
    expected = "Int8 is 3.42× smaller than float, is just as fast and keeps its mAP."
    assert verdicts(report)[0].text == expected
    del target["artifacts"]["int8"]
    assert verdicts(report)[0].text.startswith("Float only")


def test_figures_of_different_methods_are_not_compared(report: dict[str, Any]) -> None:
    target = report["targets"][0]
    target["latency"]["int8"]["method"] = "model-estimate"
    target["task"]["int8"]["mAP"]["method"] = "emulator"
    changes = {row.label: row.change for row in rows(target)}
    assert changes["Latency, median"] == changes["95th percentile"] == changes["mAP"] == "methods differ"
    text = verdicts(report)[0].text
    assert text == "Int8 is 3.42× smaller than float. It misses the budget for size."


def test_a_row_without_figures_is_left_out(report: dict[str, Any]) -> None:
    target = report["targets"][0]
    assert [row.label for row in rows(target)] == [
        "mAP",
        "mAP50",
        "Latency, median",
        "95th percentile",
        "Size",
        "Peak memory",
        "Cosine to float",
        "worst sample",
        "Signal to noise",
    ]
    for part in ("task", "latency", "parity"):
        del target[part]
    assert [row.label for row in rows(target)] == ["Size"]


def test_the_worst_of_several_outputs_is_shown(report: dict[str, Any]) -> None:
    outputs = report["targets"][0]["parity"]["outputs"]
    outputs.append({"name": "boxes", "cosine": 0.9, "sqnr_db": 40.0})
    cosine, _, noise = rows(report["targets"][0])[-3:]
    assert cosine.int8 is not None
    assert cosine.int8.value == 0.9
    assert "boxes" in cosine.int8.note
    assert noise.int8 is not None
    assert noise.int8.value == 25.9


def test_latency_chart_counts_every_run() -> None:
    chart = latency_chart({"float": [10.0] * 99 + [500.0], "int8": [4.0] * 50 + [6.0] * 50})
    assert chart is not None
    slow, quick = chart.rows
    assert (slow.name, slow.count, slow.beyond) == ("float", 100, 1)
    assert (quick.name, quick.count, quick.beyond) == ("int8", 100, 0)
    assert quick.median.at == pytest.approx(slow.median.at / 2)
    assert latency_chart({"float": [1.0] * 7}) is None
    assert latency_chart({}) is None


def test_axis_ticks_are_round_and_inside() -> None:
    assert [tick.label for tick in ticks(31.0)] == ["0", "10", "20", "30"]
    assert [tick.label for tick in ticks(0.5)] == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    for end in (0.013, 0.7, 1.0, 9.99, 1234.0):
        marks = ticks(end)
        assert 3 <= len(marks) <= 8
        assert all(0 <= mark.at <= 100 for mark in marks)


def test_quantile_is_interpolated() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert quantile([5.0], 0.95) == 5.0


def test_layer_bars_are_bounded() -> None:
    bars = layer_bars([{"sqnr_db": value} for value in (-5.0, 9.9, 15.0, 30.0, 200.0, None)])
    assert [bar.tone for bar in bars] == ["bad", "bad", "warn", "good", "good", "exact"]
    assert all(0 < bar.height <= 100 for bar in bars)
    assert bars[3].height == 50.0


def test_numbers_read_well() -> None:
    assert [significant(v) for v in (0, 9.806, 24.58, 123.4, 1234.5, 0.04127, -2.0)] == [
        "0",
        "9.81",
        "24.6",
        "123",
        "1,234",
        "0.0413",
        "−2.00",
    ]
    assert [bytes_text(v) for v in (12, 3660, 3_660_092, 999_600, 8.5e9)] == [
        "12 B",
        "3.66 kB",
        "3.66 MB",
        "1.00 MB",
        "8.50 GB",
    ]
    assert [count_text(v) for v in (7, 905232, 3.2e9)] == ["7", "905 k", "3.20 G"]
    assert with_unit(0.33849, "mAP") == "0.338"
    assert with_unit(25.94, "dB") == "25.9 dB"
    assert [signed(v) for v in (-0.0061, 0.0004, 0.012)] == ["−0.006", "±0", "+0.012"]


def test_passes_without_work_are_one_line(report: dict[str, Any], folder: Path) -> None:
    report["model"]["capture"]["changes"] += [
        {"pass_name": "name_nodes", "summary": "named 0 nodes", "refused": []},
        {"pass_name": "fold_batchnorm", "summary": "folded 0 of 0 batch normalizations", "refused": []},
        {"pass_name": "upgrade_opset", "summary": "opset 10 already", "refused": []},
    ]
    html = render(report, folder)
    assert "Nothing to do for name_nodes, fold_batchnorm." in html
    assert "named 0 nodes" not in html
    assert "opset 10 already" in html


def test_nodes_left_in_float_for_one_reason_are_one_line(report: dict[str, Any], folder: Path) -> None:
    report["targets"][0]["placement"]["int8"]["left"] = [
        {"op": "Mul", "node": "m1", "reason": "its input 'a' is not quantized"},
        {"op": "Mul", "node": "m2", "reason": "its input 'b' is not quantized"},
        {"op": "Add", "node": "a1", "reason": "its input 'c' is not quantized"},
    ]
    html = render(report, folder)
    assert "its input is not quantized" in html
    assert html.count("is not quantized") == 2
    assert "its input &#39;c&#39; is not quantized" in html


def test_tails_are_folded(report: dict[str, Any], folder: Path) -> None:
    tail = {
        "kind": "pre-activation-tail",
        "text": "reaches -20, deep",
        "action": "range cut at -4",
        "ratio": 5,
    }
    report["targets"][0]["quantization"]["findings"] = [{**tail, "where": f"t{i}"} for i in range(3)]
    html = render(report, folder)
    assert "<summary>3 pre-activation tails cut (largest: t0, reaches -20)</summary>" in html
    assert html.count("range cut at -4") == 3


def test_the_page_shows_what_compression_did(compressed: dict[str, Any], folder: Path) -> None:
    html = render(compressed, folder)
    text = " ".join(Page(html).text.split())
    for expected in (
        "Compressed int8 is 4.86× faster and 6.08× smaller than the original float "
        "and takes mAP from 0.338 to 0.326.",
        "By compression: 1.95× faster, 1.96× smaller, mAP −0.007.",
        "Original and compressed",
        "From here on, float and int8 are the compressed network.",
        "3 steps, 23 min 26 s",
        "905 k → 453 k −50 %",
        "multiply-accumulates: 50 % asked, 49.9 % reached",
        "after pruning 0.31 after recovery 0.052",
        "Widths are multiples of 16 on this target",
        "All 63 groups",
        "110 of 208 heads",
        "/backbone/dark4/Add_1_output_0",
        "3 parts left whole, and why",
        "its indices depend on an input",
        "median error 0.33 → 0.10; 4 left as they were",
        "1 not refitted",
        "bit mask and non-zero values",
        "not faster It has no sparse kernels",
        "best: epoch 9",
        "compressed float median",
    ):
        assert expected in text
    assert html.count('<g class="column') == 2 * 63
    assert html.count('class="dot') == 3 * 63 + 2 * 12


def test_a_page_without_compression_holds_nothing_of_it(report: dict[str, Any], folder: Path) -> None:
    html = render(report, folder)
    assert "ompress" not in html
    assert "original" not in html
    assert render({**report, "compress": {}}, folder) == html


def test_any_part_of_compression_may_be_absent(compressed: dict[str, Any], folder: Path) -> None:
    for step in slim(compressed):
        for path in key_paths(step, 4):
            smaller = copy.deepcopy(step)
            inner: Any = smaller
            for key in path[:-1]:
                inner = inner[key]
            del inner[path[-1]]
            Page(render({"compress": {"steps": [smaller]}}, folder))
    for kind in ("original", "original_int8", "float", "int8"):
        smaller = copy.deepcopy(compressed)
        for part in ("latency", "latency_1t", "task", "sizes", "artifacts"):
            smaller["targets"][0][part].pop(kind, None)
        Page(render(smaller, folder))
    Page(render({"compress": {"steps": [{}]}, "targets": [{}]}, folder))


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_in_compression_do_not_break_the_page(
    compressed: dict[str, Any], folder: Path, odd: object
) -> None:
    for step in slim(compressed):
        for key in step:
            Page(render({"compress": {"steps": [{**step, key: odd}]}}, folder))
        Page(render({"compress": {"steps": [leaves(step, odd)]}}, folder))
    target = leaves(compressed["targets"][0], odd)
    Page(render({"compress": compressed["compress"], "targets": [target]}, folder))
    Page(render({"compress": odd, "targets": compressed["targets"]}, folder))


def slim(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps with their long lists cut."""
    steps: list[dict[str, Any]] = report["compress"]["steps"]
    for step in steps:
        for key in ("groups", "sensitivity", "layers", "epochs"):
            if key in step:
                step[key] = step[key][:4]
    steps[0]["refit"]["layers"] = steps[0]["refit"]["layers"][:4]
    target = report["targets"][0]
    target["parity"]["layers"] = target["parity"]["layers"][:4]
    target["latency"]["samples_ms"] = {k: v[:20] for k, v in target["latency"]["samples_ms"].items()}
    return steps


def leaves(value: Any, odd: object) -> Any:
    """The same tables and lists with every single value replaced."""
    if isinstance(value, dict):
        return {key: leaves(entry, odd) for key, entry in value.items()}
    if isinstance(value, list):
        return [leaves(entry, odd) for entry in value]
    return odd


def test_what_compression_holds_is_escaped(compressed: dict[str, Any], folder: Path) -> None:
    attack = "<script>alert(1)</script>\" onload='x'"
    compressed["compress"]["steps"][1]["bytes"] = {attack: 3}
    html = render(replaced(compressed, attack), folder)
    assert "<script" not in html
    assert "onload='x'" not in html
    Page(html)


def test_the_compressed_page_loads_nothing(compressed: dict[str, Any], folder: Path) -> None:
    html = render(compressed, folder)
    page = Page(html)
    assert len(page.addresses) == 4
    assert "script" not in page.tags
    assert "url(" not in html
    assert "http://" not in html
