"""How far a network can be pruned: what is said is what happens, and the network stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import prunetaylor
from prunetaylor import score
from prunetaylor.core import registry
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import Silent
from prunetaylor.core.results.scores import Scores
from prunetaylor.data.load import from_python
from prunetaylor.pipeline import score as scoring
from prunetaylor.pipeline.checks.settings import check_scoring
from prunetaylor.pipeline.estimates.demand import demand_of
from prunetaylor.pipeline.job import make_job
from prunetaylor.pipeline.score import BY_LAYER, LEVELS, run
from prunetaylor.pruning.criteria.exact_obs import ExactOBS
from prunetaylor.pruning.selection.trust_region import HIGH, LOW
from prunetaylor.report.terminal.scores import verdict
from prunetaylor.taylor import model as taylor_model
from prunetaylor.taylor.curvature import cache
from prunetaylor.taylor.curvature.fisher import FisherRows
from support.networks import ConvNet, mlp, trained
from support.samples import Recording, curve, quadrants

TRAIN = quadrants(240, 1)
CURVE = curve(300, 1)


@pytest.fixture(scope="module")
def conv() -> nn.Module:
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 60)


def quick(model: nn.Module, train: object = TRAIN, **settings: object) -> Scores:
    usual = {"calibration.samples": 120, "data.workers": 0, "device": "cpu"}
    return score(model, train, settings=usual | {key.replace("__", "."): value for key, value in settings.items()})


@pytest.mark.parametrize("method", registry.names(registry.CRITERIA))
def test_what_is_promised_of_every_criterion(conv: nn.Module, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = (0.5, 0.7, 0.9)
    monkeypatch.setattr(scoring, "LEVELS", levels)
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    found = quick(conv, prune__method=method)
    for name, tensor in conv.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert [level.sparsity for level in found.levels] == list(levels)
    assert [level.removed for level in found.levels] == [round(s * found.prunable) for s in levels]
    assert found.held_out == 24
    sizes = [torch.Size(layer.shape).numel() for layer in found.layers]
    for i, level in enumerate(found.levels):
        assert sum(n * x.sparsities[i] for n, x in zip(sizes, found.layers, strict=True)) == pytest.approx(
            level.removed
        )
        assert all((x.predicted_changes[i] is not None) == (level.sparsity in BY_LAYER) for x in found.layers)
        assert 0 <= level.changed_classes <= 1
        if level.gain_ratio is not None:
            assert level.gain_ratio == pytest.approx(level.measured_change / level.predicted_change)
    trusted = [level.trusted for level in found.levels]
    assert trusted == sorted(trusted, reverse=True)
    assert found.trusted_to == max((s for s, t in zip(levels, trusted, strict=True) if t), default=None)


def test_the_network_is_put_back_exactly(conv: nn.Module) -> None:
    samples = from_python(TRAIN, None, None, normalize=None, augment="none")
    config = from_values({"calibration.samples": 60, "data.workers": 0}).config
    job = make_job(config, copy.deepcopy(conv), samples, torch.device("cpu"))
    run(job, Silent())
    for name, tensor in job.network.module.state_dict().items():
        torch.testing.assert_close(tensor, conv.state_dict()[name], rtol=0, atol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in job.network.module.modules())


def test_one_stage_of_a_run_without_repair_costs_what_was_said(conv: nn.Module) -> None:
    """The same samples, the same scores, the same step: nothing but the stage's own measurement."""
    settings = {"prune.method": "magnitude", "prune.stages": 1, "calibration.samples": 120, "data.workers": 0}
    settings |= {"device": "cpu", "finetune.epochs": 0}
    level = score(conv, TRAIN, settings=settings).levels[LEVELS.index(0.7)]
    [stage] = prunetaylor.prune(conv, TRAIN, sparsity=0.7, settings=settings).stages
    assert stage.predicted_change == pytest.approx(level.predicted_change, rel=1e-5)
    assert stage.measured_change == pytest.approx(level.measured_change, rel=1e-4, abs=1e-7)


@pytest.fixture(scope="module")
def smooth() -> nn.Module:
    torch.manual_seed(0)
    return trained(mlp(), CURVE, lambda z, y: 0.5 * (z - y).square().sum(1).mean(), 200)


def test_what_makes_up_for_a_removal_makes_it_cheaper(smooth: nn.Module) -> None:
    both = [quick(smooth, CURVE, metric="loss", prune__method="obs", prune__repair=r) for r in ("auto", "none")]
    for one, other in list(zip(*(found.levels for found in both), strict=True))[:6]:
        assert one.predicted_change < other.predicted_change
        assert one.measured_change < other.measured_change


def test_the_samples_are_those_that_prune_would_draw(conv: nn.Module) -> None:
    first, second = Recording(TRAIN), Recording(TRAIN)
    settings = {"calibration.samples": 50, "data.workers": 0, "device": "cpu", "seed": 3, "prune.method": "magnitude"}
    score(conv, first, settings=settings)
    test = quadrants(10, 5)
    prunetaylor.prune(conv, second, test, settings=settings | {"finetune.epochs": 0})
    drawn = [seen for seen in first.seen if first.seen.count(seen) > 0][-50:]
    assert set(drawn) <= set(second.seen)
    assert len(set(drawn)) == 50


def test_the_parts_of_single_layers_add_up(smooth: nn.Module) -> None:
    """Not exactly, as layers interact; but they are of the same size, in the same units."""
    found = quick(smooth, CURVE, metric="loss")
    assert all(level.changed_classes is None for level in found.levels)
    i = LEVELS.index(0.5)
    parts = sum(layer.predicted_changes[i] for layer in found.layers)
    assert 0.3 < parts / found.levels[i].predicted_change < 3


def test_levels_below_what_is_zero_already_are_left_out(conv: nn.Module) -> None:
    pruned = prunetaylor.prune(
        conv, TRAIN, sparsity=0.6, settings={"prune.method": "magnitude", "device": "cpu", "finetune.epochs": 0}
    )
    found = quick(pruned.module)
    assert [level.sparsity for level in found.levels] == [0.7, 0.8, 0.9, 0.95, 0.98]


@pytest.mark.parametrize(
    ("method", "repair"), [("joint", "none"), ("obs_fisher", "none"), ("obs_fisher", "least-squares")]
)
def test_a_solver_s_step_is_the_one_that_it_takes(
    conv: nn.Module, method: str, repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one stage of a run removes, whatever makes up for it, and no ranking of single weights."""
    monkeypatch.setattr(scoring, "LEVELS", (0.5, 0.7))
    settings = {"prune.method": method, "prune.repair": repair, "prune.stages": 1, "calibration.samples": 120}
    settings |= {"data.workers": 0, "device": "cpu", "finetune.epochs": 0}
    found = score(conv, TRAIN, settings=settings)
    outcome = prunetaylor.prune(conv, TRAIN, sparsity=0.7, settings=settings)
    assert [level.sparsity for level in found.levels] == [0.5, 0.7]
    assert [one.sparsities[1] for one in found.layers] == pytest.approx([one.sparsity for one in outcome.layers])
    if repair == "none":
        assert outcome.stages[0].predicted_change == pytest.approx(found.levels[1].predicted_change, rel=1e-4)


def test_far_from_a_minimum_the_step_is_the_one_that_prune_takes() -> None:
    torch.manual_seed(0)
    found = quick(ConvNet(), calibration__samples=240)
    assert found.repair == "none"


def test_every_sparsity_is_tried_whatever_was_asked_for(conv: nn.Module) -> None:
    pruned = prunetaylor.prune(
        conv, TRAIN, sparsity=0.6, settings={"prune.method": "magnitude", "device": "cpu", "finetune.epochs": 0}
    )
    found = quick(pruned.module, prune__sparsity=0.3, prune__schedule="cubic", finetune__epochs=1)
    assert found.levels
    assert found.repair == "least-squares"


def test_no_training_follows_a_step_that_is_scored(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    score, said = ExactOBS.score, []
    monkeypatch.setattr(
        ExactOBS, "score", lambda self, of: said.append(of.model.trained_between_stages) or score(self, of)
    )
    quick(conv, prune__method="exact_obs", prune__schedule="cubic", finetune__epochs=1)
    assert said == [False]


def test_a_solver_fits_once_for_all_sparsities(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LEVELS", (0.5, 0.7))
    demand_of("joint")  # the memory plan fits small networks of its own
    fits = []
    monkeypatch.setattr(taylor_model, "FisherRows", lambda *args, **more: fits.append(1) or FisherRows(*args, **more))
    assert len(quick(conv, prune__method="joint").levels) == 2
    assert len(fits) == 1


def test_settings_of_what_it_does_not_do_are_named(conv: nn.Module) -> None:
    given = {"prune__stages": 7, "prune__refine": "last", "prune__refine_steps": 9, "prune__repair": "batch-norm"}
    found = quick(conv, **given)
    [line] = check_scoring(from_values({key.replace("__", "."): value for key, value in given.items()}).config)
    assert line == (
        "no effect: prune.stages, prune.refine, prune.refine_steps, because each row is one step from the dense weights"
    )
    assert line in found.choices
    assert found.repair == "batch-norm"
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    assert "before the repair" not in verdict(quick(plain, prune__repair="batch-norm"))
    assert "with the kept weights adjusted" in verdict(quick(plain, prune__repair="obs"))


def test_the_fit_serves_scoring_again_and_pruning(
    conv: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(cache, "READ_RATE", 1e30)
    kept = {"cache.dir": str(tmp_path), "calibration.samples": 120, "data.workers": 0, "device": "cpu"}
    first, second = (score(conv, TRAIN, settings=kept) for _ in range(2))
    taken = "layer Grams of stage 1 taken from the cache"
    assert not any(taken in choice for choice in first.choices)
    assert any(taken in choice for choice in second.choices)
    assert second.levels == first.levels
    assert second.layers == first.layers
    for method in ("obs", "obs_kfac"):
        settings = kept | {"prune.stages": 1, "finetune.epochs": 0, "prune.method": method}
        outcome = prunetaylor.prune(conv, TRAIN, sparsity=0.9, settings=settings)
        assert any(taken in choice for choice in outcome.choices)


def test_a_gain_that_comes_as_predicted_is_trusted() -> None:
    """Far from a minimum a step may be predicted to lower the error: a ratio of about one, of negative numbers."""
    torch.manual_seed(0)
    levels = quick(trained(ConvNet(), TRAIN, cross_entropy, 12), prune__method="obs_fisher").levels
    assert levels[0].predicted_change < 0
    assert LOW <= levels[0].gain_ratio <= HIGH
    assert levels[0].trusted
    for level in levels:
        assert not level.trusted or LOW <= level.gain_ratio <= HIGH
