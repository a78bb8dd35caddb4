"""What a repair and a refiner must be, whichever package they come from: each rule takes the method's name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Batches, Inputs
from prunetaylor.network.network import Network
from prunetaylor.network.state import snapshot
from prunetaylor.pruning.intercepts import find_intercepts
from prunetaylor.pruning.interfaces import (
    RefinementContext,
    RefinementSamples,
    RefinementStep,
    Repair,
    RepairContext,
    load_refiner,
    load_repair,
)
from prunetaylor.pruning.masks import apply_masks
from prunetaylor.taylor.passes import compute_outputs
from prunetaylor.taylor.risk import Risk
from support.criterion_contract import NETWORKS, case
from support.samples import batches, rand
from support.taylor_models import risk, taylor

SAMPLES, DAMPING = 40, 0.01


@dataclass
class Removal:
    """A network with 40 % of its weights removed, its dense copy, and the samples that it is repaired on."""

    network: Network
    dense: Network
    masks: dict[str, Tensor]
    x: Tensor

    @classmethod
    def of(cls, name: str) -> Removal:
        module, x, _ = case(name, SAMPLES)
        network = Network.from_module(copy.deepcopy(module))
        masks = {layer.parameter: rand(*layer.weight.shape, seed=i) > -0.25 for i, layer in enumerate(network.layers)}
        apply_masks(network.module, masks)
        return cls(network, Network.from_module(module), masks, x)

    def outputs(self, network: Network) -> Tensor:
        with torch.no_grad():
            return compute_outputs(network.module, Inputs.of(self.x)).double()

    def error(self) -> float:
        """Return the squared distance of the outputs from the dense network's."""
        return float((self.outputs(self.network) - self.outputs(self.dense)).square().sum())

    def shift(self) -> float:
        """Return the squared distance of the mean outputs from the dense network's."""
        return float((self.outputs(self.network) - self.outputs(self.dense)).mean(0).square().sum())


def repair_of(name: str) -> Repair:
    repair = load_repair(name)
    assert repair is not None
    return repair


def repaired(name: str, removal: Removal, finished: tuple[str, ...] = ()) -> list[str]:
    """Repair the network of a removal in place; return the names in their order."""
    return repaired_by(repair_of(name), removal, finished)


def repaired_by(repair: Repair, removal: Removal, finished: tuple[str, ...] = ()) -> list[str]:
    """Repair the network of a removal in place; return the names in their order."""
    network, dense, samples = removal.network, removal.dense, batches(removal.x, None, 16)
    context = RepairContext(
        network=network,
        target=dense,
        masks=removal.masks,
        batches=samples,
        intercepts=find_intercepts(network.module, network.layers, samples),
        damping=DAMPING,
        seed=0,
        note=lambda text: None,
        before=snapshot(dense.module),
        moments=taylor(dense.module, removal.x, damping=DAMPING).moments if repair.needs_moments else {},
        repaired=finished,
    )
    return list(repair.apply(context))


class Samples:
    """The samples of a removal as a refiner reads them."""

    chunk = 16

    def __init__(self, removal: Removal) -> None:
        self._removal = removal

    def augmented(self, batch_size: int) -> Batches:
        return batches(self._removal.x, None, 16)

    def risk(self) -> Risk:
        return held_out(self._removal)


def held_out(removal: Removal) -> Risk:
    return risk(removal.network.module, removal.x, dense=removal.dense.module, size=16)


def refined(name: str, removal: Removal) -> list[RefinementStep]:
    """Refine the network of a removal in place; return the steps."""
    samples: RefinementSamples = Samples(removal)
    network, read = removal.network, batches(removal.x, None, 16)
    context = RefinementContext(
        network=network,
        dense=removal.dense,
        masks=removal.masks,
        intercepts=find_intercepts(network.module, network.layers, read),
        samples=samples,
        holdout=held_out(removal),
        scale=1.0,
        steps=6,
        seed=0,
    )
    return list(load_refiner(name).refine(context))


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Assert that states, modes and gradients of modules are as they were, and that no hook is left on them."""
    before = [(snapshot(module), [m.training for m in module.modules()]) for module in modules]
    yield
    for module, (state, modes) in zip(modules, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        assert [m.training for m in module.modules()] == modes
        assert all(p.grad is None for p in module.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def keeps_masks_and_stays_finite(change: Callable[[str, Removal], object], name: str) -> None:
    for network in NETWORKS:
        removal = Removal.of(network)
        modes = [module.training for module in removal.network.module.modules()]
        change(name, removal)
        for key, value in removal.network.module.state_dict().items():
            assert bool(torch.isfinite(value).all()), (network, key)
        for layer in removal.network.layers:
            assert not bool(layer.weight[~removal.masks[layer.parameter]].any()), (network, layer.name)
        assert [module.training for module in removal.network.module.modules()] == modes
        assert all(p.grad is None for p in removal.network.module.parameters())


def leaves_the_dense_network_as_it_is(change: Callable[[str, Removal], object], name: str) -> None:
    for network in NETWORKS:
        removal = Removal.of(network)
        with unchanged(removal.dense.module):
            change(name, removal)


def gives_the_same_bits_twice(change: Callable[[str, Removal], object], name: str) -> None:
    one = Removal.of("conv")
    other = copy.deepcopy(one)
    for seed, removal in enumerate((one, other)):
        torch.manual_seed(seed)  # nothing is drawn from the global generator
        change(name, removal)
    state = other.network.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.network.module.state_dict().items())


def repair_states_its_facts(name: str) -> None:
    repair = repair_of(name)
    assert repair.summary
    assert repair.at in ("removal", "acceptance")
    assert repair.at == "removal" or not repair.needs_moments, "they are fitted for the step"
    layers = Network.from_module(case("conv")[0]).layers
    assert repair.passes(len(layers)) >= 0
    assert repair.work(layers) >= 0


def repair_brings_the_outputs_nearer(name: str) -> None:
    """In a network of one layer a repair minimises the outputs' distance from the dense ones, or that of their mean."""
    for removal in (Removal.of("linear"), one_layer_and_its_batch_norm()):
        error, shift = removal.error(), removal.shift()
        repaired(name, removal)
        assert removal.shift() <= shift
        if repair_of(name).at == "removal":
            assert removal.error() <= error


def one_layer_and_its_batch_norm() -> Removal:
    norm = nn.BatchNorm1d(3)
    norm.running_mean, norm.running_var = rand(3, seed=5), rand(3, seed=6).abs() + 0.5
    module = nn.Sequential(nn.Linear(8, 3, bias=False), norm).eval()
    network = Network.from_module(copy.deepcopy(module))
    masks = {layer.parameter: rand(*layer.weight.shape) > -0.25 for layer in network.layers}
    apply_masks(network.module, masks)
    return Removal(network, Network.from_module(module), masks, rand(SAMPLES, 8, seed=3) + 1)


def repair_names_each_layer_once_and_leaves_finished_ones(name: str) -> None:
    removal = Removal.of("conv")
    names = repaired(name, removal)
    assert len(set(names)) == len(names) > 0
    if repair_of(name).at == "removal":  # what follows acceptance is not resumed in its midst
        first, weights = names[0], removal.network.layers[0].weight.clone()
        assert repaired(name, removal, (first,)) == names[1:]
        assert torch.equal(removal.network.layers[0].weight, weights)


def refiner_states_its_facts(name: str) -> None:
    refiner = load_refiner(name)
    assert refiner.summary
    assert refiner.action
    assert refiner.towards in ("dense layers", "error")
    assert refiner.usual_steps >= 1
    assert refiner.passes(100) > 0


def refiner_does_not_raise_the_held_out_error(name: str) -> None:
    for network in NETWORKS:
        removal = Removal.of(network)
        before = held_out(removal).value()
        steps = refined(name, removal)
        assert 1 <= len(steps) <= 6
        assert held_out(removal).value() <= before


def _rules(change: Callable[[str, Removal], object]) -> list[Callable[[str], None]]:
    def rule(of: Callable[[Callable[[str, Removal], object], str], None]) -> Callable[[str], None]:
        def check(name: str) -> None:
            of(change, name)

        check.__name__ = of.__name__
        return check

    return [
        rule(of) for of in (keeps_masks_and_stays_finite, leaves_the_dense_network_as_it_is, gives_the_same_bits_twice)
    ]


REPAIR_CONTRACT: list[Callable[[str], None]] = [
    repair_states_its_facts,
    repair_brings_the_outputs_nearer,
    repair_names_each_layer_once_and_leaves_finished_ones,
    *_rules(repaired),
]
REFINER_CONTRACT: list[Callable[[str], None]] = [
    refiner_states_its_facts,
    refiner_does_not_raise_the_held_out_error,
    *_rules(refined),
]
