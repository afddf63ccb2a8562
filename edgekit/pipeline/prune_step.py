"""The ``prune`` step: channels and blocks out, what is left refitted to the original."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.graph import Graph
from edgekit.pipeline.material import Json, Material, refit_json, sizes
from edgekit.recipe import PruneSection
from edgekit.target import Estimates, HasCostModel

if TYPE_CHECKING:
    from edgekit.prune.groups import Groups
    from edgekit.prune.options import PruneResult
    from edgekit.prune.plan import PruningPlan
    from edgekit.prune.refit import RefitResult
    from edgekit.target import CostModel


def prune_graph(
    material: Material,
    section: PruneSection,
    graph: Graph,
    earlier: PruningPlan | None = None,
    saved: Path | None = None,
) -> tuple[Graph, PruningPlan, Json]:
    """Remove channels and blocks, and refit what is left.

    Args:
        material: Original, samples, target.
        section: What to remove.
        graph: The graph to prune; ``earlier`` is how it was cut from the original.
        earlier: None where it was not.
        saved: A plan to apply in place of a search.

    Returns:
        The pruned graph, the plan that made it from ``graph``, and the step's part of the report.

    Raises:
        UsageError: The aim cannot be reached.
        ModelError: The saved plan does not fit.
    """
    from edgekit.prune.apply import apply, verify
    from edgekit.prune.groups import find_groups
    from edgekit.prune.plan import PruningPlan

    start = time.monotonic()
    refits: list[RefitResult] = []
    recover = _refitter(material, section, earlier, refits) if section.recover == "refit" else None
    groups = find_groups(graph)
    result: PruneResult | None = None
    if saved is None:
        result = _search(material, section, graph, recover)
        plan, pruned = result.plan, result.graph
    else:
        plan = PruningPlan.load(saved)
        pruned = apply(graph, plan)
    distances = {"pruned": material.distance(pruned)}
    if recover is not None:
        pruned = recover(pruned, graph, plan)
        distances["recovered"] = material.distance(pruned)
    step: Json = {
        "pass": "prune",
        **sizes(graph, pruned),
        **_what_went(material, section, groups, plan),
        "verify": verify(graph, plan) if section.verify else None,
        "saved": saved and f"the plan comes from {saved.name}",
        "distance": distances,
        "notes": [],
        **_reached(section, result),
    }
    step |= {"refit": refit_json(refits)} if refits else {}
    if section.sensitivity:
        step["sensitivity"] = _sensitivity(material, section, graph, groups)
    step |= {"seconds": time.monotonic() - start, "summary": _prune_summary(step)}
    return pruned, plan, step


def align_of(material: Material, section: PruneSection) -> int:
    """Channels are kept in multiples of this: the user's figure, the target's, or the default."""
    from edgekit.prune.options import DEFAULT_ALIGN

    theirs = material.target.profile.align if material.target is not None else 0
    return section.align or theirs or DEFAULT_ALIGN


def _search(
    material: Material,
    section: PruneSection,
    graph: Graph,
    recover: Callable[[Graph, Graph, PruningPlan], Graph] | None,
) -> PruneResult:
    from edgekit.prune.options import CostKind, Importance, PruneOptions, Scope
    from edgekit.prune.prune import prune

    given: Json = {aim: getattr(section, aim) for aim in ("keep", "macs", "params", "bytes", "latency")}
    given.update(align=align_of(material, section), min_keep=section.min_keep, steps=section.steps)
    options = PruneOptions(
        **{key: value for key, value in given.items() if value is not None},
        importance=Importance(section.importance),
        scope=None if section.scope is None else Scope(section.scope),
        drop_layers=section.drop_layers,
        samples=section.samples,
        exclude=section.exclude,
        seed=section.seed,
        verify=False,  # prune_graph does it, for saved plans too
        cost_kind=CostKind(_cost_kind(material, section)),
    )
    return prune(
        graph,
        material.samples,
        options,
        material.target,
        progress=material.reporter.update,
        status=material.reporter.status,
        recover=recover,
    )


def _refitter(
    material: Material, section: PruneSection, earlier: PruningPlan | None, found: list[RefitResult]
) -> Callable[[Graph, Graph, PruningPlan], Graph]:
    from edgekit.prune.plan import compose
    from edgekit.prune.refit import refit

    feeds = material.feeds(section.samples)

    def recover(pruned: Graph, _: Graph, plan: PruningPlan) -> Graph:
        material.reporter.status("least-squares refit")
        whole = plan if earlier is None else compose(earlier, plan)
        found.append(
            refit(
                pruned, material.original, whole, feeds, progress=material.reporter.update, seed=section.seed
            )
        )
        return found[-1].graph

    return recover


def _what_went(material: Material, section: PruneSection, groups: Groups, plan: PruningPlan) -> Json:
    return {
        "importance": section.importance,
        "align": align_of(material, section),
        "steps": section.steps or 1,
        "groups": _widths(groups, plan),
        "dropped": [{"input": block.input, "output": block.output} for block in plan.dropped],
        "locked": [{"where": r.where, "reason": r.reason} for r in groups.locked],
    }


def _widths(groups: Groups, plan: PruningPlan) -> list[Json]:
    """Units of every group before and after; a group that went with a dropped block has none left."""
    return [
        {
            "name": group.name,
            "kind": str(group.kind),
            "before": group.size,
            "after": len(plan.groups.get(group.name, range(group.size))),
        }
        for group in groups.groups
    ]


def _reached(section: PruneSection, result: PruneResult | None) -> Json:
    """What was asked for and what came of it; where latency was predicted or timed, the figures."""
    if result is None:
        return {}
    found: Json = {"notes": list(result.warnings)}
    for aim in ("keep", "macs", "params", "bytes", "latency"):
        asked = getattr(section, aim)
        if asked is not None:
            found["reached"] = {"measure": aim, "asked": asked, "got": result.reached.get(aim)}
    if "latency" in result.before and "latency" in result.after:
        found["predicted"] = {
            "before": result.before["latency"].to_json(), "after": result.after["latency"].to_json()
        }  # fmt: skip
    return found


def _sensitivity(material: Material, section: PruneSection, graph: Graph, groups: Groups) -> list[Json]:
    """Effect of each group alone, one entry for each share of its units."""
    from edgekit.prune.importance import importance
    from edgekit.prune.options import Importance
    from edgekit.prune.sensitivity import sensitivity

    material.reporter.status("sensitivity")
    feeds = material.feeds(section.samples)
    scores = importance(graph, groups, Importance(section.importance), feeds, section.seed)
    costs = _cost_model(material, section, graph)
    entries = sensitivity(
        graph,
        groups,
        scores,
        material.judged,
        exclude=section.exclude,
        model=costs,
        align=align_of(material, section),
        progress=material.reporter.update,
    )
    whole_ms = None if costs is None else costs.predict(graph).value
    return [
        {
            "group": entry["name"],
            "kind": entry["kind"],
            "ratio": point["removed"] / entry["units"],
            "distance": point["distance"],
            "macs_saved": point["macs"],
            "latency_saved_ms": None if whole_ms is None else point["latency"] * whole_ms,
        }
        for entry in entries
        for point in entry["points"]
    ]


def _cost_model(material: Material, section: PruneSection, graph: Graph) -> CostModel | None:
    """The target's times of single layers, where it can time or estimate them here."""
    target = material.target
    if not isinstance(target, HasCostModel) or not (target.profile.host or isinstance(target, Estimates)):
        return None
    return target.cost_model(graph, _cost_kind(material, section), target.profile.threads)


def _cost_kind(material: Material, section: PruneSection) -> Literal["float", "int8"]:
    """The number format whose latency counts: of a unit whose compiler estimates, the only one it runs."""
    return "int8" if isinstance(material.target, Estimates) else section.cost


def _prune_summary(step: Json) -> str:
    before, after = step["before"], step["after"]
    shares = [
        f"{after[key] / before[key]:.1%} of the {name}"
        for key, name in (("macs", "multiply-accumulates"), ("parameters", "parameters"))
        if before[key]
    ]
    cut = sum(group["after"] < group["before"] for group in step["groups"])
    text = f"{' and '.join(shares)} left; {cut} of {len(step['groups'])} channel groups are narrower"
    return f"{text}, {len(step['dropped'])} blocks left out" if step["dropped"] else text
