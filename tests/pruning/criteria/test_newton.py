"""How far along a Newton step: against the error itself, and at the ends of the range."""

import pytest
import torch
from torch import nn

from prunetaylor.pruning.criteria._newton import newton_share
from prunetaylor.taylor.model import TaylorModel
from support.samples import rand
from support.taylor_models import taylor


def linear() -> TaylorModel:
    """A squared error that is quadratic in the weights, so that the model of it is exact."""
    return taylor(nn.Linear(3, 2).eval(), rand(20, 3), rand(20, 2, seed=1), task="regression", kind="task")


def test_the_minimum_along_the_step() -> None:
    model = linear()
    step = {"weight": -20 * model.gradient["weight"].double()}
    share = newton_share(model, step)
    assert 0 < share < 1
    weight, errors = model.network.layers[0].weight, []
    start = weight.detach().clone()
    for at in (0.9 * share, share, 1.1 * share):
        weight.data = start + at * step["weight"].float()
        errors.append(model.risk.value())
    assert errors[1] < min(errors[0], errors[2])
    assert errors[0] == pytest.approx(errors[2], rel=1e-4)


def test_a_step_that_falls_short_is_not_made_longer() -> None:
    model = linear()
    assert newton_share(model, {"weight": -1e-3 * model.gradient["weight"]}) == 1.0


def test_a_step_uphill_or_nowhere_is_not_taken() -> None:
    model = linear()
    assert newton_share(model, {"weight": model.gradient["weight"]}) == 0.0
    assert newton_share(model, {"weight": torch.zeros(2, 3)}) == 0.0


def test_a_step_of_which_the_curvature_says_no_end_is_not_taken() -> None:
    """Classes that are certain: a wrong answer's slope is there, and no curvature that would hold a step back."""
    module = nn.Linear(2, 2, bias=False).eval()
    module.weight.data = torch.tensor([[0.0, 0.0], [400.0, 0.0]])
    model = taylor(module, torch.ones(3, 2), torch.zeros(3, dtype=torch.long), kind="task")
    step = {"weight": -model.gradient["weight"]}
    found = model.predict(step)
    assert (found.first_order < 0, found.second_order) == (True, 0.0)
    assert newton_share(model, step) == 0.0


def test_a_step_that_only_its_own_samples_want_is_not_taken() -> None:
    """As many weights as samples and nothing but noise to learn: the step meets it all, and others see none of it."""
    module = nn.Linear(40, 1).eval()
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    model = taylor(module, rand(40, 40), rand(40, 1, seed=1), task="regression", kind="task")
    x, noise = rand(40, 40).double(), rand(40, 1, seed=1).double()
    step = {"weight": torch.linalg.lstsq(x, noise).solution.T.float()}
    assert newton_share(model, step) > 0.9
    model.holdout_model = taylor(module, rand(400, 40, seed=2), rand(400, 1, seed=3), task="regression", kind="task")
    assert newton_share(model, step) < 0.1
