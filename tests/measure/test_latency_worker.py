"""The order and number of timed calls, with sessions that only keep a log."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.measure import latency_worker
from edgekit.measure.latency_worker import Job, measure_blocks

Log = list[str]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """The labels of the models in the order in which they were called; the one called slow takes its time."""
    calls: Log = []

    def prepare(path: str, _: object) -> Callable[[int], Callable[[], None]]:
        def call() -> None:
            calls.append(path)
            time.sleep(0.03 if path == "slow" else 0.0)

        return lambda threads: call

    monkeypatch.setattr(latency_worker, "prepare_model", prepare)
    monkeypatch.setattr(latency_worker, "_load_feeds", lambda _: {})
    return calls


def _job(*labels: str, **changes: Any) -> Job:
    files = {label: label for label in labels}
    settings: dict[str, Any] = {"runs": 4, "warmup": 2, "block": 2, "min_runs": 1, "pause_s": 0.0}
    return Job("latency", files, files, 1, **{**settings, **changes})


def _ignore(_: dict[str, Any]) -> None:
    pass


def test_models_take_turns_in_blocks_and_every_other_round_is_reversed(log: Log) -> None:
    result = measure_blocks(_job("a", "b"), _ignore)
    # Warm-up a, b; then rounds a b and b a. A block is one untimed call and two timed ones.
    assert log == [*"aa", *"bb", *"aaa", *"bbb", *"bbb", *"aaa"]
    assert [list(blocks) for blocks in result["rounds"]] == [["a", "b"], ["b", "a"]]
    assert {label: len(times) for label, times in result["samples_ms"].items()} == {"a": 4, "b": 4}
    assert result["ended"] == "runs"


def test_progress_ends_at_the_number_of_runs(log: Log) -> None:
    seen: list[list[int]] = []
    measure_blocks(_job("a", runs=5), lambda message: seen.append(message["progress"]))
    assert seen == [[2, 5], [4, 5], [5, 5]]


def test_warm_up_of_a_slow_model_is_cut_short_after_two_calls(log: Log) -> None:
    measure_blocks(_job("slow", warmup=1000, runs=1, budget_s=0.1), _ignore)
    assert len(log) == 2 + 2


@pytest.mark.parametrize(("limits", "least"), [({"min_runs": 8}, 8), ({"min_runs": 1000, "hard_s": 0.2}, 2)])
def test_time_ends_the_measurement_after_the_fewest_runs_or_at_the_hard_limit(
    limits: dict[str, Any], least: int, log: Log
) -> None:
    result = measure_blocks(_job("slow", runs=1000, budget_s=0.05, **limits), _ignore)
    assert least <= len(result["samples_ms"]["slow"]) <= 12
    assert result["ended"] == "budget"


def test_a_model_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, _: object) -> Callable[[int], Callable[[], None]]:
        raise ValueError("planted")

    monkeypatch.setattr(latency_worker, "prepare_model", refuse)
    monkeypatch.setattr(latency_worker, "_load_feeds", lambda _: {})
    with pytest.raises(RuntimeError, match="model 'a': planted"):
        measure_blocks(_job("a"), _ignore)


def test_a_job_survives_json() -> None:
    job = _job("a", "b")
    assert Job(**json.loads(job.to_json())) == job
