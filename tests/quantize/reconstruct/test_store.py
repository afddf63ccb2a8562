"""Tensors on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import DataError, OutputError
from edgekit.quantize.reconstruct.store import Store


def test_puts_and_gets(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3)
    with Store(tmp_path) as store:
        for i in (2, 0, 1, 3):
            store.put("/a.b/Conv_output:0", i, data[i])
        assert np.array_equal(store.batch("/a.b/Conv_output:0", [3, 1]), data[[3, 1]].reshape(2, 2, 3))
        store.put("/a.b/Conv_output:0", 1, data[0])
        assert np.array_equal(store.get("/a.b/Conv_output:0", 1), data[0])
        assert "/a.b/Conv_output:0" in store
        store.drop("/a.b/Conv_output:0")
        assert "/a.b/Conv_output:0" not in store
        store.put("/a.b/Conv_output:0", 0, np.zeros(2))  # another shape, now that it is forgotten
    assert not list(tmp_path.iterdir())


def test_refuses(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put("t", 0, np.zeros((1, 2), np.float32))
        with pytest.raises(DataError, match="tensor 't'"):
            store.put("t", 1, np.zeros((1, 3), np.float32))
    with pytest.raises(OutputError):
        Store(tmp_path / "missing")
