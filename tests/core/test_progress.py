"""Progress as it is shown: bars that move and fit, lines that do not flood, and an estimate of the time."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

import prunetaylor
from prunetaylor.cli.terminal import progress as shown
from prunetaylor.core.progress import PhaseProgress, Silent
from prunetaylor.core.results.sweep import Trial
from prunetaylor.core.text import duration
from prunetaylor.report.terminal.progress_bar import Bar
from prunetaylor.report.terminal.sweep import time_left
from support.networks import ConvNet, trained
from support.runs import TEST, TRAIN


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def test_time_left_is_that_of_what_is_left(clock: Clock) -> None:
    where = PhaseProgress("stage", 4)
    assert where.remaining() is None
    where.step()
    assert where.remaining() is None  # too early to tell
    clock.now += 10
    assert where.remaining() == pytest.approx(30)
    where.part(1, 2)
    assert where.remaining() == pytest.approx(10 / 1.5 * 2.5)
    where.part(1, 10)  # another pass of the same step: no bar goes back
    assert where.completed == 1.5
    for _ in range(9):
        where.step()
    assert where.share == 1
    assert PhaseProgress("open").remaining() is None


@pytest.mark.parametrize(("seconds", "text"), [(0.1, "1 s"), (59, "59 s"), (120, "2 min"), (7200, "2.0 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_of_a_long_phase_come_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown.Lines(details=False)
    lines.phase("fine-tune", 1000)
    for _ in range(1000):
        clock.now += 0.05
        lines.step("loss 1")
        lines.part(1, 2)
    told = capsys.readouterr().err.splitlines()
    assert 5 <= len(told) <= 6
    assert "fine-tune: 20%, about 40 s left" in told[1]
    assert "\r" not in "".join(told)


@pytest.mark.parametrize("width", [80, 60, 200])
def test_no_bar_is_wider_than_the_terminal(width: int, clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    bars = shown.Bars(console, details=False)
    with bars:
        bars.expect(500)
        bars.phase("a phase whose name is much longer than anything that fits into a line of a terminal", 12)
        for _ in range(6):
            clock.now += 3
            bars.part(1, 2)
            bars.step("layer1.0.conv1.with.a.very.long.name.that.never.ends.and.goes.on")
        bars._bars.refresh()
        segments = console.render_lines(bars._bars.get_renderable(), console.options.update(width=width))
    assert len(segments) == 1
    text = "".join(segment.text for segment in segments[0])
    assert len(text) <= width
    assert "6/12" in text


def test_the_bar_of_python_is_one_line_that_ends(clock: Clock) -> None:
    stream = io.StringIO()
    bar = Bar(stream)
    bar.phase("stage 1", 4)
    for _ in range(4):
        clock.now += 5
        bar.part(1, 2)
        bar.step("conv1\x1b[31m")
    bar.warn("look")
    bar.phase("write")
    bar.close()
    said = stream.getvalue()
    assert "\x1b" not in said
    assert max(len(line) for part in said.split("\n") for line in part.split("\r")) <= 80
    assert "4/4" in said
    assert "warning: look\n" in said
    assert said.endswith("\n")


def test_from_python_a_bar_is_shown_where_it_is_asked_for_and_in_notebooks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = trained(ConvNet(), TRAIN, cross_entropy, 20)
    usual: dict[str, Any] = {"calibration.samples": 60, "prune.stages": 1, "prune.refine": "none", "data.workers": 0}

    def err(**how: Any) -> str:
        prunetaylor.prune(net, TRAIN, TEST, sparsity=0.3, method="magnitude", epochs=0, settings=usual, **how)
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    assert err() == err(progress=False) == err(progress=Silent()) == ""
    assert "stage 1" in err(progress=True)
    monkeypatch.setattr("prunetaylor.api.in_notebook", lambda: True)
    assert "stage 1" in err()
    assert err(progress=False) == ""


class Hears(Silent):
    def __init__(self) -> None:
        self.parts: list[tuple[int, int]] = []
        self.expected: list[float] = []

    def part(self, done: int, total: int) -> None:
        self.parts.append((done, total))

    def expect(self, seconds: float) -> None:
        self.expected.append(seconds)


def test_passes_and_rows_are_heard_and_the_time_is_estimated() -> None:
    torch.manual_seed(0)
    net = trained(ConvNet(), TRAIN, cross_entropy, 20)
    hears = Hears()
    usual: dict[str, Any] = {"calibration.samples": 120, "data.workers": 0}
    outcome = prunetaylor.prune(net, TRAIN, TEST, epochs=0, settings=usual, progress=hears)
    assert len(hears.parts) > 10
    assert all(0 < done <= total for done, total in hears.parts)
    assert outcome.time is not None
    assert hears.expected == [outcome.time.estimate_seconds]
    assert 0 < outcome.time.estimate_seconds < 600
    assert outcome.time.estimate_seconds == pytest.approx(sum(outcome.time.parts.values()))


def test_a_sweep_s_time_left() -> None:
    def trial(number: int, state: str, seconds: float | None = None) -> Trial:
        metrics = {} if seconds is None else {"seconds": seconds}
        return Trial(number=number, state=state, parameters={}, metrics=metrics)  # type: ignore[arg-type]

    trials = [trial(1, "done", 10.0), trial(2, "done", 20.0), trial(3, "running"), trial(4, "running")]
    assert time_left(trials) == pytest.approx(7.5)
    assert time_left([*trials, *(trial(n, "waiting") for n in range(5, 9))]) == pytest.approx(15 * 2.5)
    assert time_left(trials[2:]) is None
    assert time_left(trials[:2]) is None
