"""Every rule against the toolchain, on both sides: what is let through runs on integers, no more."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.errors import ModelError
from edgekit.targets.qnn_htp.cases import FIVE, IMAGE, SIX, Case, all_cases
from edgekit.targets.qnn_htp.ops_page import ops_page
from edgekit.targets.qnn_htp.rules import A8, A16, OPS, OTHER, check
from edgekit.targets.qnn_htp.single import FORMATS, absorbs, code_feeds, float_graph, quantized
from edgekit.targets.qnn_htp.verdicts import (
    Result,
    Table,
    Verdict,
    htp_scheme,
    prove,
    store,
    stored,
)

CASES = {case.name: case for case in all_cases()}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def proven() -> Table:
    """The whole table, from the toolchain that is installed."""
    pytest.importorskip("onnxruntime_qnn")
    return prove(CASES.values(), htp_scheme())


def _unforeseen(table: Table) -> list[tuple[str, str, Verdict]]:
    """Where the rules say something else. Scales are not theirs to judge: see ``moves`` in the scheme."""
    return [
        (name, fmt, verdict)
        for name, formats in table.items()
        if not CASES[name].apart
        for fmt, verdict in formats.items()
        if verdict.runs == bool(check(float_graph(CASES[name]), fmt))
    ]


def test_rules_say_what_the_toolchain_does(proven: Table) -> None:
    assert _unforeseen(proven) == []


def test_the_stored_table_is_what_the_toolchain_says(proven: Table) -> None:
    tools, table = stored()
    if tools["onnxruntime-qnn"] != version("onnxruntime-qnn"):
        pytest.skip(f"the table is for onnxruntime-qnn {tools['onnxruntime-qnn']}")
    for name, formats in proven.items():
        for fmt, verdict in formats.items():
            known = table[name][fmt]
            assert verdict.result == known.result, (name, fmt)
            # Where it computes something else, it is not the same each time.
            assert not verdict.runs or verdict.steps == known.steps, (name, fmt)


def test_the_stored_table_agrees_with_the_rules() -> None:
    """The same without the toolchain; every operator that runs has a case in each of its formats."""
    _, table = stored()
    assert set(table) == set(CASES)
    assert _unforeseen(table) == []
    for op, info in OPS.items():
        for fmt in info.formats:
            assert any(c.op == op and table[c.name][fmt].runs for c in CASES.values()), (op, fmt)


def test_every_check_has_a_case_that_breaks_it() -> None:
    for info in OPS.values():
        for rule in info.checks:
            graphs = [float_graph(c) for c in CASES.values() if c.op == info.op]
            nodes = [node for graph in graphs for node in graph.nodes if node.name == "op"]
            assert any(rule.broken(node) for node in nodes), (info.op, rule.text)


@pytest.mark.parametrize(
    ("name", "fmt", "result"),
    [
        ("CumSum", A8, Result.WRONG),
        ("Log", A16, Result.WRONG),
        ("ScatterElements: scales of their own", A16, Result.WRONG),
        ("AveragePool: ceil_mode, a window beyond the edge", A8, Result.WRONG),
        ("ConvTranspose: grouped", A8, Result.WRONG),
        ("MatMul: two computed, 5-D", A8, Result.WRONG),
        ("Reciprocal", A8, Result.WRONG),
        ("Gather: scales of its own", A8, Result.FLOAT),
        ("PRelu: a slope for each channel", A16, Result.REFUSED),
        ("Erf", A8, Result.REFUSED),
    ],
)
def test_known_traps_are_in_the_table(name: str, fmt: str, result: Result) -> None:
    assert stored()[1][name][fmt].result is result


def test_a_finding_names_node_rule_and_remedy() -> None:
    (found,) = check(float_graph(CASES["MaxPool: dilated"]))
    assert (found.node, found.op) == ("op", "MaxPool")
    assert "dilated" in found.reason
    assert found.remedy


def test_every_refusal_has_a_remedy() -> None:
    for info in (*OPS.values(), OTHER):
        assert info.formats == {A8, A16} or (info.note and info.remedy), info.op
        assert all(rule.text and rule.remedy for rule in info.checks), info.op


def test_an_unknown_operator_is_left() -> None:
    graph = float_graph(Case("Det", "Det", ((3, 4, 4),)))
    assert [item.reason for item in check(graph)] == [OTHER.note]


def test_an_operator_of_another_domain_is_left() -> None:
    graph = float_graph(CASES["Relu"])
    next(graph.nodes).domain = "com.example"
    assert [item.reason for item in check(graph)] == [OTHER.note]


@pytest.mark.parametrize(("shape", "left"), [(FIVE, 0), (SIX, 1)])
def test_five_axes_are_most(shape: tuple[int, ...], left: int) -> None:
    assert len(check(float_graph(Case("Relu", "Relu", (shape,))))) == left


def test_a_dynamic_shape_is_left() -> None:
    graph = float_graph(CASES["Relu"])
    graph.model.graph.inputs[0].shape = ir.Shape([1, 8, "height", 16])
    assert "static" in check(graph)[0].reason


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "name", ["Log", "PRelu: a slope for each channel", "Reciprocal", "MatMul: stored weights"]
)
def test_a_quantized_graph_is_judged_by_its_codes(name: str, fmt: str) -> None:
    graph = quantized(CASES[name], htp_scheme(), fmt)
    other = A8 if fmt == A16 else A16
    float_findings = [(i.node, i.reason) for i in check(float_graph(CASES[name]), fmt)]
    assert [(i.node, i.reason) for i in check(graph, other)] == float_findings


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_single_model_takes_and_returns_codes(fmt: str) -> None:
    case = CASES["Conv: 3x3"]
    graph = quantized(case, htp_scheme(), fmt)
    kinds = {v.dtype for v in (*graph.model.graph.inputs, *graph.model.graph.outputs)}
    assert kinds == {ir.DataType.from_numpy(np.dtype(FORMATS[fmt].value))}
    assert all(f["x0"].dtype == np.dtype(FORMATS[fmt].value) for f in code_feeds(case, graph))


def test_only_a_clip_from_zero_is_absorbed() -> None:
    found = []
    for name in ("Add: with Clip 0..6", "Mul: with Clip -1..1"):
        node, activation = float_graph(CASES[name]).nodes
        found.append(absorbs(node, activation, htp_scheme()))
    assert found == [True, False]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "qnn-ops.md").read_text(encoding="utf-8") == ops_page()


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = {"Relu": {A8: Verdict(Result.OK, 0), A16: Verdict(Result.REFUSED, None, "no")}}
    store(table, {"tool": "1"}, tmp_path / "ops.json")
    assert stored(tmp_path / "ops.json") == ({"tool": "1"}, table)


@pytest.mark.parametrize("content", ["", "{}", '{"toolchain": {}, "cases": {"x": {"a8w8": ["new", 0]}}}'])
def test_a_broken_table_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "ops.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"ops\.json"):
        stored(tmp_path / "ops.json")


def test_what_was_right_before_is_noticed_when_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case whose shape breaks a rule is foreseen as left: the comparison above is able to fail."""
    case = replace(CASES["Softplus"], shapes=(FIVE,))
    assert check(float_graph(case))
    assert not check(float_graph(replace(case, shapes=(IMAGE,))))


def test_the_scheme_lists_only_what_runs() -> None:
    rules = htp_scheme().ops
    assert {op for op in rules if not OPS[op].formats} == set()
    assert {op for op, rule in rules.items() if A16 not in OPS[op].formats and rule.wide} == set()


def test_no_product_absorbs_a_bias() -> None:
    """HTP adds one in Gemm only, and refuses a MatMul with an Add in float behind it."""
    assert "Add" not in htp_scheme().ops["MatMul"].fuses
