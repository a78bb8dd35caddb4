"""The error's gradient and curvature in the outputs, against automatic differentiation in float64."""

from types import SimpleNamespace

import pytest
import torch
from tiny import output_hessian, rand
from torch.func import grad, hessian, vmap

from prunetaylor.errors import DataError
from prunetaylor.objective import Objective, outputs_of

ALL = [(kind, of) for kind in ("classes", "values") for of in ("task", "divergence")]


def case(kind: str, of: str) -> tuple[Objective, torch.Tensor, torch.Tensor]:
    z = 2 * rand(5, 4).double()
    labels = torch.tensor([0, 3, 1, 1, 2])
    reference = labels if (kind, of) == ("classes", "task") else 2 * rand(5, 4, seed=1).double()
    return Objective(kind, of), z, reference


@pytest.mark.parametrize(("kind", "of"), ALL)
def test_gradient_and_curvature_are_those_of_the_values(kind: str, of: str) -> None:
    objective, z, reference = case(kind, of)

    def value(z: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return objective.values(z.unsqueeze(0), r.unsqueeze(0)).squeeze(0)

    torch.testing.assert_close(objective.gradient(z, reference), vmap(grad(value))(z, reference))
    h = vmap(hessian(value))(z, reference)
    torch.testing.assert_close(h, output_hessian(z, kind))
    v = rand(5, 4, seed=2).double()
    torch.testing.assert_close(objective.second(z, v), torch.einsum("ni,nij,nj->n", v, h, v))
    torch.testing.assert_close(objective.product(z, v), torch.einsum("nij,nj->ni", h, v))
    factor = objective.factor(z)
    torch.testing.assert_close(factor @ factor.mT, h)


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_sampled_factor_has_the_curvature_as_its_second_moment(kind: str) -> None:
    objective = Objective(kind, "task")
    z = torch.tensor([[0.5, -1.0, 0.2]]).double()
    draws = objective.sampled_factor(z.expand(100_000, -1), objective.draws(100_000, 3, seed=0)).double()
    torch.testing.assert_close((draws.T @ draws / len(draws))[None], output_hessian(z, kind), rtol=0, atol=0.015)


def test_values_are_the_textbook_ones() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.tensor([[0.1, 0.6, 0.3]]).double()
    divergence = Objective("classes", "divergence").values(p.log(), q.log() + 3)
    torch.testing.assert_close(divergence, (q * (q / p).log()).sum(1))
    torch.testing.assert_close(Objective("classes", "task").values(p.log(), torch.tensor([1])), -p[:, 1].log())
    squared = Objective("values", "task").values(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))
    torch.testing.assert_close(squared, torch.tensor([2.5]))


def test_divergence_is_zero_and_flat_at_the_dense_outputs() -> None:
    z = 30 * rand(6, 4).double()
    for kind in ("classes", "values"):
        objective = Objective(kind, "divergence")
        torch.testing.assert_close(objective.values(z, z), torch.zeros(6).double())
        torch.testing.assert_close(objective.gradient(z, z), torch.zeros(6, 4).double())


def test_extreme_outputs_stay_finite() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]])
    for of, reference in (("divergence", -z), ("task", torch.tensor([0]))):
        objective = Objective("classes", of)
        for found in (objective.values(z, reference), objective.gradient(z, reference), objective.factor(z)):
            assert bool(torch.isfinite(found).all())


def test_targets_of_another_shape_are_the_outputs_own() -> None:
    objective = Objective("values", "task")
    torch.testing.assert_close(objective.values(torch.ones(3, 1), torch.zeros(3)), torch.full((3,), 0.5))


def test_outputs_of_richer_results() -> None:
    z = rand(2, 3)
    for result in (z, {"logits": z}, {"out": z, "aux": 1}, SimpleNamespace(logits=z), (z, "state"), [z]):
        assert torch.equal(outputs_of(result), z)
    assert outputs_of(rand(2, 3, 4, 5)).shape == (2, 60)
    assert outputs_of(rand(4)).shape == (4, 1)
    with pytest.raises(DataError, match="returned str, not a tensor"):
        outputs_of("no")
