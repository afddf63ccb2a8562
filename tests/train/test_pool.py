"""Samples in memory, held out and streamed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import Samples, open_samples
from edgekit.graph import Graph
from edgekit.pipeline.split import Part
from edgekit.train.options import DistillOptions
from edgekit.train.pool import Pool, preprocess_of


@pytest.fixture
def graph(material: Any) -> Graph:
    from edgekit.api import load

    return load(material / "net.onnx")


def images(graph: Graph, count: int, size: int = 40) -> Samples:
    rows = [np.full((size, size, 3), index, np.uint8) for index in range(count)]
    return open_samples(rows, graph.inputs, Preprocess())


def seen(pool: Pool, epoch: int = 0, batch: int = 4) -> list[list[int]]:
    return [[item.index for item in items] for items in pool.epoch(epoch, batch)]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_every_so_many_th_sample_is_held_out(graph: Graph) -> None:
    pool = Pool(images(graph, 20), graph, DistillOptions(held_out=5))
    assert [item.index for item in pool.held] == [4, 9, 14, 19]
    batches = seen(pool)
    assert sorted(flat(batches)) == [i for i in range(20) if i % 5 != 4]
    assert [len(b) for b in batches] == [4] * 4
    assert pool.steps(4) == 4


def test_each_epoch_has_its_own_order_and_the_seed_decides(graph: Graph) -> None:
    pools = [Pool(images(graph, 20), graph, DistillOptions(seed=s)) for s in (0, 0, 1)]
    assert seen(pools[0]) == seen(pools[1])
    assert seen(pools[0]) != seen(pools[0], 1)
    assert seen(pools[0]) != seen(pools[2])


def test_a_small_cache_streams_every_sample_once(graph: Graph) -> None:
    pool = Pool(images(graph, 32), graph, DistillOptions(cache_bytes=6 * 40 * 40 * 3))
    assert pool.streaming
    assert "6 of 28 training samples fit" in pool.notes[0]
    whole = Pool(images(graph, 32), graph, DistillOptions())
    assert not whole.streaming
    assert sorted(flat(seen(pool))) == sorted(flat(seen(whole)))
    assert seen(pool) == seen(pool)
    assert flat(seen(pool)) != sorted(flat(seen(pool)))


def test_a_batch_larger_than_the_set_takes_all_of_it(graph: Graph) -> None:
    pool = Pool(images(graph, 9), graph, DistillOptions(held_out=3))
    assert [len(b) for b in seen(pool, batch=64)] == [6]
    assert pool.steps(64) == 1


def test_images_far_larger_than_the_input_are_thinned(graph: Graph) -> None:
    pool = Pool(images(graph, 3, size=400), graph, DistillOptions())
    image = pool.held[0].image
    assert image is not None
    assert image.shape == (67, 67, 3)  # every 6th pixel: still twice the 32 that the network looks at


def test_the_preprocessing_is_found_behind_a_part(graph: Graph) -> None:
    made = open_samples([np.zeros((8, 8, 3), np.uint8)], graph.inputs, Preprocess(divide=7))
    found = preprocess_of(Part(made, held=False))
    assert found is not None
    assert found.divide == 7
