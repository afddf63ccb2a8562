"""Which tensors are raised, with a made-up quality for every set of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.quantize.damage import Damage
from edgekit.quantize.raising import PATIENCE, Raised, most_useful, only_needed

Build = Callable[..., Graph]


class _Quality:
    """Quality of a raised set: ``base`` and what each raised tensor brings; remembers what was asked."""

    def __init__(self, gains: Mapping[str, float], base: float = 10.0) -> None:
        self.gains, self.base = gains, base
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, names: tuple[str, ...]) -> float:
        self.asked.append(names)
        return self.base + sum(self.gains[n] for n in names)


def _damage(*names: str) -> dict[str, Damage]:
    """The first does most damage; handed over in another order."""
    ranked = {n: Damage(0.5 / (i + 1), (0.0, 1.0), "") for i, n in enumerate(names)}
    return dict(sorted(ranked.items(), key=lambda item: item[1].noise))


@pytest.fixture(scope="session")
def graph(build: Build) -> Graph:
    text = "g (float[1,4] x) => (float[1,4] d) { a = Relu(x) b = Exp(a) c = Tanh(b) d = Sigmoid(c) }"
    return build(text)


def test_the_most_damaging_is_raised_first_and_no_more_than_needed() -> None:
    quality = _Quality({"a": 10.0, "b": 10.0, "c": 10.0})
    assert most_useful(_damage("a", "b", "c"), quality, target_db=14.0, limit=8) == ("a",)
    assert quality.asked == [(), ("a",)]


def test_nothing_is_raised_when_the_target_is_met() -> None:
    quality = _Quality({"a": 10.0}, base=20.0)
    assert most_useful(_damage("a"), quality, target_db=14.0, limit=8) == ()


def test_one_after_the_other_until_the_target_is_met() -> None:
    quality = _Quality(dict.fromkeys("abcd", 1.5))
    assert most_useful(_damage(*"abcd"), quality, target_db=14.0, limit=8) == ("a", "b", "c")


def test_the_limit_holds() -> None:
    quality = _Quality(dict.fromkeys("abcd", 1.0))
    assert most_useful(_damage(*"abcd"), quality, target_db=99.0, limit=2) == ("a", "b")
    assert most_useful(_damage(*"abcd"), quality, target_db=99.0, limit=0) == ()


def test_noise_hidden_behind_a_neighbour_is_found() -> None:
    """Alone neither helps; together they do."""

    def quality(names: tuple[str, ...]) -> float:
        return 20.0 if {"a", "b"} <= set(names) else 10.0

    assert most_useful(_damage("a", "b", "c"), quality, target_db=14.0, limit=8) == ("a", "b")


def test_the_search_ends_when_nothing_helps() -> None:
    names = [f"t{i}" for i in range(12)]
    quality = _Quality(dict.fromkeys(names, 0.0))
    assert most_useful(_damage(*names), quality, target_db=14.0, limit=12) == ()
    assert len(quality.asked) == 1 + PATIENCE


def test_what_brings_nothing_at_the_end_is_left_out() -> None:
    quality = _Quality({"a": 2.0, "b": 0.0, "c": -1.0})
    assert most_useful(_damage("a", "b", "c"), quality, target_db=14.0, limit=8) == ("a",)


def _needed(
    graph: Graph, chosen: tuple[str, ...], quality: _Quality, target_db: float = 99.0
) -> tuple[Raised, ...]:
    best = quality.base + sum(quality.gains[n] for n in chosen)
    return only_needed(
        graph, chosen, best, _damage(*"abcd"), quality, target_db=target_db, raised_format="float32"
    )


def test_what_is_not_needed_goes_back(graph: Graph) -> None:
    quality = _Quality({"a": 3.0, "b": 0.0, "c": 2.0})
    found = _needed(graph, ("a", "b", "c"), quality)
    assert [r.tensor for r in found] == ["a", "c"]
    assert [r.gain_db for r in found] == [pytest.approx(3.0), pytest.approx(2.0)]


def test_the_least_damaging_goes_back_first_when_the_target_allows_it(graph: Graph) -> None:
    quality = _Quality({"a": 3.0, "b": 3.0, "c": 3.0})
    found = _needed(graph, ("a", "b", "c"), quality, target_db=15.5)
    assert [r.tensor for r in found] == ["a", "b"]
    assert quality.asked[0] == ("a", "b")


def test_what_is_raised_says_what_it_is(graph: Graph) -> None:
    found = _needed(graph, ("a", "c"), _Quality({"a": 3.0, "c": 2.0}))
    assert [(r.op, r.format) for r in found] == [("Relu", "float32"), ("Tanh", "float32")]
    assert found[0].reason == "8 bits in this tensor alone put 50.0% noise on the outputs"
    (entry,) = only_needed(
        graph,
        ("x",),
        20.0,
        {"x": Damage(0.1, (0, 1), "")},
        lambda n: 10.0,
        target_db=14.0,
        raised_format="uint16",
    )
    assert (entry.op, entry.format) == ("input", "uint16")


def test_every_kept_tensor_is_worth_it(graph: Graph) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        gains = dict(zip("abcd", random.uniform(-1, 4, 4), strict=True))
        quality = _Quality(gains)
        target = float(random.uniform(8, 20))
        chosen = most_useful(_damage(*"abcd"), quality, target_db=target, limit=4)
        assert list(chosen) == sorted(chosen)
        best = quality(chosen)
        kept = [
            r.tensor
            for r in only_needed(
                graph, chosen, best, _damage(*"abcd"), quality, target_db=target, raised_format="float32"
            )
        ]
        final = quality(tuple(kept))
        assert final >= min(best - 0.2 * len(chosen), target) - 1e-9
        for tensor in kept:
            without = quality(tuple(t for t in kept if t != tensor))
            assert without < target or final - without >= 0.2
