"""The error's gradient and curvature in the outputs, against automatic differentiation in float64."""

import pytest
import torch
from torch.func import grad, hessian, vmap

from prunetaylor.core.errors import UsageError
from prunetaylor.taylor.losses.by_task import LOSSES
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.objective import Objective, Reference, SampledFactors, Task
from support.samples import rand
from support.taylor_models import output_hessian


def smooth_l1(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Convex, of a curvature that depends on the targets."""
    return (1 + (outputs - targets).square()).sqrt().sum()


OWN = CustomLoss.from_function("tests:smooth_l1", smooth_l1)
TASKS = ["classification", "binary", "regression", OWN]
ALL = [(task, kind) for task in TASKS for kind in ("task", "divergence")]


def case(task: Task, kind: str) -> tuple[Objective, torch.Tensor, torch.Tensor]:
    z = 2 * rand(5, 4).double()
    labels = torch.tensor([0, 3, 1, 1, 2])
    reference = 2 * rand(5, 4, seed=1).double()
    if kind == "task":
        reference = {"classification": labels, "binary": (reference > 0).double()}.get(str(task), reference)
    return Objective(task, kind), z, reference


@pytest.mark.parametrize(("task", "kind"), ALL)
def test_gradient_and_curvature_are_those_of_the_values(task: Task, kind: str) -> None:
    objective, z, reference = case(task, kind)

    def value(z: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return objective.values(z.unsqueeze(0), Reference(r.unsqueeze(0))).squeeze(0)

    torch.testing.assert_close(objective.gradient(z, Reference(reference)), vmap(grad(value))(z, reference))
    h = vmap(hessian(value))(z, reference)
    reference = Reference(reference)
    if task in ("classification", "regression"):
        torch.testing.assert_close(h, output_hessian(z, task))
    v = rand(5, 4, seed=2).double()
    torch.testing.assert_close(objective.quadratic_form(z, reference, v), torch.einsum("ni,nij,nj->n", v, h, v))
    torch.testing.assert_close(objective.hvp(z, reference, v), torch.einsum("nij,nj->ni", h, v))
    factor = objective.hessian_factor(z, reference)
    torch.testing.assert_close(factor @ factor.mT, h)


@pytest.mark.parametrize("task", TASKS)
def test_sampled_factor_has_the_curvature_as_its_second_moment(task: Task) -> None:
    objective = Objective(task, "task")
    z = torch.tensor([[0.5, -1.0, 0.2]]).double()
    targets = torch.tensor([1]) if task == "classification" else torch.tensor([[0.0, 1.0, 1.0]]).double()
    n = 20_000 if task is OWN else 100_000
    many = targets.expand(n, *targets.shape[1:])
    draws = SampledFactors(objective, n, seed=0).sample(z.expand(n, -1), Reference(many), 0).double()
    factor = objective.hessian_factor(z, Reference(targets))
    torch.testing.assert_close((draws.T @ draws / len(draws))[None], factor @ factor.mT, rtol=0, atol=0.015)


def test_values_are_the_textbook_ones() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.tensor([[0.1, 0.6, 0.3]]).double()
    divergence = Objective("classification", "divergence").values(p.log(), Reference(q.log() + 3))
    torch.testing.assert_close(divergence, (q * (q / p).log()).sum(1))
    torch.testing.assert_close(
        Objective("classification", "task").values(p.log(), Reference(torch.tensor([1]))), -p[:, 1].log()
    )
    squared = Objective("regression", "task").values(torch.tensor([[1.0, 2.0]]), Reference(torch.tensor([[0.0, 4.0]])))
    torch.testing.assert_close(squared, torch.tensor([2.5]))


def test_divergence_is_zero_and_flat_at_the_dense_outputs() -> None:
    z = 30 * rand(6, 4).double()
    for task in TASKS:
        objective = Objective(task, "divergence")
        torch.testing.assert_close(objective.values(z, Reference(z)), torch.zeros(6).double())
        torch.testing.assert_close(objective.gradient(z, Reference(z)), torch.zeros(6, 4).double())


def test_extreme_outputs_stay_finite() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]])
    zeros = torch.zeros(1, 3)
    cases = [("classification", "divergence", -z), ("classification", "task", torch.tensor([0]))]
    for task, kind, r in [*cases, ("binary", "divergence", -z), ("binary", "task", zeros)]:
        objective = Objective(task, kind)
        at = Reference(r)
        for found in (objective.values(z, at), objective.gradient(z, at), objective.hessian_factor(z, at)):
            assert bool(torch.isfinite(found).all())


def test_binary_divergence_is_the_textbook_one() -> None:
    p, q = torch.tensor([[0.2, 0.9]]).double(), torch.tensor([[0.6, 0.5]]).double()
    expected = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum(1)
    torch.testing.assert_close(Objective("binary", "divergence").values(p.logit(), Reference(q.logit())), expected)


def test_a_loss_that_is_not_convex_has_no_negative_curvature() -> None:
    objective = Objective(
        CustomLoss.from_function("tests:f", lambda z, y: (z * torch.tensor([1.0, -1.0]) * z).sum()), "task"
    )
    z = rand(2, 2)
    factor = objective.hessian_factor(z, Reference(z))
    torch.testing.assert_close(factor @ factor.mT, torch.tensor([[2.0, 0.0], [0.0, 0.0]]).expand(2, 2, 2))


def test_what_is_right_and_what_is_neither() -> None:
    z = torch.tensor([[1.0], [-1.0], [2.0]])
    assert LOSSES["binary"].correct(z, torch.tensor([1.0, 1.0, 0.0])).tolist() == [True, False, False]
    assert LOSSES["binary"].correct(z.expand(3, 2), torch.ones(3, 2)) is None
    assert OWN.correct(torch.tensor([[0.0, 1.0]]), torch.tensor([1])).tolist() == [True]
    assert OWN.correct(z, torch.ones(3, 1)) is None


def test_a_function_that_is_none_or_fails() -> None:
    with pytest.raises(UsageError, match=r"loss=m:f is a int, not a function"):
        CustomLoss.from_function("m:f", 3)
    broken = CustomLoss.from_function("m:f", lambda z, y: z @ y)
    with pytest.raises(UsageError, match=r"loss=m:f fails on outputs \(2, 3\) and targets \(2, 5\)"):
        broken.values(torch.ones(2, 3), torch.ones(2, 5))


def test_targets_of_another_shape_are_the_outputs_own() -> None:
    objective = Objective("regression", "task")
    torch.testing.assert_close(objective.values(torch.ones(3, 1), Reference(torch.zeros(3))), torch.full((3,), 0.5))
