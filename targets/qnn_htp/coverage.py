"""Which nodes run on HTP: as the compiler placed them, or by the rules where it is not installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from edgekit.target import Coverage, LeftNode, OpCoverage
from edgekit.targets.qnn_htp.body import Body
from edgekit.targets.qnn_htp.process import Compiled

UNIT = "HTP"
#: Conversions that are named.
_SHOWN = 6
_FOLDED = "nothing: it cancels out"


def compiled_coverage(body: Body, compiled: Compiled, reasons: Mapping[str, LeftNode]) -> Coverage:
    """From the trace of a strict compilation.

    Args:
        body: What was compiled, and what stays around it.
        compiled: The result.
        reasons: Why nodes stay outside, by name.
    """
    trace, stamp = compiled.trace, compiled.stamp
    removed = frozenset(trace.removed)
    kernels = {}
    for node in body.nodes:
        name = str(node.name)
        found = trace.qnn_of(name) or ((_FOLDED,) if name in removed else ())
        kernels[name] = Counter(found)
    left = body.left(reasons)
    lost = [LeftNode(n, "", "the compiler's trace does not mention it") for n, k in kernels.items() if not k]
    return Coverage(
        unit=UNIT,
        method="compiled",
        ops=_rows(body, kernels, left),
        left=(*left, *lost),
        inserted=dict(Counter(name.partition("_")[0] for name in trace.inserted)),
        stamp={
            "SoC": f"{stamp.soc} ({stamp.soc_model})",
            "architecture": f"v{stamp.arch}",
            "QNN SDK": stamp.sdk,
        },
        notes=(*_conversions(trace.conversions), *compiled.log),
    )


def _conversions(names: Sequence[str]) -> tuple[str, ...]:
    """What is said of conversions between number formats that stay operators of their own on HTP."""
    if not names:
        return ()
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    count = f"{len(names)} conversion{'' if len(names) == 1 else 's'} between number formats"
    return (f"{count} run on HTP as operators of their own: {shown}{rest}",)


def ruled_coverage(body: Body, reasons: Mapping[str, LeftNode], why: str) -> Coverage:
    """From the rules alone.

    Args:
        body: What would be compiled, and what stays around it.
        reasons: Why nodes stay outside, by name.
        why: Why it was not compiled.
    """
    kernels = {str(node.name): Counter({"": 1}) for node in body.nodes}
    left = body.left(reasons)
    return Coverage(unit=UNIT, method="rules", ops=_rows(body, kernels, left), left=left, notes=(why,))


def _rows(
    body: Body, kernels: Mapping[str, Counter[str]], left: tuple[LeftNode, ...]
) -> tuple[OpCoverage, ...]:
    nodes = Counter(node.op_type for node in body.nodes)
    placed = Counter(node.op_type for node in body.nodes if kernels[str(node.name)])
    outside = Counter(item.op for item in left)
    became: dict[str, Counter[str]] = {}
    for node in body.nodes:
        became.setdefault(node.op_type, Counter()).update(kernels[str(node.name)])
    ops = dict.fromkeys((*nodes, *outside))
    return tuple(
        OpCoverage(
            op,
            nodes[op] + outside[op],
            placed[op],
            {name: count for name, count in became.get(op, Counter()).items() if name},
        )
        for op in ops
    )
