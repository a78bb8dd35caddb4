"""LAMP by its definition, weight by weight."""

import torch
from torch import Tensor, nn

from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import ScoringContext, load_criterion
from support.samples import rand


def scored(module: nn.Module) -> dict[str, Tensor]:
    network = Network.from_module(module)
    return load_criterion("lamp").score(ScoringContext(network, network.masks(), torch.Generator()))


def test_the_definition() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 3))
    for name, score in scored(module).items():
        w = module.get_parameter(name).detach().double().flatten()
        wanted = torch.stack([v**2 / w[w.abs() >= v.abs()].square().sum() for v in w])
        torch.testing.assert_close(score.flatten(), wanted)


def test_of_equals_the_first_goes_first_and_the_last_keeps_the_layer() -> None:
    module = nn.Linear(4, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -1.0, 0.0, 1.0]]))
    torch.testing.assert_close(scored(module)["weight"], torch.tensor([[1 / 3, 1 / 2, 0, 1]]).double())


def test_the_scale_of_a_layer_says_nothing() -> None:
    module = nn.Linear(5, 4)
    before = scored(module)["weight"]
    with torch.no_grad():
        module.weight *= 1e-3
    torch.testing.assert_close(scored(module)["weight"], before)


def test_an_order_within_a_layer_that_is_magnitude_s() -> None:
    module = nn.Linear(30, 20)
    with torch.no_grad():
        module.weight.copy_(rand(20, 30))
    order = scored(module)["weight"].flatten().argsort()
    assert torch.equal(order, module.weight.detach().abs().flatten().argsort())


def test_a_layer_that_is_all_zero_costs_nothing() -> None:
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    assert not bool(scored(module)["weight"].any())
