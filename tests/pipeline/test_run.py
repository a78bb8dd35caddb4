"""Whole runs from Python, on tiny networks: what is promised of every outcome, and what each setting changes."""

from __future__ import annotations

import copy
import time
from dataclasses import astuple
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from prunetaylor.core import registry
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Silent
from prunetaylor.data.load import from_python
from prunetaylor.data.samples import draw
from prunetaylor.pipeline.job import make_job
from prunetaylor.pipeline.run import run
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pruning.criteria.exact_obs import ExactOBS
from prunetaylor.pruning.selection.trust_region import REJECT, SMALLEST
from prunetaylor.taylor.model import Prediction, TaylorModel
from support.networks import Attention, ConvNet, Unreached, mlp, trained
from support.runs import TEST, TRAIN, assert_truthful, quick, same_bits, top1
from support.samples import Recording, curve, fetch, quadrants


def half_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


@pytest.fixture(scope="module")
def smooth() -> nn.Module:
    torch.manual_seed(0)
    return trained(mlp(), curve(400, 1), half_square, 300)


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_buffer_of_infinities_is_no_hindrance(conv: nn.Module, epochs: int) -> None:
    class Masked(nn.Module):
        """As attention adds it to its scores."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(conv)
            self.register_buffer("mask", torch.tensor([0.0] * 4 + [float("-inf")]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + self.mask[:4]

    network = Masked().eval()
    outcome = quick(network, prune__method="obs", finetune__epochs=epochs)
    assert_truthful(outcome, network, 0.5)
    assert torch.equal(outcome.module.mask, network.mask)


@pytest.mark.parametrize(
    ("method", "sparsity"),
    [*(("magnitude", sparsity) for sparsity in (0, 1e-6, 0.3, 0.5, 2 / 3, 0.9, 0.999)), ("obs", 0.5), ("obs", 0.999)],
)
def test_exactly_so_many_weights_go_and_the_network_given_stays(conv: nn.Module, method: str, sparsity: float) -> None:
    before, was_training = copy.deepcopy(conv.state_dict()), conv.training
    outcome = quick(conv, sparsity=sparsity, prune__method=method)
    assert_truthful(outcome, conv, sparsity)
    assert outcome.module is not conv
    assert conv.training == was_training
    assert all(p.grad is None and p.requires_grad for p in conv.parameters())
    for name, tensor in conv.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert outcome.dense.metrics["top1"] == pytest.approx(top1(conv, TEST))
    assert outcome.pruned.metrics["top1"] == pytest.approx(top1(outcome.module, TEST))
    assert outcome.drop.value == pytest.approx(outcome.dense.metrics["top1"] - outcome.pruned.metrics["top1"])
    assert outcome.drop.low <= outcome.drop.value <= outcome.drop.high
    if sparsity == 0:
        assert outcome.stages == []
        for name, tensor in outcome.module.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_seconds_add_up(conv: nn.Module) -> None:
    start = time.perf_counter()
    seconds = quick(conv, sparsity=0.5, finetune__epochs=1).seconds
    taken = time.perf_counter() - start
    assert set(seconds) == {"total", "measure", "prune", "fine-tune"}
    assert 0 < sum(value for phase, value in seconds.items() if phase != "total") <= seconds["total"] <= taken


def test_taylor_beats_magnitude_and_magnitude_random(conv: nn.Module) -> None:
    how = {"sparsity": 0.7, "prune__stages": "auto"}
    methods = ("obs", "obd", "magnitude", "random")
    loss = {m: quick(conv, prune__method=m, **how).pruned.metrics["loss"] for m in methods}
    assert loss["obs"] < min(loss["magnitude"], loss["obd"])
    assert max(loss["magnitude"], loss["obd"]) < loss["random"]


def test_regression(smooth: nn.Module) -> None:
    data, test = curve(400, 1), curve(200, 2)
    outcome = quick(smooth, data, test, sparsity=0.5, metric="loss")
    assert_truthful(outcome, smooth, 0.5)
    assert outcome.goal == "min"
    assert (outcome.drop, outcome.unit) == (outcome.loss_rise, "")
    with torch.no_grad():
        expected = float(half_square(outcome.module(test[0]), test[1]))
    assert outcome.pruned.metrics == {"loss": pytest.approx(expected, rel=1e-5)}
    one_output = mlp(outputs=1)
    flat = quick(one_output, (data[0], data[1][:, 0]), sparsity=0.5, metric="loss", test=None)
    assert_truthful(flat, one_output, 0.5)


def test_a_transformer() -> None:
    dense = trained(Attention(), TRAIN, cross_entropy, 80)
    assert top1(dense, TEST) > 80
    outcome = quick(dense, sparsity=0.5)
    assert_truthful(outcome, dense, 0.5)
    attention = {"encoder.self_attn.in_proj_weight", "encoder.self_attn.out_proj"}
    assert {layer.name for layer in outcome.layers} == {
        "embed", "encoder.linear1", "encoder.linear2", "head", *attention
    }  # fmt: skip
    assert [one.name for one in outcome.skipped] == ["place"]
    assert outcome.sparsity.prunable_share > 0.8
    assert outcome.drop.value < 10


def test_a_module_that_never_runs_is_left_alone_and_named(conv: nn.Module) -> None:
    outcome = quick(Unreached(conv), sparsity=0.5)
    assert {one.name: one.why for one in outcome.skipped} == {
        "unreached": "no calibration sample is multiplied by its weight"
    }
    assert "unreached.weight" not in outcome.masks
    alone = quick(conv, sparsity=0.5)
    assert outcome.sparsity.removed == alone.sparsity.removed
    assert outcome.sparsity.prunable_share < alone.sparsity.prunable_share
    for name, mask in alone.masks.items():
        assert torch.equal(outcome.masks[f"used.{name}"], mask)


def test_layers_can_be_kept_and_chosen(conv: nn.Module) -> None:
    kept = quick(conv, sparsity=0.5, prune__exclude=["fc"])
    assert set(kept.masks) == {"conv1.weight", "conv2.weight"}
    assert ("fc", "matched by prune.exclude") in {(one.name, one.why) for one in kept.skipped}
    torch.testing.assert_close(kept.module.fc.weight, conv.fc.weight, rtol=0, atol=0)
    chosen = quick(conv, sparsity=0.5, prune__include=["conv*"])
    same_bits(kept, chosen)


@pytest.mark.parametrize(
    ("labels", "said"), [(True, "cross-entropy with labels"), (False, "no labels"), ("auto", "no labels")]
)
def test_the_error_is_of_the_labels_where_asked(conv: nn.Module, labels: object, said: str) -> None:
    outcome = quick(conv, sparsity=0.5, calibration__labels=labels)
    [choice] = [line for line in outcome.choices if line.startswith("error: ")]
    assert said in choice
    assert not outcome.first_order.kept


def test_a_network_far_from_convergence_is_noticed() -> None:
    torch.manual_seed(0)
    outcome = quick(ConvNet(), sparsity=0.5, calibration__samples=240)
    assert outcome.first_order.gradient_norm > 2 * outcome.first_order.noise_norm
    assert outcome.first_order.share > 0.5
    assert outcome.first_order.kept
    assert any("cross-entropy with labels" in line for line in outcome.choices)
    # The usual methods choose by second-order scores all the same, and say so.
    assert "first-order term: kept; exact_obs chooses without it" in outcome.choices
    fully = quick(ConvNet(), sparsity=0.5, calibration__samples=240, prune__method="obs_kfac")
    assert "first-order term: kept" in fully.choices
    forced = quick(ConvNet(), sparsity=0.5, calibration__labels=False)
    assert not forced.first_order.kept
    assert not forced.first_order.labels
    assert "first-order term: kept; without labels it is zero at the dense weights" in forced.choices


def test_without_labels_the_labels_change_nothing(conv: nn.Module) -> None:
    wrong = (TRAIN[0], (TRAIN[1] + 1) % 4)
    same_bits(*(quick(conv, data, sparsity=0.6, calibration__labels=False) for data in (TRAIN, wrong)))


def test_keeping_the_first_order_term_adds_the_gradient_times_the_move(conv: nn.Module) -> None:
    how = {"sparsity": 0.3, "prune__method": "magnitude", "calibration__labels": True, "calibration__samples": 240}
    keep, drop = (quick(conv, prune__first_order=way, **how) for way in ("keep", "drop"))
    same_bits(keep, drop)
    assert keep.first_order.kept
    assert not drop.first_order.kept
    order = draw(from_python(TRAIN).train, 240, torch.Generator().manual_seed(0))
    held = torch.tensor(order[:48])  # the fifth that is held out, on which both changes are taken
    network = copy.deepcopy(conv)
    cross_entropy(network(TRAIN[0][held]), TRAIN[1][held]).backward()
    after = dict(keep.module.named_parameters())
    expected = sum(float((p.grad * (after[n] - p).detach()).sum()) for n, p in network.named_parameters())
    added = keep.stages[0].predicted_change - drop.stages[0].predicted_change
    assert added == pytest.approx(expected, rel=1e-3)


def test_predicted_is_what_is_measured_where_the_expansion_holds(smooth: nn.Module) -> None:
    for method, repair in (("obs", "auto"), ("magnitude", "none"), ("obd", "none")):
        how = {"prune__method": method, "prune__repair": repair, "calibration__holdout": 0.5}
        outcome = quick(
            smooth, curve(2000, 3), sparsity=0.1, metric="loss", calibration__samples=2000, test=None, **how
        )
        [stage] = outcome.stages
        assert stage.measured_change > 0
        assert stage.gain_ratio == pytest.approx(1, abs=0.2)
        assert stage.gain_ratio == pytest.approx(stage.measured_change / stage.predicted_change)


def test_stages(conv: nn.Module) -> None:
    outcome = quick(conv, sparsity=0.8, prune__stages=3)
    assert [stage.sparsity for stage in outcome.stages] == pytest.approx([1 - 0.2 ** (1 / 3), 1 - 0.2 ** (2 / 3), 0.8])
    assert all(stage.seconds > 0 and stage.gain_ratio is not None for stage in outcome.stages)
    assert_truthful(outcome, conv, 0.8)
    listed = quick(conv, prune__stages=[0.3, 0.6, 0.8])
    assert [stage.sparsity for stage in listed.stages] == [0.3, 0.6, 0.8]


def test_stages_within_a_trust_region(conv: nn.Module) -> None:
    outcome = quick(conv, sparsity=0.8, prune__stages="auto")
    assert_truthful(outcome, conv, 0.8)
    kept = [stage for stage in outcome.stages if stage.accepted]
    levels = [0.0, *(stage.sparsity for stage in kept)]
    assert levels[-1] == 0.8
    assert all(
        1 - after >= (1 - before) * (1 - ExactOBS.max_stage_fraction) * (1 - SMALLEST) - 1e-9
        for before, after in pairwise(levels)
    )
    # Cumulative changes are of all stages together: the first stage's are its own.
    assert kept[0].cumulative_predicted == pytest.approx(kept[0].predicted_change, rel=1e-4)
    assert kept[-1].cumulative_measured > kept[0].cumulative_measured


def test_a_stage_that_fails_is_taken_back_and_tried_with_a_smaller_step(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that promises a hundredth of what it should is found out, and every weight is put back."""
    honest = TaylorModel.predict
    monkeypatch.setattr(
        TaylorModel, "predict", lambda self, d: Prediction(*(0.01 * x for x in astuple(honest(self, d))))
    )
    outcome = quick(conv, sparsity=0.6, prune__stages="auto", prune__method="obs")
    assert_truthful(outcome, conv, 0.6)
    refused = [stage for stage in outcome.stages if not stage.accepted]
    assert refused
    assert refused[0].gain_ratio > REJECT
    after = outcome.stages[outcome.stages.index(refused[0]) + 1]
    assert after.sparsity < refused[0].sparsity
    assert after.damping == pytest.approx(10 * refused[0].damping)
    assert len(quick(conv, sparsity=0.8, prune__stages="auto", prune__method="magnitude").stages) == 1


def test_each_repair_moves_what_it_says(conv: nn.Module) -> None:
    found = {
        way: quick(
            conv,
            sparsity=0.6,
            prune__repair=way,
            prune__refine="none",
            calibration__samples=240,
            calibration__labels=False,
        )
        for way in ("none", "batch-norm", "obs", "least-squares")
    }
    dense = conv.state_dict()
    for name, mask in found["none"].masks.items():
        for way in ("none", "batch-norm"):
            torch.testing.assert_close(found[way].module.state_dict()[name], dense[name] * mask, rtol=0, atol=0)
        for way in ("obs", "least-squares"):
            assert torch.equal(found[way].masks[name], mask)  # one stage: the selection comes first
            moved = found[way].module.state_dict()[name]
            assert not torch.allclose(moved[mask], dense[name][mask], rtol=1e-2)
    # The first layer's inputs are the dense network's: the update and least squares are the same there.
    first = (found[way].module.conv1.weight for way in ("obs", "least-squares"))
    torch.testing.assert_close(*first, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*(found[way].module.fc.weight for way in ("obs", "least-squares")), rtol=1e-2)
    for key in ("bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var"):
        torch.testing.assert_close(found["none"].module.state_dict()[key], dense[key], rtol=0, atol=0)
        assert not torch.allclose(found["batch-norm"].module.state_dict()[key], dense[key])
    change = {way: outcome.stages[0].measured_change for way, outcome in found.items()}
    assert max(change["least-squares"], change["obs"]) < 0.8 * change["none"]
    assert change["batch-norm"] == change["none"]  # measured before the statistics are corrected


def test_a_method_that_moves_weights_itself_takes_no_update(conv: nn.Module) -> None:
    with pytest.raises(UsageError, match="joint "):
        quick(conv, sparsity=0.5, prune__method="joint", prune__repair="obs")


def test_the_same_seed_gives_the_same_bits(conv: nn.Module) -> None:
    how = {"sparsity": 0.7, "prune__stages": 2, "finetune__epochs": 1, "augment": "crop-flip"}
    one = quick(conv, seed=3, **how)
    torch.manual_seed(99)  # nothing may hang on torch's global state
    torch.rand(7)
    before = torch.get_rng_state()
    same_bits(one, quick(conv, seed=3, **how))
    assert torch.equal(torch.get_rng_state(), before)
    other = quick(conv, seed=4, **how)
    assert not torch.equal(one.module.fc.weight, other.module.fc.weight)


def test_the_size_of_batches_matters_no_more_than_rounding(conv: nn.Module) -> None:
    one, other = (quick(conv, sparsity=0.7, prune__stages=2, data__batch_size=size) for size in (7, 240))
    for name, mask in one.masks.items():
        assert torch.equal(other.masks[name], mask)
    for name, tensor in one.module.state_dict().items():
        torch.testing.assert_close(other.module.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert one.stages[-1].predicted_change == pytest.approx(other.stages[-1].predicted_change, rel=1e-3)
    assert one.dense.metrics == pytest.approx(other.dense.metrics)


def reads(conv: nn.Module, **settings: object) -> int:
    """Distinct training samples that a run reads once its job is open."""
    data = Recording(TRAIN)
    config = from_values(
        {"data.workers": 0, "finetune.epochs": 0, **{k.replace("__", "."): v for k, v in settings.items()}}
    ).config
    samples = from_python(data, TEST)
    job = make_job(config, copy.deepcopy(conv), samples, torch.device("cpu"))
    data.seen.clear()
    run(job, Silent())
    return len(set(data.seen))


@pytest.mark.parametrize(
    ("method", "repair"), [*((name, "auto") for name in registry.names(registry.CRITERIA)), ("obs", "batch-norm")]
)
def test_calibration_samples_are_all_that_a_run_sees(conv: nn.Module, method: str, repair: str) -> None:
    how = {"prune__method": method, "prune__repair": repair, "calibration__labels": True, "prune__stages": 2}
    how["prune__refine_steps"] = 6
    assert reads(conv, calibration__samples=30, **how) == 30


def test_resampling_sees_so_many_fresh_ones_at_every_stage(conv: nn.Module) -> None:
    how = {"calibration__samples": 30, "prune__stages": 3}
    assert reads(conv, **how) == 30
    assert 30 < reads(conv, calibration__resample=True, **how) <= 90


def test_what_a_stage_is_held_against_no_stage_was_fitted_to(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where each draws anew, from a set that all of them together use up."""
    draw, fitted, held = Calibration.draw, [], []

    def watched(*args: Any) -> Calibration:
        found = draw(*args)
        for part, into in ((found.fit, fitted), (found.holdout, held)):
            into.append(
                {sample.numpy().tobytes() for sample in fetch(part.batches.split, range(part.batches.samples))[0]}
            )
        return found

    monkeypatch.setattr(Calibration, "draw", watched)
    for samples, drawn in ((120, (96, 24)), (240, (192, 48))):  # a half of the pool, and all of it
        fitted.clear()
        held.clear()
        quick(conv, calibration__samples=samples, calibration__resample=True, prune__stages=4)
        assert [(len(one), len(other)) for one, other in zip(fitted, held, strict=True)] == [drawn] * 4
        assert set.union(*fitted).isdisjoint(set.union(*held))
        assert (len(set.union(*fitted)) > drawn[0]) == (samples == 120)


def test_a_run_from_python_reads_few_samples_more_to_know_the_data_by(conv: nn.Module) -> None:
    data = Recording(TRAIN)
    quick(conv, data, calibration__samples=30)
    assert 30 <= len(set(data.seen)) <= 30 + 17  # the fingerprint's, and the first, which shows shape and type


def test_what_reports_decides_nothing(conv: nn.Module) -> None:
    other = quadrants(50, 7)
    for epochs in (0, 2):
        how = {"sparsity": 0.7, "finetune__epochs": epochs}
        one = quick(conv, TRAIN, TEST, **how)
        same_bits(one, quick(conv, TRAIN, (other[0] * 3, (other[1] + 1) % 4), **how))
    assert [epoch.validation for epoch in one.epochs] == pytest.approx([100, 100], abs=30)


def test_zeros_of_the_checkpoint_count_as_removed_and_stay(conv: nn.Module) -> None:
    sparse = quick(conv, sparsity=0.6)
    again = quick(sparse.module, sparsity=0.3)
    assert again.sparsity.removed == sparse.sparsity.removed
    assert again.stages == []
    assert any("nothing to remove" in line for line in again.choices)
    for a, b in zip(again.module.parameters(), sparse.module.parameters(), strict=True):
        assert torch.equal(a, b)
    further = quick(sparse.module, sparsity=0.8)
    assert further.sparsity.removed == round(0.8 * further.sparsity.prunable)
    for name, mask in further.masks.items():
        assert not bool((mask & ~sparse.masks[name]).any())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("refine_by", ["features", "gauss-newton"])
def test_tensors_that_are_computed_are_left_alone(refine_by: str) -> None:
    """A bias by a parametrization, and weights by a hook that leaves the last pass's, which has a graph."""
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.utils.weight_norm(nn.Linear(16, 16)), nn.Tanh(), nn.Linear(16, 4)
    )
    for layer in (module[1], module[5]):
        parametrize.register_parametrization(layer, "bias", nn.Identity())
    module(TRAIN[0])
    outcome = quick(module, sparsity=0.5, prune__refine="stages", prune__refine_by=refine_by, prune__stages=2)
    assert outcome.sparsity.obtained == 0.5
    why = {s.name: s.why for s in outcome.skipped}
    assert why.keys() == {"3", "3.weight_g", "3.weight_v"}
    assert why["3"].startswith("its weight is computed")
    assert len(outcome.stages) == 2
