"""The network, its data and its training, on made-up images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.errors import DataError
from edgekit.models.resnet import build, data, train
from edgekit.models.resnet.architecture import ResNet
from edgekit.train.weights import save_weights

PLAN = train.Plan(depth=8, epochs=2, batch=8)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.integers(0, 256, (400, 32, 32, 3), dtype=np.uint8),
        "train_y": rng.integers(0, 10, 400, dtype=np.uint8),
        "test_x": rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8),
        "test_y": np.arange(10, dtype=np.uint8),
    }
    np.savez(tmp_path / "cifar.npz", **arrays)  # type: ignore[arg-type]
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "cifar.npz"))
    return tmp_path / "cifar.npz"


def test_the_network_has_the_papers_size() -> None:
    assert sum(p.numel() for p in ResNet(56).parameters()) == pytest.approx(0.85e6, rel=0.02)
    assert sum(p.numel() for p in ResNet(20).parameters()) == pytest.approx(0.27e6, rel=0.02)
    with pytest.raises(ValueError, match="6n"):
        ResNet(51)


def test_the_committed_weights_fit() -> None:
    model = build()
    assert not model.training
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_weights(ResNet(8), tmp_path / "small.safetensors")
    assert build(tmp_path / "small.safetensors", depth=8)
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|do not fit"):
        build(tmp_path / "small.safetensors")


def test_the_hooks_read_the_file(cifar: Path) -> None:
    assert len(list(data.calibration())) == data.CALIBRATION_IMAGES
    assert len(list(data.distillation())) == 400
    assert next(data.test()).shape == (32, 32, 3)
    assert data.test_labels() == list(range(10))


def test_a_missing_file_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(data.VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"Set EDGEKIT_CIFAR10"):
        data.test_labels()
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "other.npz"))
    with pytest.raises(DataError, match="holds no 'test_y'"):
        data.test_labels()


def test_augmentation_only_shifts_and_mirrors() -> None:
    image = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    varied = train.augment(np.repeat(image[None], 40, 0), np.random.default_rng(1))
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    cuts = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    allowed = {cut.tobytes() for cut in (*cuts, *(c[:, ::-1] for c in cuts))}
    assert {each.tobytes() for each in varied} <= allowed
    assert len({each.tobytes() for each in varied}) > 10


def test_a_resumed_training_goes_on_as_an_uninterrupted_one(cifar: Path, tmp_path: Path) -> None:
    images, classes = train.load(cifar, "train")
    whole = train.Run(PLAN)
    for _ in range(2):
        whole.train_epoch(images[:32], classes[:32])
    half = train.Run(PLAN)
    half.train_epoch(images[:32], classes[:32])
    half.save(tmp_path / "half.pt")
    again = train.Run(PLAN)
    again.load(tmp_path / "half.pt")
    again.train_epoch(images[:32], classes[:32])
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, again.model.state_dict()[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="other settings"):
        train.Run(train.Plan(depth=8)).load(tmp_path / "half.pt")


def test_the_rate_rises_then_falls() -> None:
    rates = [train.learning_rate(PLAN, step / 100) for step in range(101)]
    assert max(rates) == pytest.approx(PLAN.rate)
    assert rates[0] < 0.1 * PLAN.rate
    assert rates[-1] == pytest.approx(0)


def test_accuracy_counts_the_right_ones(cifar: Path) -> None:
    class Always(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    images, classes = train.load(cifar, "test")
    assert train.accuracy(Always(), images, classes) == pytest.approx(0.1)
