"""What a user chooses about structured pruning, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.graph import Graph, Refusal
    from edgekit.measure.result import Measurement
    from edgekit.prune.groups import Groups
    from edgekit.prune.plan import PruningPlan

#: Alignment where neither the user nor the target names one: vectors of 8 floats are common to all CPUs.
DEFAULT_ALIGN = 8


class Importance(StrEnum):
    """How much a unit matters to the network's outputs.

    Attributes:
        MAGNITUDE_L1: Sum of absolute weights that make the unit, over the group's mean.
        MAGNITUDE_L2: Euclidean norm of those weights, over the group's mean.
        BN_GAMMA: Absolute scale of the BatchNormalization behind it, for graphs that keep those nodes.
        ACTIVATION: Mean absolute value of the unit on the samples, over the group's mean.
        FISHER: Expected squared change of the outputs when the unit is zeroed, to first order in the unit.
    """

    MAGNITUDE_L1 = "magnitude-l1"
    MAGNITUDE_L2 = "magnitude-l2"
    BN_GAMMA = "bn-gamma"
    ACTIVATION = "activation"
    FISHER = "fisher"


class Scope(StrEnum):
    """Where units may be taken from.

    Attributes:
        GLOBAL: Wherever they cost the least: groups compete.
        UNIFORM: The same share of every group.
    """

    GLOBAL = "global"
    UNIFORM = "uniform"


class CostKind(StrEnum):
    """What the network will be when it runs: decides bytes of weights and which kernels are timed."""

    FLOAT = "float"
    INT8 = "int8"


class Aim(StrEnum):
    """The figure that pruning brings down."""

    KEEP = "keep"
    MACS = "macs"
    PARAMS = "params"
    BYTES = "bytes"
    LATENCY = "latency"


@dataclass(frozen=True)
class PruneOptions:
    """What to reach and how. At most one of the five shares; without one, only layers are dropped.

    Attributes:
        keep: Share of the units to keep, 0 to 1.
        macs: Share of the multiply-accumulates to keep.
        params: Share of the parameters to keep.
        bytes: Share of the weights' bytes to keep.
        latency: Share of the target's latency to keep.
        importance: How units are ranked.
        align: Units are kept in multiples of so many channels; None takes the target's figure.
        min_keep: Share of every group that stays.
        scope: ``global`` or ``uniform``; None is uniform for ``keep`` and global for the others.
        steps: Prune in so many steps, each ranked anew.
        drop_layers: Blocks to bypass before channels are removed.
        drop_to: Bypass blocks until so small a share of the cost is left; 1 to 0, None for no such aim.
        samples: Samples used for ranking.
        projections: Random projections of the outputs for each sample (``fisher``).
        exclude: Shell patterns of groups, and of blocks by the tensor they end in, that stay whole.
        seed: Seed of everything that is drawn.
        verify: Whether the pruned graph is compared with the masked original.
        cost_kind: What the network will be when it runs.
        threads: Threads of the target; None takes the profile's.
        measure: Whether pruned and original are timed where the target is this machine.
    """

    keep: float | None = None
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    importance: Importance = Importance.FISHER
    align: int | None = None
    min_keep: float = 0.1
    scope: Scope | None = None
    steps: int = 1
    drop_layers: int = 0
    drop_to: float | None = None
    samples: int = 64
    projections: int = 2
    exclude: tuple[str, ...] = ()
    seed: int = 0
    verify: bool = True
    cost_kind: CostKind = CostKind.FLOAT
    threads: int | None = None
    measure: bool = True

    def __post_init__(self) -> None:
        given = [a.value for a in Aim if getattr(self, a.value) is not None]
        shares = [a.value for a in Aim]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other", where="prune", valid=shares)
        if not given and not self.drop_layers and self.drop_to is None:
            raise UsageError(
                "nothing says how much to prune", where="prune", valid=(*shares, "drop_layers", "drop_to")
            )
        for name in (*shares, "drop_to"):
            share = getattr(self, name)
            if share is not None and not 0.0 < share <= 1.0:
                raise UsageError(f"must be a share, above 0 and at most 1, is {share}", where=name)
        if not 0.0 <= self.min_keep <= 1.0:
            raise UsageError(f"must be a share from 0 to 1, is {self.min_keep}", where="min_keep")
        for name, least in (("steps", 1), ("samples", 1), ("projections", 1), ("drop_layers", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"must be {least} or more, is {getattr(self, name)}", where=name)
        if self.align is not None and self.align < 1:
            raise UsageError(f"must be 1 or more, is {self.align}", where="align")
        for name, kind in (("importance", Importance), ("cost_kind", CostKind), ("scope", Scope)):
            _read(self, name, kind)

    @property
    def aim(self) -> Aim | None:
        """The figure to bring down."""
        return next((a for a in Aim if getattr(self, a.value) is not None), None)

    @property
    def share(self) -> float:
        """What is to be left of it."""
        return 1.0 if self.aim is None else float(getattr(self, self.aim.value))

    @property
    def chosen_scope(self) -> Scope:
        if self.scope is not None:
            return self.scope
        return Scope.UNIFORM if self.aim is Aim.KEEP else Scope.GLOBAL


@dataclass(frozen=True)
class PruneResult:
    """A pruned graph and how it came about.

    Attributes:
        graph: The pruned graph.
        plan: What was removed from the original; reapplies to it, or to the module it was exported from.
        groups: The channel groups of the original.
        importance: Score of every unit of the original, by group, as ranked in the first step.
        before: Figures of the original: ``macs``, ``params``, ``bytes`` and, where it is known, ``latency``.
        after: The same of the pruned graph.
        reached: Share left of each figure, and of the units as ``keep``.
        refused: Groups that were left whole, with the reason.
        warnings: What the user must know, such as a pruned network that is slower.
        history: One entry for each dropped block and each step, JSON-ready.
        seconds: Time spent, by part.
    """

    graph: Graph
    plan: PruningPlan
    groups: Groups
    importance: dict[str, Any]
    before: dict[str, Measurement]
    after: dict[str, Measurement]
    reached: dict[str, float]
    refused: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Everything but the graph, JSON-ready."""
        return {
            "before": {name: m.to_json() for name, m in self.before.items()},
            "after": {name: m.to_json() for name, m in self.after.items()},
            "reached": dict(self.reached),
            "groups": [
                {"group": g.name, "units": g.size, "kept": len(self.plan.groups.get(g.name, range(g.size)))}
                for g in self.groups.groups
            ],
            "refused": [{"where": r.where, "reason": r.reason} for r in self.refused],
            "warnings": list(self.warnings),
            "history": list(self.history),
            "seconds": {name: round(s, 3) for name, s in self.seconds.items()},
        }


def _read(options: PruneOptions, name: str, kind: type[StrEnum]) -> None:
    """Turn a plain string into its enum member."""
    given = getattr(options, name)
    if given is None:
        return
    try:
        object.__setattr__(options, name, kind(given))
    except ValueError:
        raise UsageError(f"there is no '{given}'", where=name, valid=[k.value for k in kind]) from None
