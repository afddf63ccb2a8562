"""Which operators of a ``.tflite`` XNNPACK takes over on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import ModelError, ToolError

#: What LiteRT calls the node that stands for a delegated part.
_DELEGATE = "DELEGATE"


@dataclass(frozen=True)
class Delegation:
    """What LiteRT made of a file when it was loaded.

    Attributes:
        partitions: Parts that XNNPACK runs as one; each border between them costs a hand-over.
        delegated: Operators that XNNPACK runs, by type.
        left: Operators that LiteRT's own kernels run, by type.
    """

    partitions: int
    delegated: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def delegation(path: Path) -> Delegation:
    """Load a file as applications do and look at what became of its operators.

    LiteRT lists a delegated part as one more operator with the part's inputs and outputs; the operators that
    lead from the outputs back to the inputs are those of the part.

    Raises:
        ModelError: LiteRT refuses the file.
        ToolError: LiteRT is not installed, or does not tell.
    """
    details = _operators(path)
    plain = [entry for entry in details if entry["op_name"] != _DELEGATE]
    parts = [entry for entry in details if entry["op_name"] == _DELEGATE]
    producers = {int(tensor): i for i, entry in enumerate(plain) for tensor in entry["outputs"]}
    taken: set[int] = set()
    for part in parts:
        taken |= _inside(part, plain, producers)
    names = [str(entry["op_name"]) for entry in plain]
    return Delegation(
        partitions=len(parts),
        delegated=_counts(names[i] for i in sorted(taken)),
        left=_counts(name for i, name in enumerate(names) if i not in taken),
    )


def _inside(
    part: Mapping[str, Any], plain: Sequence[Mapping[str, Any]], producers: Mapping[int, int]
) -> set[int]:
    border = {int(tensor) for tensor in part["inputs"]}
    waiting = [int(tensor) for tensor in part["outputs"]]
    found: set[int] = set()
    while waiting:
        index = producers.get(waiting.pop())
        if index is None or index in found:
            continue
        found.add(index)
        waiting += [int(t) for t in plain[index]["inputs"] if int(t) not in border]
    return found


def _operators(path: Path) -> list[dict[str, Any]]:
    from edgekit.tflite.interpreter import LiteRt

    try:
        interpreter = LiteRt(path)._interpreter
    except ModelError as error:
        raise ModelError(error.what, where=str(path)) from error
    listed = getattr(interpreter, "_get_ops_details", None)
    if listed is None:
        raise ToolError("this version of LiteRT does not list the operators of a loaded model")
    return list(listed())


def _counts(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
