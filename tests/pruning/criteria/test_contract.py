"""What every criterion must be, found by its name: a new file in criteria/ is tested the moment it exists."""

import re
import sys

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.core import registry
from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import ScoringContext, load_criterion
from prunetaylor.taylor.model import TaylorModel
from support.networks import mlp
from support.samples import rand
from support.taylor_models import taylor

NAMES = registry.names(registry.CRITERIA)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.a(x).tanh()))


def dead() -> nn.Module:
    """The first channel of the convolution never comes through, and a column of the head sees nothing."""
    module = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        module[0].weight[0] = 0
        module[0].bias[0] = -1
    return module


NETWORKS = {
    "linear": (lambda: nn.Linear(3, 2), (3,)),
    "one weight": (lambda: nn.Linear(1, 2), (1,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2, groups=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ),
        (2, 3, 3),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
        (2, 3),
    ),
    "twice": (Twice, (4,)),
    "dead": (dead, (1, 3, 3)),
}


def case(name: str, samples: int = 9) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = NETWORKS[name]
    module = make().eval()
    outputs = 2 if name in ("linear", "one weight") else 3
    return module, rand(samples, *shape), torch.arange(samples) % outputs


def scored(criterion: str, model: TaylorModel | None, network: Network, masks: dict[str, Tensor] | None = None) -> dict:
    context = ScoringContext(network, masks or network.masks(), torch.Generator().manual_seed(0), model)
    return load_criterion(criterion).score(context)


def test_the_registry_knows_the_issue_s_criteria() -> None:
    assert {"magnitude", "random", "taylor1", "obd", "obs"} <= set(NAMES)


@pytest.mark.parametrize("criterion", NAMES)
def test_it_says_what_it_needs_and_where_it_comes_from(criterion: str) -> None:
    method = load_criterion(criterion)
    assert method.needs in ("nothing", "samples", "labels")
    assert method.default_repair in ("none", "batch-norm", "least-squares")
    assert method.max_stage_fraction is None or 0 < method.max_stage_fraction < 1
    assert method.needs != "nothing" or (method.default_repair == "none" and method.max_stage_fraction is None), (
        "no repair without samples"
    )
    text = sys.modules[type(method).__module__].__doc__ or ""
    assert re.search(r"^ *s_j +[=~]", text, re.MULTILINE), "the formula"
    assert criterion == "random" or re.search(r"\b(19|20)\d\d\b", text), "the paper"


@pytest.mark.parametrize("criterion", [name for name in NAMES if name != "taylor1"])
def test_it_goes_by_the_gradient_where_it_says_so(criterion: str) -> None:
    module, x, y = case("conv")
    scores = []
    for keep_first in (True, False):
        model = taylor(module, x, y, kind="task")
        model.keep_first = keep_first
        scores.append(scored(criterion, model, model.network))
    same = all(torch.equal(scores[1][name], score) for name, score in scores[0].items())
    assert same != load_criterion(criterion).uses_gradient


@pytest.mark.parametrize("kind", ["task", "divergence"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("criterion", NAMES)
def test_a_finite_score_for_every_prunable_weight(criterion: str, name: str, kind: str) -> None:
    module, x, y = case(name)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    model = taylor(module, x, y, kind=kind)
    scores = scored(criterion, model, model.network)
    assert {k: v.shape for k, v in scores.items()} == {
        layer.parameter: layer.weight.shape for layer in model.network.layers
    }
    for key, value in scores.items():
        assert bool(torch.isfinite(value).all()), key
        assert not value.requires_grad
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("criterion", NAMES)
def test_scores_with_most_weights_gone(criterion: str) -> None:
    module, x, y = case("conv")
    masks = {}
    for i, layer in enumerate(Network.from_module(module).layers):
        masks[layer.parameter] = rand(*layer.weight.shape, seed=i) > 0.8
        layer.weight.data *= masks[layer.parameter]
    model = taylor(module, x, y, kind="task")
    for key, value in scored(criterion, model, model.network, masks).items():
        assert bool(torch.isfinite(value[masks[key]]).all())


@pytest.mark.parametrize("criterion", [n for n in NAMES if load_criterion(n).needs == "nothing"])
def test_what_needs_nothing_works_without_samples(criterion: str) -> None:
    network = Network.from_module(case("conv")[0])
    assert set(scored(criterion, None, network)) == {"0.weight", "4.weight"}


@pytest.mark.parametrize("criterion", NAMES)
def test_the_same_seed_gives_the_same_scores(criterion: str) -> None:
    first, second = (scored(criterion, m, m.network) for m in (taylor(*_seeded("conv"), kind="task") for _ in range(2)))
    for key, value in first.items():
        assert torch.equal(value, second[key])


def _seeded(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return case(name)


@pytest.mark.parametrize("criterion", [n for n in NAMES if n != "random"])
def test_a_weight_that_is_zero_already_costs_nothing(criterion: str) -> None:
    module, x, y = case("linear")
    with torch.no_grad():
        module.weight[1, 2] = 0
    model = taylor(module, x, y, kind="task")
    model.keep_first = False  # with a gradient it may be worth moving away from zero
    assert float(scored(criterion, model, model.network)["weight"][1, 2]) == 0


@pytest.mark.parametrize("criterion", NAMES)
def test_layers_that_the_samples_do_not_move_do_not_break_it(criterion: str) -> None:
    """All inputs alike: Gram matrices of rank one, no variance anywhere."""
    module, x, y = case("conv")
    model = taylor(module, torch.ones_like(x), y, kind="task")
    for value in scored(criterion, model, model.network).values():
        assert bool(torch.isfinite(value).all())


def test_magnitude_is_the_absolute_weight() -> None:
    module, _, _ = case("conv")
    torch.testing.assert_close(
        scored("magnitude", None, Network.from_module(module))["0.weight"], module[0].weight.detach().abs()
    )


def test_random_is_uniform() -> None:
    value = scored("random", None, Network.from_module(nn.Linear(100, 100)))["weight"]
    assert float(value.min()) >= 0
    assert float(value.max()) <= 1
    assert float(value.mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", ["conv", "twice"])
def test_obd_is_the_diagonal_second_order_term(name: str) -> None:
    module, x, y = case(name)
    model = taylor(module, x, y, kind="task")
    for keep_first in (True, False):
        model.keep_first = keep_first
        scores = scored("obd", model, model.network)
        for layer in model.network.layers:
            w, h, g = layer.weight.detach(), model.diagonal[layer.parameter], model.gradient[layer.parameter]
            torch.testing.assert_close(scores[layer.parameter], h * w**2 / 2 - (g * w if keep_first else 0))


def test_obd_is_the_prediction_for_one_removed_weight() -> None:
    module, x, y = case("conv")
    model = taylor(module, x, y, kind="task")
    scores = scored("obd", model, model.network)
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
    torch.testing.assert_close(scored("taylor1", model, model.network)["0.weight"], (w * g).abs())


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
        scored(name, model, model.network)
    model.stage = 2
    assert all(bool(torch.isfinite(s).all()) for s in scored(name, model, model.network).values())
    assert any(note.startswith("no curvature along any remaining weight") for note in model.notes)


def test_taylor1_names_layers_without_a_gradient() -> None:
    module, x = mlp(), rand(20, 6)
    with torch.no_grad():
        module[-1].weight.zero_()  # nothing of the layers before arrives
    model = taylor(module, x, torch.arange(20) % 3, kind="task")
    scored("taylor1", model, model.network)
    first = model.network.layers[0].parameter
    assert f"{first}: zero gradient on all samples, so its weights look free to remove" in model.notes
