"""A pruning as a file: which units of each channel group stay, and what that means for each weight.

``groups`` says it for people, ``tensors`` says it exactly: per initializer the indices kept along each
axis. The second is what :func:`edgekit.prune.apply.apply` and :func:`edgekit.prune.module.apply_plan` go
by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.errors import ModelError, UsageError
from edgekit.files import write_whole

if TYPE_CHECKING:
    from edgekit.graph import Graph
    from edgekit.prune.groups import Groups


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorKeep(_Part):
    """What stays of one initializer.

    Attributes:
        shape: Its shape before.
        keep: For each axis that gets shorter the indices that stay, ascending.
        rearranged: How capture laid the user's parameter out anew, such as ``Transpose[1, 0]``; empty if it
            did not.
    """

    shape: list[int]
    keep: dict[int, list[int]]
    rearranged: str = ""


class DroppedBlock(_Part):
    """A part of the network that is left out: whatever reads ``output`` reads ``input`` instead.

    Attributes:
        input: Tensor before the block.
        output: Tensor after it, of the same shape.
    """

    input: str
    output: str


class Stage(_Part):
    """One of several prunings in a row.

    Attributes:
        tensors: Initializers that get smaller, with the shapes that the stage before left.
        dropped: Blocks left out before that.
        heads: Whether attention heads are units.
    """

    tensors: dict[str, TensorKeep]
    dropped: list[DroppedBlock] = []
    heads: bool = True


class PruningPlan(_Part):
    """What to remove from a network.

    Attributes:
        format: Version of this file format.
        model_sha256: Hash of the graph it was made on. Another graph of the same structure is accepted.
        groups: Units kept of each group that the plan speaks of.
        sizes: Units these groups had.
        tensors: Initializers that get smaller.
        dropped: Blocks left out; the groups are those of the network without them.
        heads: Whether attention heads are units.
        stages: For prunings in a row each of them, oldest first; ``tensors`` says what they come to. Removing
            channels can change what belongs together (a grouped convolution whose groups are down to one
            channel is a depthwise one), so they are carried out one after the other.
    """

    format: Literal[1] = 1
    model_sha256: str
    groups: dict[str, list[int]]
    sizes: dict[str, int]
    tensors: dict[str, TensorKeep]
    dropped: list[DroppedBlock] = []
    heads: bool = True
    stages: list[Stage] = []

    @property
    def parts(self) -> tuple[Stage, ...]:
        """What to carry out, in order."""
        return tuple(self.stages) or (Stage(tensors=self.tensors, dropped=self.dropped, heads=self.heads),)

    def save(self, path: Path) -> None:
        """Write the plan as JSON.

        Raises:
            OutputError: The file cannot be written.
        """
        write_whole(path, self.model_dump_json().encode())

    @classmethod
    def load(cls, path: Path) -> PruningPlan:
        """Read a plan.

        Raises:
            UsageError: The file cannot be read or is no pruning plan.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"is no pruning plan: {f'{key}: ' if key else ''}{first['msg']}", where=str(path)
            ) from error


def make_plan(
    graph: Graph, groups: Groups, keep: Mapping[str, Sequence[int]], dropped: Sequence[DroppedBlock] = ()
) -> PruningPlan:
    """Say what to remove.

    Args:
        graph: The graph that ``groups`` were found on, or that without the dropped blocks.
        groups: What can be removed.
        keep: Units that stay, by group; groups left out stay whole.
        dropped: Blocks to leave out.

    Raises:
        UsageError: A group is unknown, or a group keeps no unit or one that it does not have.
        ModelError: A block cannot be left out; or what is left out joins groups that keep different units.
    """
    from edgekit.prune.cut import drop_blocks, removed_by

    kept = {name: _checked(groups, name, units) for name, units in keep.items()}
    rest = drop_blocks(graph, dropped)
    cut = removed_by(rest, groups, kept)
    found = cut.groups if dropped else groups
    units = cut.kept_units(found) if dropped else kept
    rearranged = _rearranged(graph)
    return PruningPlan(
        model_sha256=graph.sha256(),
        groups=units,
        sizes={name: found.by_name[name].size for name in units},
        tensors={
            name: TensorKeep(shape=shape, keep=axes, rearranged=rearranged.get(name, ""))
            for name, (shape, axes) in cut.tensors().items()
        },
        dropped=list(dropped),
        heads=groups.heads,
    )


def _checked(groups: Groups, name: str, units: Sequence[int]) -> list[int]:
    group = groups.by_name.get(name)
    if group is None:
        raise UsageError("no such channel group", where=name, valid=list(groups.by_name)[:20])
    found = sorted({int(unit) for unit in units})
    if not found:
        raise UsageError(
            f"keeps none of {group.size} units; at least one has to stay", where=f"group '{name}'"
        )
    if found[0] < 0 or found[-1] >= group.size:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise UsageError(f"has no unit {wrong}; it has {group.size}", where=f"group '{name}'")
    return found


def _rearranged(graph: Graph) -> dict[str, str]:
    """Weights that capture laid out anew, from the graph's history."""
    found: dict[str, str] = {}
    for change in graph.history:
        for name, how in change.details.get("rearranged_weights", {}).items():
            found[name] = f"{found[name]}+{how}" if name in found else how
    return found


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """One plan for two prunings in a row: ``second`` was made on the result of ``first``.

    Where the first pruning changed what the units of a group are, ``groups`` has the second's under
    ``NAME@2``.

    Raises:
        ModelError: ``second`` was made on another network.
    """
    tensors = dict(first.tensors)
    for name, keep in second.tensors.items():
        before = tensors.get(name)
        tensors[name] = keep if before is None else _composed(name, before, keep)
    groups, sizes = dict(first.groups), dict(first.sizes)
    for name, units in second.groups.items():
        size = second.sizes[name]
        if name not in groups:
            groups[name], sizes[name] = list(units), size
        elif len(groups[name]) == size:
            groups[name] = [groups[name][unit] for unit in units]
        else:
            groups[f"{name}@2"], sizes[f"{name}@2"] = list(units), size
    return PruningPlan(
        model_sha256=first.model_sha256,
        groups=groups,
        sizes=sizes,
        tensors=tensors,
        dropped=[*first.dropped, *second.dropped],
        heads=first.heads,
        stages=[*first.parts, *second.parts],
    )


def _composed(name: str, first: TensorKeep, second: TensorKeep) -> TensorKeep:
    left = [len(first.keep.get(axis, range(size))) for axis, size in enumerate(first.shape)]
    if left != second.shape:
        raise ModelError(
            f"the second plan expects shape {second.shape}, the first leaves {left}", where=f"tensor '{name}'"
        )
    keep = dict(first.keep)
    for axis, indices in second.keep.items():
        before = keep.get(axis, list(range(first.shape[axis])))
        keep[axis] = [before[index] for index in indices]
    return TensorKeep(shape=first.shape, keep=keep, rearranged=first.rearranged or second.rearranged)
