"""What a criterion must be, whichever package it comes from: each rule takes the criterion's name."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunetaylor.core import registry
from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import ScoringContext, load_criterion
from support.samples import rand
from support.taylor_models import scored, taylor


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


def states_its_facts(criterion: str) -> None:
    method = load_criterion(criterion)
    assert method.needs in ("nothing", "samples", "labels")
    assert method.default_repair in ("none", *registry.names(registry.REPAIRS))
    assert method.max_stage_fraction is None or 0 < method.max_stage_fraction < 1
    assert method.needs != "nothing" or (method.default_repair == "none" and method.max_stage_fraction is None), (
        "no repair without samples"
    )
    text = sys.modules[type(method).__module__].__doc__ or ""
    assert re.search(r"^ *s_j +[=~]", text, re.MULTILINE), "the formula"
    assert criterion == "random" or re.search(r"\b(19|20)\d\d\b", text), "the paper"


def uses_the_gradient_if_it_says_so(criterion: str) -> None:
    if load_criterion(criterion).needs == "labels":  # nothing but the gradient, kept or not
        return
    module, x, y = case("conv")
    scores = []
    for keep_first in (True, False):
        model = taylor(module, x, y, kind="task")
        model.keep_first = keep_first
        scores.append(scored(criterion, model))
    same = all(torch.equal(scores[1][name], score) for name, score in scores[0].items())
    assert same != load_criterion(criterion).uses_gradient


def scores_every_prunable_weight_and_changes_nothing(criterion: str) -> None:
    for name in NETWORKS:
        for kind in ("task", "divergence"):
            module, x, y = case(name)
            before = {k: v.clone() for k, v in module.state_dict().items()}
            model = taylor(module, x, y, kind=kind)
            scores = scored(criterion, model)
            layers = model.network.layers
            assert {k: v.shape for k, v in scores.items()} == {x.parameter: x.weight.shape for x in layers}, name
            assert all(bool(torch.isfinite(v).all()) and not v.requires_grad for v in scores.values()), (name, kind)
            for key, value in module.state_dict().items():
                assert torch.equal(value, before[key]), (name, kind, key)


def scores_a_network_with_most_weights_removed(criterion: str) -> None:
    module, x, y = case("conv")
    masks = {}
    for i, layer in enumerate(Network.from_module(module).layers):
        masks[layer.parameter] = rand(*layer.weight.shape, seed=i) > 0.8
        layer.weight.data *= masks[layer.parameter]
    for key, value in scored(criterion, taylor(module, x, y, kind="task"), masks).items():
        assert bool(torch.isfinite(value[masks[key]]).all())


def scores_without_samples_if_it_needs_nothing(criterion: str) -> None:
    method = load_criterion(criterion)
    if method.needs == "nothing":
        network = Network.from_module(case("conv")[0])
        scores = method.score(ScoringContext(network, network.masks(), torch.Generator()))
        assert set(scores) == {"0.weight", "4.weight"}


def scores_the_same_with_the_same_seed(criterion: str) -> None:
    scores = []
    for _ in range(2):
        torch.manual_seed(0)
        scores.append(scored(criterion, taylor(*case("conv"), kind="task")))
    assert all(torch.equal(value, scores[1][key]) for key, value in scores[0].items())


def scores_a_zero_weight_as_zero(criterion: str) -> None:
    if criterion == "random":
        return
    module, x, y = case("linear")
    with torch.no_grad():
        module.weight[1, 2] = 0
    model = taylor(module, x, y, kind="task")
    model.keep_first = False  # with a gradient it may be worth moving away from zero
    assert float(scored(criterion, model)["weight"][1, 2]) == 0


def scores_inputs_that_are_all_alike(criterion: str) -> None:
    """Gram matrices of rank one, no variance anywhere."""
    module, x, y = case("conv")
    for value in scored(criterion, taylor(module, torch.ones_like(x), y, kind="task")).values():
        assert bool(torch.isfinite(value).all())


CONTRACT: list[Callable[[str], None]] = [
    states_its_facts,
    uses_the_gradient_if_it_says_so,
    scores_every_prunable_weight_and_changes_nothing,
    scores_a_network_with_most_weights_removed,
    scores_without_samples_if_it_needs_nothing,
    scores_the_same_with_the_same_seed,
    scores_a_zero_weight_as_zero,
    scores_inputs_that_are_all_alike,
]
