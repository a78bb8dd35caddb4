"""Text that is aligned, fits 80 columns and is plain on a pipe."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from prunetaylor.core.results.outcome import Drop, NetworkStats, PruneResult
from prunetaylor.report.formats import count, number, shorten, size
from prunetaylor.report.terminal.run import print_outcome, print_side


def _shown(outcome: PruneResult, **options: object) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=80, highlight=False, markup=False, emoji=False)
    print_outcome(console, outcome, {"model": "runs/m-1/model.safetensors"}, **options)
    text = file.getvalue()
    assert text.isascii()
    assert "\x1b" not in text
    return [line.rstrip() for line in text.splitlines()]


def test_everything_fits_80_columns(outcome: PruneResult) -> None:
    lines = _shown(outcome, verbose=True)
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines if line.startswith("top1")] == [
        ["top1", "88.29", "%", "86.90", "%", "-1.39", "pp"]
    ]
    assert "drop          1.39 pp, 95 % interval 1.02 to 1.77 pp" in lines
    assert any(line.split() == ["1", "25.00", "%", "0.0012", "0.0015", "1.25", "-", "3.2"] for line in lines)
    assert any(line.split()[:3] == ["2", "50.00", "%"] and "-" in line.split() for line in lines)
    assert "  head.parametrized: its weight is computed from another" in lines
    assert "  runs/m-1/model.safetensors" in lines


def test_columns_are_aligned(outcome: PruneResult) -> None:
    lines = _shown(outcome, verbose=True)
    rows = [line for line in lines if line.startswith(("layer", "backbone"))]
    assert len(rows) == 13
    assert len({len(line) for line in rows}) == 1


def test_few_layers_unless_verbose(outcome: PruneResult) -> None:
    lines = _shown(outcome)
    assert "and 4 more layers (-v shows all; so does the report)" in lines
    assert any(line.startswith("backbone.") and line.endswith("100.00 %") for line in lines)
    assert not any(line.startswith("layer0.conv") for line in lines)
    assert any(line.startswith("layer0.conv") for line in _shown(outcome, verbose=True))


def test_choices_that_were_read_already_are_not_said_again(outcome: PruneResult) -> None:
    assert f"  {outcome.choices[1]}" not in _shown(outcome), "only with -v"
    lines = _shown(outcome, known_choices=[outcome.choices[0]], verbose=True)
    assert f"  {outcome.choices[0]}" not in lines
    assert f"  {outcome.choices[1]}" in lines


def test_a_run_without_data_says_what_it_cannot_know(outcome: PruneResult) -> None:
    bare = replace(outcome.dense, metrics={}, flops=None, flops_nonzero=None)
    lines = _shown(replace(outcome, dense=bare, pruned=bare, drop=None, first_order=None, stages=[], epochs=[]))
    assert "drop       unknown: no samples to measure it on" in lines
    assert any(line.split() == ["FLOPs", "-", "-"] for line in lines)


def test_a_loss_is_not_in_percentage_points(outcome: PruneResult) -> None:
    rise = Drop(0.02, 0.01, 0.03)
    lines = _shown(replace(outcome, metric="loss", goal="min", unit="", drop=rise, loss_rise=rise))
    assert any(line.startswith("rise of loss   0.02, 95 % interval 0.01 to 0.03") for line in lines)
    assert not any("drop  " in line for line in lines)


def test_a_long_path_stays_in_one_piece(outcome: PruneResult) -> None:
    file = io.StringIO()
    path = "/" + "x" * 120 + "/model.safetensors"
    print_outcome(Console(file=file, width=80), outcome, {"model": path})
    assert path in file.getvalue()


def test_one_side(outcome: PruneResult) -> None:
    file = io.StringIO()
    print_side(Console(file=file, width=80), outcome.dense)
    assert [line.split() for line in file.getvalue().splitlines() if line.startswith("top1")] == [
        ["top1", "88.29", "%"]
    ]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (number(None), "-"),
        (number(float("nan")), "-"),
        (number(0.00123456), "0.001235"),
        (count(None), "-"),
        (count(999_999), "999,999"),
        (count(81_070_000), "81.07 M"),
        (count(4_100_000_000), "4.10 G"),
        (size(10), "10 B"),
        (size(1_105_000), "1.10 MB"),
        (shorten("short"), "short"),
        (shorten("a" * 20 + "b" * 30, 12), "aa..bbbbbbbb"),
    ],
)
def test_numbers_and_names(shown: str, text: str) -> None:
    assert shown == text


def test_an_empty_network_divides_by_nothing(outcome: PruneResult) -> None:
    empty = NetworkStats({}, 0, 0, 0, 0, 0)
    assert _shown(replace(outcome, dense=empty, pruned=empty))
