"""What NPUs and several runtimes add to a report: the compiler's estimate, and the steps between runtimes."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from edgekit.report.html import render
from edgekit.report.terminal import summary
from edgekit.report.unit import estimate, runtimes


def layer(name: str, cycles: int, macs: int = 1000) -> dict[str, Any]:
    return {"name": name, "op": "Conv2D", "cycles": cycles, "macs": macs, "utilization": 0.25}


def complete() -> dict[str, Any]:
    latency = {
        "value": 1.234,
        "unit": "ms",
        "method": "compiler-estimate",
        "spread": {},
        "note": "Vela's estimate: 617,000 cycles of the NPU at 500 MHz",
    }
    return {
        "latency": latency,
        "missing": [],
        "memory": {"SRAM": 1_500_000, "off-chip flash": 900_000},
        "layers": [layer(f"conv{i}", 600 - 50 * i) for i in range(12)],
        "notes": ["weights are read from flash"],
    }


def incomplete() -> dict[str, Any]:
    missing = [
        {"node": "up", "op": "RESIZE_BILINEAR", "reason": "the factor is 3 < 4", "remedy": "resize by 2"},
        {"node": "odd", "op": "<CUSTOM>", "reason": "no rule", "remedy": ""},
    ]
    return {**complete(), "latency": None, "missing": missing}


def row(tensor: str, steps: int, rms: float, different: float) -> dict[str, Any]:
    return {
        "tensor": tensor, "op": "CONV_2D", "different": different, "rms_steps": rms, "max_steps": steps
    }  # fmt: skip


def between(worst: int = 2) -> dict[str, Any]:
    return {
        "reference": "LiteRT, reference kernels",
        "budget_steps": 2,
        "samples": 4,
        "ok": worst <= 2,
        "outputs": {
            "integer reference": [row("y", 0, 0.0, 0.0), row("z", 0, 0.0, 0.0)],
            "LiteRT, XNNPACK": [row("y", 1, 0.31, 0.0123), row("z", worst, 0.12, 0.5)],
            "ONNX Runtime": [],
        },
        "layers": {
            "integer reference": [row("a", 0, 0.0, 0.0)],
            "ONNX Runtime": [row("a", 7, 0.77, 0.25), row("b", 3, 1.5, 0.125)],
        },
        "notes": [],
    }


@pytest.fixture
def npu(report: dict[str, Any]) -> dict[str, Any]:
    """A report on an NPU whose compiler accounts for everything."""
    target = report["targets"][0]
    target["target"], target["title"] = "ethos-u:u55-128", "Arm Ethos-U"
    target["estimate"] = {"int8": complete()}
    target["latency"] = {"int8": complete()["latency"], "notes": []}
    target["runtimes"] = between()
    return report


def text_of(report: dict[str, Any], folder: Path) -> str:
    """The page's text, tags left out, blanks joined."""
    page = render(report, folder)
    body = page[page.index("<body") :]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


# Arranged


def test_other_targets_have_neither(report: dict[str, Any], folder: Path) -> None:
    (target,) = report["targets"]
    assert estimate(target) is None
    assert runtimes(target) is None
    assert "estimate" not in summary(report)
    assert "Steps off" not in summary(report)
    text = text_of(report, folder)
    assert "Compiler's estimate" not in text
    assert "Between runtimes" not in text


def test_layers_have_their_share_and_the_slowest_are_shown() -> None:
    found = estimate({"estimate": {"int8": complete()}})
    assert found is not None
    assert found.complete
    assert found.count == 12
    assert [item.name for item in found.layers] == [f"conv{i}" for i in range(10)]
    total = sum(600 - 50 * i for i in range(12))
    assert found.layers[0].share == pytest.approx(100 * 600 / total, abs=0.01)
    assert (found.layers[0].cycles, found.layers[0].macs, found.layers[0].utilization) == (
        "600",
        "1.00 k",
        "25 %",
    )
    assert found.memory == [("SRAM", "1.50 MB"), ("off-chip flash", "900 kB")]


def test_what_the_compiler_leaves_out_makes_it_incomplete() -> None:
    found = estimate({"estimate": {"int8": incomplete()}})
    assert found is not None
    assert not found.complete
    assert found.missing == [
        ("RESIZE_BILINEAR", "up", "the factor is 3 < 4", "resize by 2"),
        ("<CUSTOM>", "odd", "no rule", ""),
    ]


def test_rows_hold_the_worst_of_all_outputs_and_layers() -> None:
    found = runtimes({"runtimes": between(worst=5)})
    assert found is not None
    assert (found.reference, found.budget, found.samples) == ("LiteRT, reference kernels", 2, 4)
    exact, fast, onnx = found.rows
    assert (exact.runtime, exact.steps, exact.different, exact.tone) == ("integer reference", "0", "none", "")
    assert (exact.layer_steps, exact.layer_different) == ("0", "none")
    assert (fast.steps, fast.rms, fast.different, fast.tone) == ("5", "0.31", "50 %", "bad")
    assert (fast.layer_steps, fast.layer_rms, fast.layer_different) == ("", "", "")
    assert (onnx.steps, onnx.different, onnx.tone) == ("", "", "")
    assert (onnx.layer_steps, onnx.layer_rms, onnx.layer_different) == ("7", "1.50", "25 %")


def test_the_budget_itself_is_no_miss() -> None:
    found = runtimes({"runtimes": between(worst=2)})
    assert found is not None
    assert [item.tone for item in found.rows] == ["", "", ""]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"int8": None},
        {"int8": {"layers": None, "memory": None, "missing": None, "notes": None}},
        {"int8": {"layers": [{"name": None, "cycles": "many"}, 3], "memory": {"SRAM": "big", "DRAM": None}}},
    ],
)
def test_parts_that_are_lacking_or_broken_come_out_empty(broken: dict[str, Any]) -> None:
    found = estimate({"estimate": broken})
    if found is not None:
        assert not found.timed
        assert found.memory == []
        assert all(item.share == 0 for item in found.layers)
    assert runtimes({"runtimes": {"outputs": {"a": None}, "layers": 3, "budget_steps": None}}) is not None
    assert runtimes({"runtimes": {}}) is None


# On a terminal


def test_a_complete_estimate_on_a_terminal(npu: dict[str, Any]) -> None:
    lines = summary(npu).splitlines()
    assert "The compiler's estimate covers every operator" in lines
    assert "- SRAM 1.50 MB, off-chip flash 900 kB" in lines
    assert "- weights are read from flash" in lines
    assert any(re.fullmatch(r"Latency, median +– +1\.23 ms compiler-estimate", line) for line in lines)
    assert "incomplete" not in summary(npu)


def test_an_incomplete_estimate_has_no_figure_and_a_count(npu: dict[str, Any]) -> None:
    npu["targets"][0]["estimate"]["int8"] = incomplete()
    del npu["targets"][0]["latency"]
    text = summary(npu)
    assert "The compiler's estimate is incomplete: 2 operators on the CPU" in text.splitlines()
    assert "covers every operator" not in text
    assert "Latency, median" not in text
    npu["targets"][0]["estimate"]["int8"]["missing"].pop()
    assert "The compiler's estimate is incomplete: 1 operator on the CPU" in summary(npu).splitlines()


def test_runtimes_on_a_terminal(npu: dict[str, Any]) -> None:
    lines = summary(npu).splitlines()
    start = lines.index("Steps of 8 bits off LiteRT, reference kernels at the outputs (2 allowed)")
    shown = [line for line in lines[start + 1 : start + 6] if "its layers" not in line]
    assert shown[:3] == [
        "- integer reference: 0",
        "- LiteRT, XNNPACK: 2 at most, 0.31 RMS, 50 % of the codes differ",
        "- ONNX Runtime: not compared",
    ]


def test_layers_and_notes_of_runtimes_are_on_a_terminal(npu: dict[str, Any]) -> None:
    found = npu["targets"][0]["runtimes"]
    found["layers"] = {"LiteRT, XNNPACK": [row("a", 1, 0.1, 0.02), row("b", 3, 0.2, 0.01)]}
    found["notes"] = ["each layer was fed with the reference's codes"]
    text = summary(npu)
    assert "- its layers: 3 at most, 2 % of the codes differ" in text
    assert "- each layer was fed with the reference's codes" in text
    assert "each layer was fed" in render(npu, Path())


def covered(**more: Any) -> dict[str, Any]:
    left = {"node": "nms", "op": "NonMaxSuppression", "reason": "no kernel", "remedy": "runs on the CPU"}
    ops = [
        {"op": "NonMaxSuppression", "nodes": 1, "on_unit": 0, "kernels": {}},
        {"op": "Conv", "nodes": 3, "on_unit": 3, "kernels": {"Conv2d": 2, "DepthWiseConv2d": 1}},
    ]
    return {
        "unit": "HTP",
        "method": "compiled",
        "on_unit": 3,
        "nodes": 4,
        "ops": ops,
        "left": [left],
        "boundary": [],
        "inserted": {"Transpose": 2},
        "stamp": {"architecture": "v75"},
        "notes": [],
        **more,
    }


def test_coverage_names_what_does_not_run_on_the_unit(npu: dict[str, Any]) -> None:
    npu["targets"][0]["coverage"] = covered()
    text = summary(npu)
    assert "3 of 4 nodes run on HTP" in text
    assert "- NonMaxSuppression 'nms': no kernel. runs on the CPU" in text
    assert "- added by the compiler: Transpose ×2" in text
    assert "- architecture v75" in text
    page = render(npu, Path())
    assert "Conv2d ×2, DepthWiseConv2d" in page
    assert "no kernel" in page
    assert "by the rules" not in page
    assert page.index(">Conv<") < page.index('>NonMaxSuppression</td><td class="number">1')


def test_coverage_by_rules_says_so(npu: dict[str, Any]) -> None:
    npu["targets"][0]["coverage"] = covered(method="rules", notes=["it was not compiled: not installed"])
    for text in (summary(npu), render(npu, Path())):
        assert "by the rules: it was not compiled" in text
        assert "it was not compiled: not installed" in text


def test_the_emulator_stands_beside_this_machine(npu: dict[str, Any]) -> None:
    def score(value: float) -> dict[str, Any]:
        return {"map": {"value": value, "unit": "", "method": "host", "spread": {}, "note": ""}}

    npu["targets"][0]["emulator"] = {
        "name": "detection",
        "samples": 8,
        "seconds": 12.34,
        "float": score(0.5),
        "int8": score(0.49),
        "emulator": score(0.485),
    }
    text = summary(npu)
    assert "In the emulator, 8 samples in 12.3 s" in text
    assert "- map: float 0.5000, int8 here 0.4900, int8 in the emulator 0.4850" in text
    assert "0.4850" in render(npu, Path())
    npu["targets"][0]["emulator"] = {"unmeasured": "it hung"}
    for text in (summary(npu), render(npu, Path())):
        assert "it hung" in text


def test_an_estimate_from_a_table_is_not_called_the_compilers(npu: dict[str, Any]) -> None:
    entry = npu["targets"][0]["estimate"]["int8"]
    entry["latency"] = {**entry["latency"], "method": "model-estimate"}
    assert "Latency is worked out from a hardware table, not measured" in summary(npu)
    page = render(npu, Path())
    assert "Estimate from the hardware table" in page
    assert "Compiler&#39;s estimate" not in page


def test_colours_mark_what_is_bad(npu: dict[str, Any]) -> None:
    red, green = "\033[31m", "\033[32m"
    assert f"{green}The compiler's estimate covers" in summary(npu, colour=True)
    assert f"{red}- LiteRT" not in summary(npu, colour=True)
    npu["targets"][0]["estimate"]["int8"] = incomplete()
    npu["targets"][0]["runtimes"] = between(worst=3)
    text = summary(npu, colour=True)
    assert f"{red}The compiler's estimate is incomplete" in text
    assert f"{red}- LiteRT, XNNPACK: 3 at most" in text
    assert f"{red}- integer" not in text


def test_lines_are_wrapped_and_names_cannot_steer_the_terminal(npu: dict[str, Any]) -> None:
    target = npu["targets"][0]
    target["estimate"]["int8"]["notes"] = ["word " * 50, "\033[2Jgone"]
    target["estimate"]["int8"]["memory"] = {"\033[1mSRAM": 5}
    target["runtimes"]["reference"] = "a\rb\033[1m"
    target["runtimes"]["outputs"] = {"\033]0;title\a": [row("y", 1, 1.0, 1.0)]}
    target["target"] = "short"
    text = summary(npu, width=72)
    assert not {"\033", "\r", "\a"} & set(text)
    assert "gone" in text
    start = text.index("The compiler's estimate")
    assert max(len(line) for line in text[start:].splitlines() if "word" in line) <= 72


# On the page


def test_the_page_shows_the_estimate(npu: dict[str, Any], folder: Path) -> None:
    text = text_of(npu, folder)
    assert "Compiler's estimate 12 operators" in text
    assert "12 operators, incomplete" not in text
    assert "SRAM 1.50 MB , off-chip flash 900 kB" in text.replace("MB,", "MB ,")
    assert "weights are read from flash" in text
    slowest = text[text.index("Slowest operators") :]
    assert "Conv2D conv0 600 15.4 % 1.00 k 25 %" in slowest
    assert "conv9" in slowest
    assert "conv10" not in slowest
    assert "1.23 ms compiler-estimate" in text
    assert "estimated by the vendor's compiler" in text, "the legend says what the method means"


def test_the_page_lists_what_runs_on_the_cpu(npu: dict[str, Any], folder: Path) -> None:
    npu["targets"][0]["estimate"]["int8"] = incomplete()
    del npu["targets"][0]["latency"]
    text = text_of(npu, folder)
    assert "12 operators, incomplete" in text
    assert "there is no figure for the network" in text
    assert "RESIZE_BILINEAR up the factor is 3 < 4 resize by 2" in text
    assert "compiler-estimate" not in text
    # Names are text, not markup.
    page = render(npu, folder)
    assert "&lt;CUSTOM&gt;" in page
    assert "<CUSTOM>" not in page


def test_the_page_shows_runtimes(npu: dict[str, Any], folder: Path) -> None:
    npu["targets"][0]["runtimes"] = between(worst=5)
    text = text_of(npu, folder)
    head = "Between runtimes against LiteRT, reference kernels, 4 samples; an output may be 2 steps off"
    assert head in text
    assert "LiteRT, XNNPACK 5 0.31 50 %" in text
    assert "ONNX Runtime 7 1.50 25 %" in text
    page = render(npu, folder)
    assert re.search(r'class="number bad"\s*>\s*5\s*<', page)


def test_the_tooltip_of_an_estimate_counts_cycles_in_cycles(npu: dict[str, Any], folder: Path) -> None:
    page = html.unescape(render(npu, folder))
    titles = re.findall(r'title="([^"]*)"', page)
    (title,) = {t for t in titles if "Vela's estimate" in t}
    assert "617" in title
    assert not re.search(r"(617|500)[0-9,]* ms", title), title


def test_the_ladder_is_shown_where_more_than_its_first_rung_was_climbed(npu: dict[str, Any]) -> None:
    first = {"name": "plain", "db": 4.6, "seconds": 12.4, "text": "calibrated by mse"}
    second = {"name": "reconstruct", "db": 9.25, "seconds": 240.0, "text": "31 of 40 blocks learned"}
    quantization = npu["targets"][0].setdefault("quantization", {})
    quantization["ladder"] = [first]
    assert "How int8 was found" not in summary(npu)
    quantization["ladder"] = [first, second]
    text = summary(npu)
    assert "- plain: 4.6 dB in 12 s, calibrated by mse" in text
    assert "- reconstruct: 9.2 dB in 240 s, 31 of 40 blocks learned" in text
    assert "31 of 40 blocks learned" in render(npu, Path())
