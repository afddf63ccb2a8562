"""How torch's threads are used: not inside an operation, but one for each share of the work.

Threads inside an operation meet after every operation, hundreds of times a sample, and wait for each other in
busy loops; on a machine that others use too that is ten times slower. Workers meet once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from edgekit.session import cores

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations run on the calling thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(function: Callable[[_In], _Out], work: Iterable[_In]) -> Iterator[_Out]:
    """``function`` of each piece of work, in order, on one worker per core."""
    with one_thread(), ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(function, work)
