import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.data.base import spread
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.errors import DataError, UsageError
from edgekit.graph import TensorSpec

INPUT = (TensorSpec("x", (1, 3, 8, 8), np.dtype(np.float32)),)


def names(source: object, **options: object) -> list[str]:
    return [s.name for s in open_samples(source, INPUT, Preprocess(), **options)]  # type: ignore[arg-type]


def test_the_source_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "1.png")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 8, 8)))
    (tmp_path / "my_samples.py").write_text("import numpy\ndef load():\n    yield numpy.zeros((3, 8, 8))\n")
    assert names(tmp_path / "images") == names(str(tmp_path / "images" / "1.png")) == ["1.png"]
    assert names(str(tmp_path / "a.npz")) == ["0", "1"]
    assert names("a.npz", folder=tmp_path, limit=1) == ["0"]
    assert names("my_samples:load", folder=tmp_path) == ["0"]
    assert names(lambda: [np.zeros((3, 8, 8))]) == ["0"]


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"calib: no such file or folder \(valid: a folder of images.*exists"):
        open_samples(str(tmp_path / "missing" / "calib"), INPUT, Preprocess())
    with pytest.raises(DataError, match=r"cannot be read from a '\.csv' file"):
        open_samples(tmp_path / "a.csv", INPUT, Preprocess())
    with pytest.raises(UsageError, match="there is no module"):
        open_samples("no_such_module_y:load", INPUT, Preprocess())


def test_spread_is_even_and_whole() -> None:
    assert spread(10, None) == spread(10, 10) == spread(10, 99) == list(range(10))
    assert spread(10, 3) == [0, 3, 6]
    assert spread(7, 1) == [0]
