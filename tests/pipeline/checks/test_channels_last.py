"""Weights lie with channels last where the network bears that, and stay plain, with a word, where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunetaylor import prune, score
from prunetaylor.data.samples import Inputs
from prunetaylor.network.state import channels_last, match_memory_format
from prunetaylor.pipeline.checks.channels_last import find_obstacle
from support.networks import trained
from support.samples import quadrants

LAST = torch.channels_last
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TRAIN, TEST = quadrants(96, seed=0), quadrants(40, seed=1)
COLOURED, COLOURED_TEST = ((x.repeat(1, 3, 1, 1), y) for x, y in (TRAIN, TEST))


def flat(module: nn.Module, y: Tensor) -> Tensor:
    return y.flatten(1)


def viewed(module: nn.Module, y: Tensor) -> Tensor:
    return y.view(len(y), -1)


def viewed_in_training(module: nn.Module, y: Tensor) -> Tensor:
    return (viewed if module.training else flat)(module, y)


def flat_in_training(module: nn.Module, y: Tensor) -> Tensor:
    return (flat if module.training else viewed)(module, y)


def strided(module: nn.Module, y: Tensor) -> Tensor:
    """Reads memory as it lies."""
    return y.as_strided((len(y), y[0].numel()), (y[0].numel(), 1))


class Viewed(torch.autograd.Function):
    """The same values; derivatives in forward mode alone are viewed."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.view(-1).view(tangent.shape).clone()


def viewed_in_forward_mode(module: nn.Module, y: Tensor) -> Tensor:
    return Viewed.apply(y).flatten(1)


Read = Callable[[nn.Module, Tensor], Tensor]


class Reads(nn.Module):
    """(N, 3, 6, 6) to (N, 4): convolutions, and a linear layer that gets what they put out by ``read``."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read
        self.conv, self.norm, self.head = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(80, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self, self.norm(self.conv(x)).relu()))


class ViewsInput(nn.Module):
    """(N, 3, 6, 6) to (N, 4); the convolution alone would bear anything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.skip = nn.Conv2d(3, 4, 6), nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1) + self.skip(x.view(len(x), -1))


READS: list[Read] = [viewed, viewed_in_training, flat_in_training, strided, viewed_in_forward_mode]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("read", READS)
def test_a_network_that_does_not_bear_it_is_found_and_left_as_it_is(read: Read) -> None:
    module = Reads(read).eval()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    drawn = torch.random.get_rng_state()
    said = find_obstacle(module, Inputs.of(X))
    assert said is not None
    assert ("something else" if read is strided else "the network fails: RuntimeError: view size is not") in said
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not module.training
    assert all(p.is_contiguous() and p.grad is None for p in module.parameters())


def test_inputs_that_are_viewed_are_found() -> None:
    assert "view size" in str(find_obstacle(ViewsInput(), Inputs.of(X)))


def test_a_network_that_bears_it() -> None:
    assert find_obstacle(Reads(flat), Inputs.of(X)) is None
    frozen = Reads(flat)
    frozen.requires_grad_(False)
    assert find_obstacle(frozen, Inputs.of(X)) is None
    assert not any(p.requires_grad for p in frozen.parameters())
    # Batch norm cannot train on one value a channel, in any layout: nothing is to be said against this one.
    assert find_obstacle(nn.Sequential(nn.Conv2d(3, 4, 6), nn.BatchNorm2d(4), nn.Flatten()), Inputs.of(X[:1])) is None


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), nn.LocalResponseNorm(3)])
def test_norms_without_statistics_bear_it(norm: nn.Module) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(96, 4))
    assert find_obstacle(module, Inputs.of(X)) is None
    options = {"device": "cpu", "cache.enabled": False, "prune.stages": 1, "calibration.samples": 64}
    outcome = prune(module, COLOURED, COLOURED_TEST, sparsity=0.5, settings=options)
    assert outcome.stages[0].predicted_change is not None
    assert not any(choice.startswith("memory layout") for choice in outcome.choices)


def test_a_network_that_cannot_run_is_not_for_the_trial_to_judge() -> None:
    assert find_obstacle(Reads(flat), Inputs.of(X[:, :2])) == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"prune.method": "obs", "prune.repair": "least-squares", "prune.refine_by": "features", "prune.refine": "last"},
        {"prune.method": "obs_fisher", "prune.refine_by": "gauss-newton", "prune.refine": "last"},
        {"prune.method": "magnitude", "finetune.epochs": 1, "data.batch_size": 32},
    ],
    ids=lambda settings: settings["prune.method"],
)
@pytest.mark.parametrize("module", [Reads(viewed), ViewsInput()], ids=["activations", "inputs"])
def test_a_network_with_views_is_pruned_and_it_is_said(module: nn.Module, settings: dict[str, Any]) -> None:
    trained(module, COLOURED, cross_entropy, steps=20)
    options = {"device": "cpu", "cache.enabled": False, "prune.refine_steps": 4, "calibration.samples": 64}
    outcome = prune(module, COLOURED, COLOURED_TEST, sparsity=0.5, settings={**options, **settings})
    assert outcome.sparsity.obtained == pytest.approx(0.5, abs=0.01)
    said = [choice for choice in outcome.choices if choice.startswith("memory layout")]
    assert len(said) == 1
    assert "plain (with channels last, which is faster, the network fails: RuntimeError: view size" in said[0]


def test_score_stays_plain_too() -> None:
    scores = score(Reads(viewed), COLOURED, settings={"device": "cpu", "cache.enabled": False})
    assert any(choice.startswith("memory layout: plain") for choice in scores.choices)


def test_all_passes_of_a_run_have_the_layout_and_what_comes_out_is_plain() -> None:
    seen: list[bool] = []

    def watched(module: nn.Module, y: Tensor) -> Tensor:
        assert isinstance(module, Reads)
        seen.append(module.conv.weight.is_contiguous(memory_format=LAST) and y.is_contiguous(memory_format=LAST))
        return y.flatten(1)

    module = Reads(watched)
    options = {"device": "cpu", "cache.enabled": False, "prune.repair": "none", "prune.refine": "none"}
    outcome = prune(module, COLOURED, COLOURED_TEST, sparsity=0.5, settings=options)
    assert not any(choice.startswith("memory layout") for choice in outcome.choices)
    assert seen[-20:] == [True] * 20
    for one in (outcome.module, module):
        assert all(p.is_contiguous() for p in one.parameters())


def test_a_run_that_fails_leaves_weights_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunetaylor.pipeline.job import Job
    from prunetaylor.pipeline.stages.loop import Stages

    use_memory_format: list[nn.Module] = []

    def broken(self: Stages, left: object) -> None:
        assert isinstance(self.job, Job)
        use_memory_format.append(self.job.network.module)
        assert not self.job.network.module.conv.weight.is_contiguous()
        raise KeyboardInterrupt

    monkeypatch.setattr(Stages, "run", broken)
    with pytest.raises(KeyboardInterrupt):
        prune(Reads(flat), COLOURED, COLOURED_TEST, settings={"device": "cpu"})
    assert all(p.is_contiguous() for p in use_memory_format[0].parameters())


def test_inputs_lie_as_weights_do() -> None:
    module = Reads(flat)
    assert match_memory_format(module, X) is X
    with channels_last(module):
        assert match_memory_format(module, X).is_contiguous(memory_format=LAST)
        assert match_memory_format(module, X[0]).is_contiguous()
    assert match_memory_format(nn.Linear(6, 6), X) is X
