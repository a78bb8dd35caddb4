"""Blocks of the Fisher information and their inverses against dense ones."""

import pytest
import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.taylor.curvature import block_fisher
from prunetaylor.taylor.curvature.block_fisher import BlockFisher
from support.samples import rand

N, P = 7, 23


def no_note(text: str) -> None:
    raise AssertionError(f"nothing to note: {text}")


def rows(seed: int = 0) -> Tensor:
    return rand(N, P, seed=seed) * torch.linspace(0.1, 3, P)


def some_kept() -> Tensor:
    return torch.rand(P, generator=torch.Generator().manual_seed(3)) > 0.4


def dense(g: Tensor, size: int) -> Tensor:
    """F without what lies outside the blocks, in float64."""
    owner = torch.arange(g.shape[1]) // size
    return (g.double().T @ g.double() / len(g)) * (owner[:, None] == owner)


@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("keep", [torch.ones(P, dtype=torch.bool), some_kept(), torch.zeros(P, dtype=torch.bool)])
@pytest.mark.parametrize("size", [1, 4, 10, P, 100])  # both fewer weights than rows in a block, and more
def test_inverse_and_product(size: int, keep: Tensor, damping: float, monkeypatch: pytest.MonkeyPatch) -> None:
    g, v = rows(), rand(P, seed=1).double()
    f = dense(g, size)
    ridge = damping * float(f.diagonal().mean())
    kept = keep.nonzero().squeeze(1)
    inverse = torch.linalg.inv((f + ridge * torch.eye(P).double())[kept][:, kept])
    for elements in (1 << 24, 1):
        monkeypatch.setattr(block_fisher, "_ELEMENTS", elements)
        found = BlockFisher(g, size, damping, "layer", no_note)
        assert found.ridge == pytest.approx(ridge)
        torch.testing.assert_close(found.product(v), f @ v)
        diagonal, solution = found.inverse(keep, v)
        torch.testing.assert_close(diagonal[kept], inverse.diagonal())
        torch.testing.assert_close(solution[kept], inverse @ v[kept])
        assert bool((diagonal[~keep] == 1).all())
        assert bool((solution[~keep] == 0).all())


def test_rows_without_curvature() -> None:
    fisher = BlockFisher(torch.zeros(N, P), 4, 0.01, "layer", no_note)
    diagonal, solution = fisher.inverse(some_kept(), torch.zeros(P))
    assert bool((torch.isfinite(diagonal) & (diagonal > 0)).all())
    assert not bool(solution.any())


@pytest.mark.parametrize("size", [4, 10])
def test_one_row_and_repeated_rows(size: int) -> None:
    for g in (rows()[:1], rows()[:1].expand(N, P)):
        diagonal, _ = BlockFisher(g, size, 1e-6, "layer", no_note).inverse(torch.ones(P, dtype=torch.bool), g[0])
        f = dense(g, size)
        inverse = torch.linalg.inv(f + 1e-6 * f.diagonal().mean() * torch.eye(P).double())
        torch.testing.assert_close(diagonal, inverse.diagonal(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [4, 10])
def test_an_inverse_s_diagonal_is_never_less_than_the_diagonal_s_inverse(size: int) -> None:
    """Where the ridge is far below rounding too: what is subtracted from 1 is 1 then."""
    g = 1e6 * rows()[:1]
    diagonal, _ = BlockFisher(g, size, 1e-15, "layer", lambda _: None).inverse(torch.ones(P, dtype=torch.bool), g[0])
    assert bool((diagonal >= 0.999 / g[0].double().square()).all())


def test_too_little_damping_is_raised_and_reported() -> None:
    """A block of rank one, with a ridge below rounding."""
    g, notes = torch.ones(N, 5), []
    BlockFisher(g, 5, 1e-18, "features.3", notes.append).inverse(torch.ones(5, dtype=torch.bool), g[0])
    assert len(notes) == 1
    assert notes[0].startswith("features.3: damping raised from 1e-18 to 1e-1")


def test_a_failed_factorisation_names_the_layer() -> None:
    g = rows()
    g[2, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"features\.3: .*Fisher"):
        BlockFisher(g, 4, 0.01, "features.3", no_note).inverse(torch.ones(P, dtype=torch.bool), g[0])
