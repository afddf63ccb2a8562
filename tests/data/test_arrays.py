import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data.arrays import ArraySamples
from edgekit.data.preprocess import Preprocess
from edgekit.errors import DataError
from edgekit.graph import TensorSpec

F32 = np.dtype(np.float32)
ONE = (TensorSpec("x", (1, 4, 5), F32),)
TWO = (TensorSpec("ids", (1, 8), np.dtype(np.int32)), TensorSpec("mask", (1, 8), F32))
IMAGE = (TensorSpec("x", (1, 3, 8, 8), F32),)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def open_npz(
    path: Path, inputs: tuple[TensorSpec, ...] = ONE, limit: int | None = None, **arrays: Any
) -> ArraySamples:
    np.savez_compressed(path / "a.npz", **arrays)
    return ArraySamples(path / "a.npz", inputs, Preprocess(), limit=limit)


def test_rows_are_samples_in_order(tmp_path: Path) -> None:
    data = rng().random((6, 4, 5), dtype=np.float32)
    samples = open_npz(tmp_path, x=data)
    assert samples.count == 6
    for _ in range(2):
        for i, sample in enumerate(samples):
            np.testing.assert_array_equal(sample.feeds["x"], data[i : i + 1])
            assert (sample.name, sample.order, sample.geometry) == (str(i), i, None)
            assert sample.feeds["x"].flags.writeable
    assert samples.skipped == ()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_way_of_storing_reads_the_same(tmp_path: Path, save: Any, order: Any) -> None:
    data = np.asarray(rng().random((7, 1, 4, 5)), order=order)  # float64, batch axis kept
    save(tmp_path / "a.npz", anything=data)
    samples = ArraySamples(tmp_path / "a.npz", ONE, Preprocess(), limit=3)
    assert samples.count == 3
    assert [s.order for s in samples] == [0, 2, 4]
    for sample in samples:
        np.testing.assert_array_equal(sample.feeds["x"][0], data[int(sample.name), 0].astype(np.float32))
    np.save(tmp_path / "a.npy", data)
    assert len(list(ArraySamples(tmp_path / "a.npy", ONE, Preprocess()))) == 7


def test_several_inputs_are_matched_by_name(tmp_path: Path) -> None:
    ids = rng().integers(0, 30000, (3, 8))
    samples = open_npz(tmp_path, TWO, ids=ids, mask=np.ones((3, 8)), labels=np.zeros(3))
    first = next(iter(samples))
    assert first.feeds["ids"].dtype == np.int32
    np.testing.assert_array_equal(first.feeds["ids"], ids[:1])
    assert samples.notes == ("the arrays labels are no inputs and were passed over",)


def test_only_one_sample_is_in_memory(tmp_path: Path) -> None:
    spec = (TensorSpec("x", (1, 256, 256), F32),)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((100, 256, 256), np.float32))  # 26 MB
    samples = ArraySamples(tmp_path / "a.npz", spec, Preprocess())
    tracemalloc.start()
    assert sum(1 for _ in samples) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_uint8_rows_are_images(tmp_path: Path) -> None:
    data = rng().integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    samples = open_npz(tmp_path, IMAGE, x=data)
    sample = next(iter(samples))
    np.testing.assert_allclose(sample.feeds["x"][0], data[0].transpose(2, 0, 1) / 255, rtol=1e-6)
    assert sample.geometry is not None
    assert sample.image is not None
    assert "preprocessed" in samples.notes[0]


def test_grey_uint8_rows_are_images(tmp_path: Path) -> None:
    data = rng().integers(0, 256, (2, 8, 8), dtype=np.uint8)
    sample = next(iter(open_npz(tmp_path, (TensorSpec("x", (1, 1, 8, 8), F32),), x=data)))
    np.testing.assert_allclose(sample.feeds["x"][0, 0], data[0] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "arrays", "message"),
    [
        (
            TWO,
            {"ids": np.zeros((3, 8), int)},
            r"no array for the input mask; the file holds ids \[3, 8\].*ids \[N, 8\]",
        ),
        (
            ONE,
            {"a": np.zeros(2), "b": np.zeros(2)},
            r"no array for the input x; the file holds a \[2\], b \[2\]",
        ),
        (ONE, {"x": np.zeros((3, 5, 4))}, r"has the shape \[5, 4\] \(valid: \[1, 4, 5\], \[4, 5\]\)"),
        (TWO, {"ids": np.zeros((3, 8), int), "mask": np.zeros((2, 8))}, "ids: 3, mask: 2"),
        (TWO, {"ids": np.zeros((3, 8)), "mask": np.zeros((3, 8))}, r"type float64 \(valid: int32\)"),
        (TWO, {"ids": np.full((3, 8), 2**40), "mask": np.zeros((3, 8))}, "1099511627776"),
        (ONE, {"x": np.zeros((0, 4, 5))}, "hold no samples"),
        (ONE, {"x": np.float32(3)}, "single number"),
        (ONE, {"x": np.full((2, 4, 5), np.nan)}, "NaN"),
        (ONE, {"x": np.full((2, 4, 5), 1e300)}, "NaN or infinite"),
        (ONE, {"x": np.array([["a"]])}, "elements of type"),
        (IMAGE, {"x": np.zeros((2, 8, 9, 3), np.float32)}, r"\[8, 9, 3\]"),
        (IMAGE, {"x": np.zeros((2, 8, 8, 3), np.float32)}, "transpose to channels first"),
        (IMAGE, {"x": np.zeros((2, 3, 8, 8), np.uint8)}, r"uint8 images \[H, W, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, inputs: tuple[TensorSpec, ...], arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list(open_npz(tmp_path, inputs, **arrays))


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="type object"):
        ArraySamples(tmp_path / "a.npz", ONE, Preprocess())


def test_damaged_files_are_named(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=rng().random((50, 4, 5)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(data[:500])
    with pytest.raises(DataError, match=r"cut\.npz: is no readable \.npz"):
        ArraySamples(tmp_path / "cut.npz", ONE, Preprocess())
    np.savez(tmp_path / "a.npz", x=np.zeros((50, 4, 5)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[3000] = 1
    (tmp_path / "bad.npz").write_bytes(data)
    with pytest.raises(DataError, match="'x' cannot be read: Bad CRC-32"):
        list(ArraySamples(tmp_path / "bad.npz", ONE, Preprocess()))
    np.savez_compressed(tmp_path / "a.npz", x=rng().random((50, 4, 5)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(b"PK\x01\x02") + 16] ^= 1  # the checksum itself
    (tmp_path / "bad.npz").write_bytes(data)
    with pytest.raises(DataError, match="'x' cannot be read: Bad CRC-32"):
        list(ArraySamples(tmp_path / "bad.npz", ONE, Preprocess()))
    np.save(tmp_path / "b.npy", np.zeros((9, 4, 5)))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match="ends early"):
        list(ArraySamples(tmp_path / "b.npy", ONE, Preprocess()))
