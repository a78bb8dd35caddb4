"""Stages that turn out badly: taken back, smaller and more damped, and never without an end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.layer import Layer
from prunetaylor.network.state import snapshot
from prunetaylor.pipeline.stages import step
from prunetaylor.pipeline.stages.step import change_since_dense, measure_change, run_step
from prunetaylor.pruning.selection.schedule import Fixed, StageChange
from prunetaylor.pruning.selection.trust_region import RAISES, STAGES, TrustRegion
from prunetaylor.taylor import model
from prunetaylor.taylor.curvature.gram import Moments
from support.networks import ConvNet, trained
from support.runs import TRAIN, assert_truthful, quick
from support.stages import prepared, run_all


@pytest.fixture(scope="module")
def conv() -> nn.Module:
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 60)


def unconverged() -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A network of random weights, with labels that it gives itself but for a tenth: its gradient leads far away."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip
    train, test = torch.randn(60, 2, 8, 8), torch.randn(40, 2, 8, 8)
    module.train()(train[:8])
    module.eval()
    with torch.no_grad():
        said = [module(x).argmax(1) for x in (train, test)]
    wrong = [torch.where(torch.rand(len(y)) < 0.1, torch.randint(4, (len(y),)), y) for y in said]
    return module, (train, wrong[0]), (test, wrong[1])


def test_a_solver_s_stage_that_made_things_worse_is_taken_back() -> None:
    module, train, test = unconverged()
    outcome = quick(module, train, test, sparsity=0.8, prune__method="obs_fisher", prune__stages="auto")
    assert_truthful(outcome, module, 0.8)
    assert any(not stage.accepted for stage in outcome.stages)
    assert outcome.pruned.metrics["loss"] < 3 * outcome.dense.metrics["loss"]


def test_noise_in_the_labels_moves_no_weight_far() -> None:
    """Newton's step meets the noise of the few samples that it is fitted to, and others see none of it."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(600, n, generator=generator) for n in (60, 8))
    module = nn.Sequential(nn.Linear(60, 8))
    y = module(x).detach() + noise
    how = {"calibration__labels": True, "prune__first_order": "keep", "calibration__samples": 200, "metric": "loss"}
    outcome = quick(
        module,
        (x[:300], y[:300]),
        (x[300:], y[300:]),
        sparsity=0.02,
        prune__method="obs_fisher",
        prune__refine="none",
        **how,
    )
    assert_truthful(outcome, module, 0.02)
    assert outcome.pruned.metrics["loss"] < 1.02 * outcome.dense.metrics["loss"]


def test_where_removal_is_predicted_to_gain_and_does_not_there_is_an_end(conv: nn.Module) -> None:
    """The first-order term of a converged network, kept against all reason, on samples too few to see it is none."""
    few = (TRAIN[0][:6], TRAIN[1][:6])
    how = {"calibration__labels": True, "prune__first_order": "keep", "prune__stages": "auto"}
    outcome = quick(conv, few, sparsity=0.8, **how)
    assert_truthful(outcome, conv, 0.8)
    assert len(outcome.stages) < 40 + RAISES


class Cliff(nn.Module):
    """Outputs that are in range only while no weight is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        gone = (self.inner.weight == 0).float().mean()
        return self.inner(x.flatten(1)) + torch.where(gone > self.most, torch.inf, 0.0)

    most = 0.0


def test_outputs_out_of_range_are_a_stage_taken_back() -> None:
    torch.manual_seed(0)
    module = Cliff()
    module.most = 0.2
    with pytest.raises(NumericsError, match=r"ruined(.|\n)*least-squares"):
        quick(module, sparsity=0.5, prune__stages="auto", prune__repair="none")
    module.most = 0.5
    outcome = quick(module, sparsity=0.5, prune__stages="auto", prune__repair="none")
    assert all(stage.measured_change is not None for stage in outcome.stages)


@pytest.mark.parametrize("method", ["obs", "exact_obs", "obs_kfac"])
def test_without_an_intercept_a_constant_input_s_weights_are_what_they_add(method: str) -> None:
    module = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.1, 0.2, 1.0], [0.3, -0.2, -1.0]]))
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 1
    data = x, module(x).argmax(1).detach()
    outcome = quick(module, data, data, sparsity=1 / 3, prune__method=method, calibration__labels=False)
    assert outcome.masks["weight"][:, 2].all()
    assert not any("free to remove" in line for line in outcome.choices)
    module = nn.Sequential(nn.Linear(3, 2))
    outcome = quick(module, data, data, sparsity=1 / 3, prune__method=method, calibration__labels=False)
    assert not outcome.masks["0.weight"][:, 2].any()  # the bias adds it
    assert any("1 of 3 inputs never change" in line for line in outcome.choices)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("obd", "zero Gauss-Newton diagonal"),
        ("taylor1", "zero gradient"),
        ("obs_fisher", "the gradient is zero"),
        ("joint", "the gradient is zero"),
        ("obs", None),
    ],
)
def test_inputs_that_say_nothing_are_named_whatever_chooses(method: str, what: str | None) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 3))
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0
    data = x, torch.arange(120) % 3
    said = f"0.weight: {what} on all samples for 6 of its 24 weights, whose weights look free to remove"
    if what is None:
        said = (
            "0: 1 of 4 inputs never change on the calibration samples (dead units?); their weights look free to remove"
        )
    assert quick(module, data, data, sparsity=0.3, prune__method=method).choices.count(said) == 1


def test_what_is_left_of_nearly_nothing_is_said() -> None:
    """A stage is called by what is gone, and layers of which nothing is left by their names."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU(), nn.Linear(3, 4))
    outcome = quick(module, sparsity=0.9999, prune__method="magnitude", calibration__labels=False)
    assert [stage.sparsity for stage in outcome.stages] == [119 / 120]
    [empty] = [layer.name for layer in outcome.layers if layer.removed == torch.Size(layer.shape).numel()]
    assert f"{empty}: no weight of it is left" in outcome.choices
    kept = quick(module, sparsity=0.5, prune__method="magnitude", calibration__labels=False)
    assert [stage.sparsity for stage in kept.stages] == [0.5]
    assert not any("no weight of it" in line for line in kept.choices)


def test_the_first_stage_s_change_is_that_since_the_dense_network(conv: nn.Module) -> None:
    stages, since = prepared(conv, prune__repair="least-squares", prune__method="exact_obs"), []
    for sparsity in (0.4, 0.6):
        stages.prune_to(sparsity)
        change = change_since_dense(stages.setup, stages.state, stages.sampler.calibration, 0.01)
        since.append((change.predicted, change.measured))
    first, second = stages.state.history
    assert (first.predicted_change, first.measured_change) == (first.cumulative_predicted, first.cumulative_measured)
    assert (first.cumulative_predicted, first.cumulative_measured) == pytest.approx(since[0], rel=1e-4)
    assert (second.cumulative_predicted, second.cumulative_measured) == pytest.approx(since[1], rel=1e-4)
    assert second.cumulative_measured != pytest.approx(second.measured_change, rel=1e-2)


class Refusing(Fixed):
    """Takes every stage back from the second on."""

    def update(self, change: StageChange) -> bool:
        return change.start == 0


def test_a_stage_taken_back_leaves_nothing_behind(conv: nn.Module) -> None:
    """Neither in the statistics of batch norms, which least squares moves, nor in the masks and the histogram."""
    how = {"prune__repair": "least-squares", "prune__method": "exact_obs"}
    stages = prepared(conv, control=Refusing([0.4, 0.7], 0.01), prune__sparsity=0.7, **how)
    state = stages.state
    stages.run_stage()
    before, masks, histogram = snapshot(stages.job.network.module), state.masks, state.histogram
    assert histogram is not None
    outcome = run_step(stages.setup, state, stages.sampler.calibration, lambda: None)
    moved = stages.job.network.module.state_dict()
    assert not torch.equal(moved["bn1.running_mean"], before["bn1.running_mean"])
    assert outcome.removed > 0
    stages.run_stage()
    assert [stage.accepted for stage in state.history] == [True, False]
    assert state.masks is masks
    assert state.histogram is histogram
    for name, tensor in stages.job.network.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Asking(TrustRegion):
    """Remembers what was predicted for the sparsity that it proposed, and what was known when it was judged."""

    def propose(self, now: float, change: Callable[[float], float]) -> float:
        target = super().propose(now, change)
        self.asked = change(target)
        return target

    def update(self, change: StageChange) -> bool:
        self.predictable = change.predictable
        return super().update(change)


def test_a_stage_is_as_long_as_what_repair_left_of_the_last_one_allows(conv: nn.Module) -> None:
    control = Asking(0.9, 2.0, 0.01, 0.35)
    how = {"prune__repair": "least-squares", "prune__method": "exact_obs", "prune__sparsity": 0.9}
    stages = prepared(conv, control=control, **how)
    ratios = []
    while not stages.finished:
        ratios.append(stages.state.repair_ratio)
        unrepaired = stages.run_stage().selection.unrepaired
        assert unrepaired is not None
        if ratios[-1] is None:
            assert control.asked == 0.0  # nobody knows yet: as far as its reach
        else:
            assert control.asked / unrepaired == pytest.approx(ratios[-1])
    assert ratios[0] is None
    assert len(ratios) > 1
    assert all(0 < ratio < 1 for ratio in ratios[1:])


@pytest.mark.parametrize(
    ("repair", "first", "to"), [("none", 0.05, 0.2), ("least-squares", 0.35, 0.6), ("obs", 0.35, 0.6)]
)
def test_the_first_stage_goes_as_far_as_its_reach_where_it_is_repaired(
    repair: str, first: float, to: float, conv: nn.Module
) -> None:
    how = {"prune__sparsity": to, "prune__method": "obs", "prune__repair": repair}
    state = run_all(prepared(conv, control=TrustRegion(to, 1e-6, 0.01, 0.35), **how)).state
    taken_back = [stage for stage in state.history if not stage.accepted]
    if repair == "none":
        assert state.history[0].sparsity <= first
    else:  # and is taken back where that turns out to be far more than the radius
        assert state.history[0].sparsity == pytest.approx(first, abs=0.01)
        assert taken_back[0] == state.history[0]
        assert state.history[1].sparsity < first / 2
    assert state.removed / state.network.prunable == pytest.approx(to, abs=0.01)


@pytest.mark.parametrize("method", ["obd", "magnitude", "obs"])
def test_what_repair_by_obs_solves_is_fitted_before_anything_is_removed(
    conv: nn.Module, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, gone = model.layer_moments, []

    def watched(module: nn.Module, layers: Sequence[Layer], *how: Any) -> dict[str, Moments]:
        gone.append(sum(int((layer.weight == 0).sum()) for layer in layers))
        return fit(module, layers, *how)

    monkeypatch.setattr(model, "layer_moments", watched)
    how = {"prune__method": method, "prune__repair": "obs", "prune__refine": "none", "cache__enabled": False}
    outcome = quick(conv, sparsity=0.7, prune__stages=[0.4, 0.7], **how)
    assert gone == [0, round(0.4 * outcome.sparsity.prunable)]


@pytest.mark.parametrize(
    ("method", "repair", "predictable"),
    [("obd", "none", True), ("obd", "least-squares", False), ("obs_fisher", "none", False)],
)
def test_where_weights_move_what_a_stage_changes_is_a_guess_beforehand(
    conv: nn.Module, method: str, repair: str, predictable: bool
) -> None:
    control = Asking(0.3, 2.0, 0.01, 0.35)
    prepared(conv, control=control, prune__sparsity=0.3, prune__method=method, prune__repair=repair).run_stage()
    assert control.predictable == predictable


@pytest.mark.parametrize(
    ("stages", "reached"),
    [([0.12, 0.14, 0.16, 0.5], [0.12, 0.2, 0.3, 0.5]), ("auto", [0.1, 0.2, 0.3, 0.4, 0.5])],
)
def test_a_stage_reports_what_it_removed_if_more_than_proposed(
    stages: object, reached: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrustRegion, "propose", lambda self, now, change: min(self.target, now + 0.02))
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    outcome = quick(nn.Linear(5, 2), (x, x[:, :2]), (x, x[:, :2]), metric="loss", prune__stages=stages)
    assert [stage.sparsity for stage in outcome.stages] == reached


@pytest.mark.parametrize("samples", [4, 120])
def test_few_held_out_samples_are_said_and_of_one_all_may_be_chance(conv: nn.Module, samples: int) -> None:
    few = (TRAIN[0][:samples], TRAIN[1][:samples])
    outcome = quick(conv, few, sparsity=0.5, prune__method="magnitude")
    said = [choice for choice in outcome.choices if choice.startswith("only ") and "held-out" in choice]
    [stage] = outcome.stages
    if samples == 4:
        assert said == ["only 1 held-out samples: their measurements are rough; raise calibration.samples"]
        assert stage.noise == abs(stage.measured_change or 0) > 0
    else:
        assert said == []


def test_one_weight_stays_at_any_sparsity(conv: nn.Module) -> None:
    prunable = quick(conv, sparsity=0.0, prune__method="magnitude").sparsity.prunable
    asked = 1 - 0.1 / prunable
    for method in ("magnitude", "obs"):
        outcome = quick(conv, sparsity=asked, prune__method=method)
        assert outcome.sparsity.removed == prunable - 1


@pytest.mark.parametrize(("method", "repair"), [("magnitude", "none"), ("obs", "none"), ("exact_obs", "least-squares")])
def test_no_stage_is_tried_again_with_the_same_numbers(
    method: str, repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that no model predicts, whose every stage costs more than was thought."""
    torch.manual_seed(0)
    monkeypatch.setattr(step, "measure_change", lambda *a: (measure_change(*a)[0] + 50.0, 0.0))
    how = {"prune__stages": "auto", "prune__method": method, "prune__repair": repair, "prune__refine": "none"}
    outcome = quick(nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 4)), sparsity=0.8, **how)
    matters = method != "magnitude"
    tried, removed = [], 0.0
    for stage in outcome.stages:
        tried.append((removed, stage.sparsity, stage.damping if matters else None))
        removed = stage.sparsity if stage.accepted else removed
    assert len(set(tried)) == len(tried)
    assert len(tried) <= STAGES + 1


@pytest.mark.parametrize("stages", ["auto", 1])
def test_a_stage_whose_error_explodes_is_taken_back(
    conv: nn.Module, stages: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried anew with more damping where its size is settled; an error, and no network, where nothing helps."""
    calls = iter([True])
    monkeypatch.setattr(step, "measure_change", lambda *a: (1e9, 0.0) if next(calls, False) else measure_change(*a))
    first, *others = quick(conv, sparsity=0.5, prune__stages=stages).stages
    assert not first.accepted
    assert others[-1].accepted
    assert others[-1].sparsity == 0.5
    if stages != "auto":
        assert [stage.damping for stage in (first, *others)][:2] == pytest.approx([0.01, 0.1])
    monkeypatch.setattr(step, "measure_change", lambda *a: (1e9, 0.0))
    with pytest.raises(NumericsError, match="ruined"):
        quick(conv, sparsity=0.5, prune__stages=stages)
