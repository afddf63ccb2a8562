"""The page ``docs/qnn-ops.md``: what HTP does with every operator, from the rules and ``ops.json``."""

from __future__ import annotations

from edgekit.targets.qnn_htp.cases import Case, all_cases
from edgekit.targets.qnn_htp.rules import A8, A16, EVERYWHERE, OPS, Check, OpInfo
from edgekit.targets.qnn_htp.verdicts import PROFILE, SOC, Result, Table, Verdict, stored

_HEAD = """# Operators on Qualcomm's HTP

Made by `python .ci/qnn_ops_table.py`. Every operator was compiled alone, in the form that edgekit's quantizer
writes, by {tools} for {profile} (QNN's soc_model {soc}), and run in its
emulator on the host. The numbers are the largest difference to ONNX Runtime's CPU kernels on the same file,
over all forms that were tried, in steps of the format: 256 steps of 16 bits are about one of 8 bits. The
tests do this again (`tests/targets/qnn_htp/test_rules.py`).

- **a8w8**: uint8 activations, int8 weights with one scale per channel, int32 biases.
- **a16w8**: uint16 activations, int8 weights.
- `{left}` names the nodes of a network that break a rule.

{everywhere}

## What runs

| Operator | a8w8 | a16w8 | Not when |
|---|---|---|---|
"""
_LEFT = """
## What does not

| Operator | Why | Instead |
|---|---|---|
"""
_TRIED = """
## What was tried

| Network | a8w8 | a16w8 |
|---|---|---|
"""


def ops_page() -> str:
    """The page's text."""
    tools, table = stored()
    cases = all_cases()
    runs = [info for info in OPS.values() if info.formats]
    lines = [
        _HEAD.format(
            tools=", ".join(f"{name} {version}" for name, version in tools.items()),
            profile=PROFILE,
            soc=SOC,
            left="edgekit inspect --target qnn-htp",
            everywhere="Every operator stays outside when "
            + "; or when ".join(f"{rule.text} (instead: {rule.remedy})" for rule in EVERYWHERE)
            + ".",
        )
    ]
    for info in runs:
        cells = [_cell(info, fmt, cases, table) for fmt in (A8, A16)]
        lines.append(f"| {info.op} | {' | '.join(cells)} | {_rules(info)} |\n")
    lines.append(_LEFT)
    lines += [f"| {i.op} | {i.note} | {i.remedy} |\n" for i in OPS.values() if not i.formats]
    lines.append(_TRIED)
    for case in cases:
        row = table.get(case.name, {})
        cells = [_verdict(row[fmt]) if fmt in row else "not tried" for fmt in (A8, A16)]
        lines.append(f"| {case.name} | {' | '.join(cells)} |\n")
    return "".join(lines)


def _cell(info: OpInfo, fmt: str, cases: tuple[Case, ...], table: Table) -> str:
    if fmt not in info.formats:
        return "no"
    found = [table[c.name][fmt] for c in cases if c.op == info.op and fmt in table.get(c.name, {})]
    steps = [v.steps for v in found if v.runs and v.steps is not None]
    return f"{max(steps)}" if steps else "no case"


def _rules(info: OpInfo) -> str:
    parts = [_rule(rule) for rule in info.checks]
    if info.note:
        missing = " and ".join(fmt for fmt in (A8, A16) if fmt not in info.formats)
        parts.append(f"{f'in {missing}' if missing else 'note'}: {info.note} (instead: {info.remedy})")
    return "; ".join(parts)


def _rule(rule: Check) -> str:
    where = f"in {next(iter(rule.formats))}: " if len(rule.formats) == 1 else ""
    return f"{where}{rule.text} (instead: {rule.remedy})"


def _verdict(verdict: Verdict) -> str:
    if verdict.result is Result.WRONG and verdict.steps is not None:
        return f"wrong, {verdict.steps} steps"
    if verdict.runs:
        return f"{verdict.result.value}, {verdict.steps}"
    said = verdict.reason.split("\n")[0].replace("|", "/")
    return f"{verdict.result.value}: {said}" if said else verdict.result.value
