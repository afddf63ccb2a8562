"""What the user sees of long work."""

from __future__ import annotations

import io

import pytest

from edgekit.progress import BarReporter, PlainReporter, Reporter, reporter


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("edgekit.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    with PlainReporter(stream) as shown:
        shown.step("calibrate")
        for done in range(1, 31):
            now += 1
            shown.update(done, 60)
        shown.note("by the way")
    assert stream.getvalue().splitlines() == [
        "calibrate …",
        "calibrate: 10 of 60, about 50 s left",
        "calibrate: 20 of 60, about 40 s left",
        "calibrate: 30 of 60, about 30 s left",
        "by the way",
    ]


def test_what_a_step_found_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("edgekit.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    shown = PlainReporter(stream)
    shown.step("quantize")
    for second in range(1, 25):
        now = float(second)
        shown.status(f"raise '{second}': 30.0 dB")
    assert stream.getvalue().splitlines() == [
        "quantize …",
        "quantize: raise '10': 30.0 dB",
        "quantize: raise '20': 30.0 dB",
    ]


def test_an_unknown_total_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("edgekit.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    shown = PlainReporter(stream)
    shown.step("calibrate")
    now = 11.0
    shown.update(7, None)
    assert stream.getvalue().splitlines()[-1] == "calibrate: 7"


def test_the_right_one_for_the_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert type(reporter(quiet=True)) is Reporter
    assert type(reporter(quiet=False)) is PlainReporter
    with reporter(quiet=True) as silent:
        silent.step("a")
        silent.update(1, 2)
        silent.status("c")
        silent.note("b")
    assert capsys.readouterr() == ("", "")


def test_the_bar_names_finished_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with BarReporter() as shown:
        shown.step("calibrate [1]")
        shown.update(1, 2)
        assert shown.bar.tasks[0].total == 2
        shown.update(2, 2)
        assert shown.bar.tasks[0].total is None, "what follows has no known end"
        shown.status("minmax [a]: 30.0 dB")
        assert shown.bar.tasks[0].fields["status"] == ": minmax [a]: 30.0 dB"
        shown.step("compile")
        shown.note("a [note]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "calibrate [1] (" in captured.err
    assert "compile (" in captured.err
    assert "a [note]" in captured.err
