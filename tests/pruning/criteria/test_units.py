"""The unit of ranking against the formula that its module states, written out."""

import pytest
import torch
from torch import nn

from prunetaylor.pruning.criteria._units import error_unit, ranking_unit
from support.samples import rand
from support.taylor_models import taylor


@pytest.mark.parametrize(("trained_between_stages", "b"), [(False, 0.75), (True, 1.0)])
def test_the_unit_is_the_geometric_mean_of_the_error_s_and_the_layer_s_own(
    trained_between_stages: bool, b: float
) -> None:
    """u = (1/v)^(1-b) (a/2)^b with v the variance of all of the layer's outputs, a its rows' sensitivities."""
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    model = taylor(module, rand(40, 4))
    model.trained_between_stages = trained_between_stages
    for layer in model.network.layers:
        a, v = model.sensitivity[layer.name].double(), model.moments[layer.name].variance.double().sum()
        torch.testing.assert_close(error_unit(model, layer).double(), a.unsqueeze(2) / 2)
        wanted = (1 / v) ** (1 - b) * (a.unsqueeze(2) / 2) ** b
        torch.testing.assert_close(ranking_unit(model, layer).double(), wanted, rtol=1e-6, atol=0)


def test_a_layer_without_variance_has_a_unit_too() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    model = taylor(module, torch.ones(8, 4))
    for trained_between_stages in (False, True):
        model.trained_between_stages = trained_between_stages
        for layer in model.network.layers:
            assert torch.isfinite(ranking_unit(model, layer)).all()
