"""Showing how far a long piece of work has come, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

#: Seconds between two plain lines on the same step.
INTERVAL_S = 10.0
#: Characters of a status beside a bar, which has to stay on one line.
STATUS_LENGTH = 40


class Reporter:
    """Shows nothing; what ``--quiet`` and the Python API use. Use as a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, title: str) -> None:
        """A new step begins; the one before has ended."""

    def update(self, done: int, total: int | None) -> None:
        """The step has done so much; ``total`` is None where it is unknown."""

    def status(self, text: str) -> None:
        """What the step found or does now; a later text replaces it."""

    def note(self, text: str) -> None:
        """Something the user should know now, such as an assumption."""

    def close(self) -> None:
        """The work has ended, well or not."""


class PlainReporter(Reporter):
    """Lines: one for each step, and one every :data:`INTERVAL_S` seconds while it lasts."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.title = ""
        self.start = self.last = 0.0

    def step(self, title: str) -> None:
        self.title = title
        self.start = self.last = time.monotonic()
        self._line(f"{title} …")

    def update(self, done: int, total: int | None) -> None:
        if self._due():
            passed = self.last - self.start
            left = f", about {passed / done * (total - done):.0f} s left" if total and done else ""
            self._line(f"{self.title}: {done}{f' of {total}' if total else ''}{left}")

    def status(self, text: str) -> None:
        if self._due():
            self._line(f"{self.title}: {text}")

    def note(self, text: str) -> None:
        self._line(text)

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self.last < INTERVAL_S:
            return False
        self.last = now
        return True

    def _line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class BarReporter(Reporter):
    """A bar with the time left, for a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        self.bar: RichProgress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}{task.fields[status]}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task: TaskID | None = None

    def step(self, title: str) -> None:
        self._end()
        self.bar.start()
        self.task = self.bar.add_task(title, total=None, status="", count="", left="")

    def update(self, done: int, total: int | None) -> None:
        if self.task is not None:
            # What follows the last sample takes its time too: the bar then shows no end.
            end = None if done == total else total
            self.bar.tasks[-1].total = end  # update() takes None as "no change"
            count = "" if done == total else f"{done}/{total}" if total else f"{done}"
            self.bar.update(self.task, completed=done, count=count, left="left" if end else "")

    def status(self, text: str) -> None:
        if self.task is not None:
            shown = text if len(text) <= STATUS_LENGTH else f"{text[: STATUS_LENGTH - 1]}…"
            self.bar.update(self.task, status=f": {shown}")

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._end()
        self.bar.stop()

    def _end(self) -> None:
        if self.task is not None:
            task = self.bar.tasks[-1]
            self.console.print(
                f"{task.description} ({task.elapsed or 0:.1f} s)", markup=False, highlight=False
            )
            self.bar.remove_task(self.task)
            self.task = None


def reporter(*, quiet: bool) -> Reporter:
    """The right one for this process's stderr."""
    if quiet:
        return Reporter()
    return BarReporter() if sys.stderr.isatty() else PlainReporter()
