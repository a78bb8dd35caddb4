"""Restricted systems against dense solves, row by row, and what happens where there is no solution."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.taylor.curvature import solve
from prunetaylor.taylor.curvature.solve import (
    cholesky,
    conjugate_gradients,
    damped,
    inverse_diagonal,
    restricted_least_squares,
)
from support.samples import rand

C, R = 9, 6


def no_note(text: str) -> None:
    raise AssertionError(f"nothing to note: {text}")


def positive(columns: int = C, seed: int = 0) -> Tensor:
    a = rand(3 * columns, columns, seed=seed).double() * torch.linspace(0.5, 2, columns)
    return a.T @ a / len(a)


def some_kept(seed: int = 3) -> Tensor:
    """A row with everything, one with nothing, two alike, others at random."""
    keep = torch.rand(R, C, generator=torch.Generator().manual_seed(seed)) > 0.4
    keep[0], keep[1], keep[3] = True, False, keep[2]
    return keep


def ridged(h: Tensor, damping: float) -> Tensor:
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


def test_damping_is_relative_to_the_mean_diagonal() -> None:
    h = positive()
    torch.testing.assert_close(damped(h, 0.1), ridged(h, 0.1))
    torch.testing.assert_close(damped(torch.stack([h, 2 * h]), 0.1), torch.stack([ridged(h, 0.1), ridged(2 * h, 0.1)]))
    assert bool((damped(torch.zeros(3, 3).double(), 0.1).diagonal() > 0).all())


def test_inverse_diagonal_is_that_of_the_kept_part() -> None:
    h, keep = positive(), some_kept()
    found = inverse_diagonal(h, keep, 0.01, "layer", no_note)
    for row in range(R):
        kept = keep[row].nonzero().squeeze(1)
        inverse = torch.linalg.inv(ridged(h, 0.01)[kept][:, kept])
        torch.testing.assert_close(found[row, kept], inverse.diagonal())
        assert bool((found[row, ~keep[row]] == 1).all())


def test_inverse_diagonal_of_a_wide_layer_is_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "BLOCK", 4)
    h, keep = positive(), some_kept()
    keep[0] = True  # 9 columns in blocks of at most 4: three of three
    notes: list[str] = []
    found = inverse_diagonal(h, keep, 0.01, "features.3", notes.append)
    assert notes == ["features.3: its 9 inputs are split into 3 blocks; correlations between blocks are ignored"]
    for part in (slice(0, 3), slice(3, 6), slice(6, 9)):
        block = h[part, part]
        for row in range(R):
            kept = keep[row, part].nonzero().squeeze(1)
            inverse = torch.linalg.inv(ridged(block, 0.01)[kept][:, kept])
            torch.testing.assert_close(found[row, part][kept], inverse.diagonal())


def test_many_rows_in_small_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    h, keep, cross, start = positive(), some_kept(), rand(R, C, seed=1).double(), rand(R, C, seed=2).double()
    diagonal = inverse_diagonal(h, keep, 0.01, "layer", no_note)
    solved = restricted_least_squares(h, cross, start, keep, 0.01, "layer", no_note)
    monkeypatch.setattr(solve, "BATCH_ELEMENTS", 2 * C * C)
    torch.testing.assert_close(inverse_diagonal(h, keep, 0.01, "layer", no_note), diagonal)
    torch.testing.assert_close(restricted_least_squares(h, cross, start, keep, 0.01, "layer", no_note), solved)


def dense_solution(h: Tensor, cross: Tensor, start: Tensor, keep: Tensor, damping: float) -> Tensor:
    """(H + r) w = c + r start on the kept columns: the gradient of w'Hw - 2c'w + r |w - start|^2 is zero."""
    ridge = damping * h.diagonal().mean()
    out = torch.zeros_like(cross)
    for row in range(len(cross)):
        kept = keep[row].nonzero().squeeze(1)
        left = h[kept][:, kept] + ridge * torch.eye(len(kept), dtype=h.dtype)
        out[row, kept] = torch.linalg.inv(left) @ (cross[row, kept] + ridge * start[row, kept])
    return out


@pytest.mark.parametrize("damping", [1e-8, 0.01, 1.0])
@pytest.mark.parametrize("block", [1024, 4])
def test_restricted_least_squares(damping: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "BLOCK", block)
    h, keep, cross, start = positive(), some_kept(), rand(R, C, seed=1).double(), rand(R, C, seed=2).double()
    found = restricted_least_squares(h, cross, start, keep, damping, "layer", no_note)
    wanted = dense_solution(h, cross, start, keep, damping)
    tight = {} if block > C else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found, wanted, **tight)
    assert bool((found[~keep] == 0).all())


def test_the_ridge_leaves_directions_without_data_where_they_were() -> None:
    h = torch.diag(torch.tensor([1.0, 0.0, 2.0]).double())
    start = torch.tensor([[1.0, 7.0, 3.0]]).double()
    found = restricted_least_squares(
        h, torch.tensor([[5.0, 0.0, 8.0]]).double(), start, start != 0, 1e-9, "layer", no_note
    )
    torch.testing.assert_close(found, torch.tensor([[5.0, 7.0, 4.0]]).double())


def test_rows_that_are_right_already_do_not_move() -> None:
    h, keep, start = positive(), some_kept(), rand(R, C).double()
    found = restricted_least_squares(h, (start * keep) @ h, start, keep, 0.1, "layer", no_note)
    torch.testing.assert_close(found, start * keep)


def test_conjugate_gradients_solve_each_row_on_its_kept_columns() -> None:
    h, keep = positive(), some_kept()
    right = rand(R, C, seed=1).double() * keep
    found = conjugate_gradients(h, right, keep, "layer", no_note, tolerance=1e-12)
    for row in range(R):
        kept = keep[row].nonzero().squeeze(1)
        torch.testing.assert_close(found[row, kept], torch.linalg.inv(h[kept][:, kept]) @ right[row, kept])
    assert bool((found[~keep] == 0).all())


def test_conjugate_gradients_stop_at_their_limit_with_something_better() -> None:
    h, keep, right = positive(), torch.ones(R, C, dtype=torch.bool), rand(R, C, seed=1).double()

    def objective(v: Tensor) -> Tensor:
        return ((v @ h) * v / 2 - v * right).sum(1)

    notes: list[str] = []

    def solved(limit: int) -> Tensor:
        return conjugate_gradients(h, right, keep, "features.3", notes.append, tolerance=0, limit=limit)

    values = [objective(solved(n)) for n in range(C + 1)]
    for before, after in pairwise(values):
        assert bool((after < before).all())
    assert notes[0] == "features.3: its least squares stopped after 0 steps, with a relative residual of 1"
    assert notes[2].startswith("features.3: its least squares stopped after 2 steps, with a relative residual of 0.")
    assert len(notes) == C + 1


def test_conjugate_gradients_that_converge_in_their_last_step_say_nothing() -> None:
    h, keep, right = positive(), torch.ones(R, C, dtype=torch.bool), rand(R, C, seed=1).double()
    conjugate_gradients(h, right, keep, "layer", no_note, tolerance=1e-6, limit=C)


def test_too_little_damping_is_raised_and_reported() -> None:
    h = positive() - 0.5 * torch.eye(C).double()
    assert float(torch.linalg.eigvalsh(h)[0]) < 0
    notes: list[str] = []
    factor = cholesky(h, torch.ones(1, C, dtype=torch.bool), 1e-3, "features.3", notes.append)
    assert len(notes) == 1
    assert notes[0].startswith("features.3: damping raised from 0.001 to ")
    used = float(notes[0].split(" to ")[1].split()[0])
    torch.testing.assert_close(factor @ factor.mT, ridged(h, used)[None])
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(ridged(h, used / 10))


@pytest.mark.parametrize("least", [-0.5, -1e-3])
def test_conjugate_gradients_raise_the_damping_as_cholesky_does(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values, vectors = torch.linalg.eigh(positive())
    h = vectors @ torch.diag(torch.cat([values.new_tensor([least]), values[1:]])) @ vectors.T
    cross, start, keep = rand(R, C, seed=1).double(), rand(R, C, seed=2).double(), torch.ones(R, C, dtype=torch.bool)
    found = []
    for block in (1024, 4):
        monkeypatch.setattr(solve, "BLOCK", block)
        notes: list[str] = []
        found.append((restricted_least_squares(h, cross, start, keep, 1e-6, "features.3", notes.append), notes))
    (by_cholesky, said), (by_gradients, said_too) = found
    assert said == said_too
    assert said[0].startswith("features.3: damping raised from 1e-06 to ")
    torch.testing.assert_close(by_gradients, by_cholesky, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("h", [-1e9 * torch.eye(C), 1e9 * (1.1 * torch.eye(C) - torch.ones(C, C))])
def test_a_wide_hopeless_matrix_is_an_error_that_names_the_layer(h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "BLOCK", 4)
    right = torch.ones(R, C).double()
    with pytest.raises(NumericsError, match=r"features\.3: .*positive definite.* 0\.01"):
        restricted_least_squares(h.double(), right, 0 * right, right > 0, 1e-10, "features.3", lambda _: None)


def test_singular_matrices_need_no_more_than_the_damping_asked_for() -> None:
    one = torch.ones(C, C).double()
    for h in (one, torch.zeros(C, C).double()):
        found = inverse_diagonal(h, torch.ones(1, C, dtype=torch.bool), 0.01, "layer", no_note)
        assert bool((torch.isfinite(found) & (found > 0)).all())


def test_a_hopeless_matrix_is_an_error_that_names_the_layer() -> None:
    h = -torch.eye(3).double() * 1e9
    with pytest.raises(NumericsError, match=r"features\.3: .*positive definite.* 1e\+06"):
        cholesky(h, torch.ones(1, 3, dtype=torch.bool), 0.01, "features.3", lambda _: None)


@pytest.mark.parametrize("block", [1024, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error_that_names_the_layer(
    bad: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve, "BLOCK", block)
    h, keep, start = positive(), some_kept(), rand(R, C).double()
    broken = h.clone()
    broken[2, 3] = broken[3, 2] = bad
    with pytest.raises(NumericsError, match=r"features\.3: .*Gram matrix"):
        inverse_diagonal(broken[:4, :4], keep[:, :4], 0.01, "features.3", no_note)
    with pytest.raises(NumericsError, match=r"features\.3: .*Gram matrix"):
        restricted_least_squares(broken, start, start, keep, 0.01, "features.3", no_note)
    with pytest.raises(NumericsError, match=r"features\.3: the product of its inputs"):
        restricted_least_squares(h, torch.full_like(start, bad), start, keep, 0.01, "features.3", no_note)
