"""The Fisher information without blocks against the dense matrix."""

import pytest
import torch
from torch import Tensor

from prunetaylor.curvature import low_rank
from prunetaylor.curvature.fisher import fisher_rows
from prunetaylor.curvature.low_rank import LowRankFisher
from prunetaylor.errors import NumericsError
from prunetaylor.network.network import Network
from support.networks import case
from support.tiny import rand, risk

N = 7
SHAPES = {"a": (3, 4), "b": (2, 2, 3)}


def rows() -> dict[str, Tensor]:
    return {"a": rand(N, 12), "b": 3 * rand(N, 12, seed=1)}


def vector(seed: int = 5) -> dict[str, Tensor]:
    return {name: rand(*shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


def masks() -> dict[str, Tensor]:
    return {name: value > -0.3 for name, value in vector(11).items()}


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in values.values()])


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("elements", [1 << 22, 20])
def test_against_the_dense_inverse(damping: float, kept: bool, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "_ELEMENTS", elements)
    keep = masks() if kept else None
    g = flat({k: v.T for k, v in rows().items()}).view(24, N).T.double()
    stays = flat(keep) if keep else torch.ones(24, dtype=torch.bool)
    f = g.T @ g / N * stays * stays[:, None]
    # The ridge is relative to the mean over the kept and the removed weights: it does not depend on how many are left.
    ridge = damping * float(g.square().mean())
    inverse = torch.linalg.inv(f + ridge * torch.eye(24).double())
    found, v = LowRankFisher(rows(), damping, keep), vector()
    assert found.ridge == pytest.approx(ridge)
    torch.testing.assert_close(flat(found.product(v)), f @ flat(v).double())
    solved = found.solve(v)
    assert {k: tuple(s.shape) for k, s in solved.items()} == SHAPES
    torch.testing.assert_close(flat(solved), (inverse @ flat(v).double()) * stays)
    torch.testing.assert_close(flat(found.inverse_diagonal()), torch.where(stays, inverse.diagonal(), 1))


def test_of_a_network() -> None:
    module, x, y = case("transposed")
    rows = fisher_rows(risk(module, x, y, of="task"), Network.of(module).layers, "empirical", 0)
    found = LowRankFisher(rows, 0.01)
    g = torch.cat(list(rows.values()), 1).double()
    f = g.T @ g / len(g)
    inverse = torch.linalg.inv(f + 0.01 * f.diagonal().mean() * torch.eye(len(f)).double())
    torch.testing.assert_close(flat(found.inverse_diagonal()), inverse.diagonal())


def test_part_of_a_vector_is_a_vector_with_zeros() -> None:
    found, v = LowRankFisher(rows(), 0.01), vector()
    whole = found.solve({"a": v["a"], "b": torch.zeros(SHAPES["b"])})
    torch.testing.assert_close(found.solve({"a": v["a"]}), {"a": whole["a"]})


def test_rows_without_curvature() -> None:
    found = LowRankFisher({"a": torch.zeros(3, 4)}, 0.01)
    assert not bool(found.solve({"a": torch.zeros(4)})["a"].any())
    assert bool(torch.isfinite(found.inverse_diagonal()["a"]).all())


def test_what_cannot_be_factorised_is_an_error() -> None:
    bad = rows()
    bad["a"][1, 1] = float("nan")
    with pytest.raises(NumericsError, match="products of 7 gradients are not positive definite"):
        LowRankFisher(bad, 0.01)
