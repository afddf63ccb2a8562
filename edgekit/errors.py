"""Every error a user can meet.

    EdgekitError                 the base; carries the process exit code
    ├── InputError        (2)    something handed to edgekit cannot be used
    │   ├── UsageError           an option or a recipe key has a wrong value
    │   ├── UnknownNameError     a target, model, decoder … that is not registered
    │   ├── ModelError           the network: corrupt, unsupported, wrong shapes, NaN weights
    │   └── DataError            samples or annotations: missing, empty, unreadable
    └── FailedError       (1)    the work itself failed
        ├── OutputError          the result cannot be written: read-only, full
        ├── ToolError            a runtime, a compiler or a worker process failed
        └── BudgetError          the result misses a budget that the recipe sets

A message says what is wrong, where, and which values are valid.
"""

from __future__ import annotations

from collections.abc import Iterable


class EdgekitError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: One sentence on what is wrong.
        where: The file, node, option or key it concerns.
        valid: The values that would have been accepted.
        hint: What to do instead.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", valid: Iterable[object] = (), hint: str = "") -> None:
        self.what = what
        self.where = where
        self.valid = tuple(str(v) for v in valid)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.valid:
            text += f" (valid: {', '.join(self.valid)})"
        if self.hint:
            text += f". {self.hint}"
        return text


class InputError(EdgekitError):
    """Something handed to edgekit cannot be used."""

    exit_code = 2


class UsageError(InputError):
    """An option or a recipe key has a wrong value."""


class UnknownNameError(InputError):
    """A name that is not registered; the message lists the known ones."""


class ModelError(InputError):
    """The network cannot be used."""


class DataError(InputError):
    """Samples or annotations cannot be used."""


class FailedError(EdgekitError):
    """The work itself failed."""


class OutputError(FailedError):
    """The result cannot be written."""


class ToolError(FailedError):
    """A runtime, compiler or worker process failed."""


class BudgetError(FailedError):
    """The result misses a budget."""
