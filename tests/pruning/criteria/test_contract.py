"""Every criterion of the registry keeps the contract, and the classics are their formulas."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from prunetaylor.core import registry
from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import ScoringContext, load_criterion
from support.criterion_contract import CONTRACT, case
from support.networks import mlp
from support.samples import rand
from support.taylor_models import scored, taylor

NAMES = registry.names(registry.CRITERIA)


@pytest.mark.parametrize("rule", CONTRACT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("criterion", NAMES)
def test_contract(criterion: str, rule: Callable[[str], None]) -> None:
    rule(criterion)


def without_samples(module: nn.Module) -> ScoringContext:
    network = Network.from_module(module)
    return ScoringContext(network, network.masks(), torch.Generator().manual_seed(0))


def test_magnitude_is_the_absolute_weight() -> None:
    module, _, _ = case("conv")
    torch.testing.assert_close(
        load_criterion("magnitude").score(without_samples(module))["0.weight"], module[0].weight.detach().abs()
    )


def test_random_is_uniform() -> None:
    value = load_criterion("random").score(without_samples(nn.Linear(100, 100)))["weight"]
    assert float(value.min()) >= 0
    assert float(value.max()) <= 1
    assert float(value.mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", ["conv", "twice"])
def test_obd_is_the_diagonal_second_order_term(name: str) -> None:
    module, x, y = case(name)
    model = taylor(module, x, y, kind="task")
    for keep_first in (True, False):
        model.keep_first = keep_first
        scores = scored("obd", model)
        for layer in model.network.layers:
            w, h, g = layer.weight.detach(), model.diagonal[layer.parameter], model.gradient[layer.parameter]
            torch.testing.assert_close(scores[layer.parameter], h * w**2 / 2 - (g * w if keep_first else 0))


def test_obd_is_the_prediction_for_one_removed_weight() -> None:
    module, x, y = case("conv")
    model = taylor(module, x, y, kind="task")
    scores = scored("obd", model)
    for name, w in ((n, dict(module.named_parameters())[n].detach()) for n in scores):
        for index in range(0, w.numel(), 5):
            d = torch.zeros_like(w).flatten()
            d[index] = -w.flatten()[index]
            predicted = model.predict({name: d.view_as(w)}).change(True)
            assert float(scores[name].flatten()[index]) == pytest.approx(predicted, rel=1e-3, abs=1e-7)


def test_taylor1_is_the_gradient_times_the_weight() -> None:
    module, x, y = case("conv")
    model = taylor(module, x, y, kind="task")
    w, g = module[0].weight.detach(), model.gradient["0.weight"]
    torch.testing.assert_close(scored("taylor1", model)["0.weight"], (w * g).abs())


FITTED = [name for name in NAMES if load_criterion(name).needs != "nothing"]


@pytest.mark.parametrize("name", FITTED)
def test_where_the_error_depends_on_no_weight_nothing_is_chosen_at_first(name: str) -> None:
    """Outputs so far apart that cross-entropy has neither a gradient nor a curvature: no order would mean anything."""
    module, x = mlp(), rand(20, 6)
    with torch.no_grad():
        module[-1].weight.mul_(1e6)
        right = module(x).argmax(1)
    model = taylor(module, x, right, kind="task")
    with pytest.raises(NumericsError, match="no curvature to rank by"):
        scored(name, model)
    model.stage = 2
    assert all(bool(torch.isfinite(s).all()) for s in scored(name, model).values())
    assert any(note.startswith("no curvature along any remaining weight") for note in model.notes)


def test_taylor1_names_layers_without_a_gradient() -> None:
    module, x = mlp(), rand(20, 6)
    with torch.no_grad():
        module[-1].weight.zero_()  # nothing of the layers before arrives
    model = taylor(module, x, torch.arange(20) % 3, kind="task")
    scored("taylor1", model)
    first = model.network.layers[0].parameter
    assert f"{first}: zero gradient on all samples, so its weights look free to remove" in model.notes
