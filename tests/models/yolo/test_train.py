"""Batches, the schedule, checkpoints and resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.models.yolo import augment
from edgekit.models.yolo.architecture import Architecture
from edgekit.models.yolo.augment import Pool, Strength, _mosaic, batch, open_pool
from edgekit.models.yolo.train import Plan, Run, learning_rate, strength
from edgekit.train.weights import save_weights

PLAN = Plan(epochs=2, images=4, batch=2, warmup=2)


def test_a_batch_without_changes_is_the_pool(pool: Pool) -> None:
    still = Strength(mosaic=0, scale=1, shift=0, light=0)
    images, truth = batch(np.random.default_rng(0), pool, np.array([2, 0]), still)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = torch.from_numpy(pool.images[[2, 0]]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert truth.valid.sum(dim=1).tolist() == [(pool.labels[i] >= 0).sum() for i in (2, 0)]
    torch.testing.assert_close(
        truth.boxes[0][truth.valid[0]], torch.from_numpy(pool.boxes[2][pool.labels[2] >= 0])
    )


def test_boxes_follow_the_image_when_it_is_scaled_and_shifted(pool: Pool) -> None:
    images = np.zeros_like(pool.images)
    images[0, 100:140, 80:110] = 255
    boxes, labels = np.zeros_like(pool.boxes), np.full_like(pool.labels, -1)
    boxes[0, 0], labels[0, 0] = (80, 100, 110, 140), 5
    one = Pool(images, boxes, labels)
    for seed in range(5):
        how = Strength(mosaic=0, scale=1.4, shift=0.15, light=0)
        moved, truth = batch(np.random.default_rng(seed), one, np.array([0]), how)
        inside = moved[0, 0, :, :] > 0.5
        # What the shift uncovers is grey, below the threshold.
        rows, columns = inside.nonzero(as_tuple=True)
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        torch.testing.assert_close(truth.boxes[0, 0], seen, atol=1.1, rtol=0)


def test_a_mosaic_keeps_only_digits_it_shows(pool: Pool) -> None:
    image, boxes, labels = _mosaic(np.random.default_rng(3), pool, np.arange(4))
    assert image.shape == (256, 256, 3)
    kept = boxes[labels >= 0]
    assert len(kept)
    assert kept.min() >= 0
    assert kept.max() <= 256
    assert (kept[:, 2:] - kept[:, :2] > 0).all()


def test_the_rate_rises_then_falls() -> None:
    plan = Plan(epochs=4, images=1600, batch=16, warmup=50)
    rates = [learning_rate(plan, step) for step in range(plan.epochs * plan.steps)]
    assert max(rates) == pytest.approx(plan.rate, rel=1e-3)
    assert rates[:51] == sorted(rates[:51])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] < 0.02 * plan.rate


def test_the_last_epochs_are_calm() -> None:
    plan = Plan(epochs=8, calm=0.25)
    assert [strength(plan, epoch).mosaic > 0 for epoch in range(8)] == [True] * 6 + [False] * 2


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    pool: Pool, tiny: Architecture, tmp_path: Path
) -> None:
    whole = Run(PLAN, tiny)
    whole.train_epoch(pool)
    whole.save(tmp_path / "checkpoint.pt")
    whole.train_epoch(pool)
    resumed = Run(PLAN, tiny)
    resumed.load(tmp_path / "checkpoint.pt")
    assert resumed.epoch == 1
    resumed.train_epoch(pool)
    for mine, other in (
        (whole.model.state_dict(), resumed.model.state_dict()),
        (whole.mean.state_dict(), resumed.mean.state_dict()),
    ):
        for name, value in mine.items():
            torch.testing.assert_close(value, other[name], msg=name)


def test_a_checkpoint_of_other_settings_is_refused(tiny: Architecture, tmp_path: Path) -> None:
    Run(PLAN, tiny).save(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "checkpoint.part").exists()
    with pytest.raises(ValueError, match="other settings"):
        Run(Plan(epochs=3, images=4, batch=2), tiny).load(tmp_path / "checkpoint.pt")


def test_weights_are_written_in_half_precision(tiny: Architecture, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = Run(PLAN, tiny)
    save_weights(run.mean, tmp_path / "weights.safetensors")
    state = load_file(tmp_path / "weights.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert set(state) == {name for name, value in run.mean.state_dict().items() if value.is_floating_point()}


def test_a_pool_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "generator_hash", lambda: "any")
    first = open_pool(tmp_path, 3, 5)
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = open_pool(tmp_path, 3, 5)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == stamps
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.boxes, again.boxes)
    assert (first.labels >= 0).sum(axis=1).min() >= 3
