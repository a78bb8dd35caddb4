"""When a run refines all kept weights at once, how, and what that gains."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.pipeline.job import make_job
from support.networks import ConvNet, trained
from support.runs import TRAIN, assert_truthful, quick, same_bits


def test_far_from_convergence_refinement_takes_the_place_of_least_squares(conv: nn.Module) -> None:
    torch.manual_seed(0)
    far = trained(ConvNet(), TRAIN, cross_entropy, 12)
    how = {"sparsity": 0.8, "calibration__samples": 200, "calibration__labels": True}
    with_it = quick(far, **how)
    assert with_it.first_order.kept
    assert (decided(with_it, "prune.refine"), decided(with_it, "prune.repair")) == ("stages", "none")
    assert_truthful(with_it, far, 0.8)
    without = quick(far, prune__refine="none", prune__repair="least-squares", **how)
    assert with_it.pruned.metrics["loss"] < without.pruned.metrics["loss"]


@pytest.mark.parametrize(
    ("method", "by", "steps"),
    [("magnitude", "gauss-newton", 6), ("obs", "features", 100)],
)
def test_refinement_after_the_last_stage_or_each_lowers_the_error(
    conv: nn.Module, method: str, by: str, steps: int
) -> None:
    how = {"sparsity": 0.85, "prune__method": method, "prune__stages": 2, "prune__refine_by": by}
    how |= {"prune__refine_steps": steps, "calibration__samples": 240, "calibration__labels": False}
    loss = {}
    for when in ("none", "last", "stages"):
        outcome = quick(conv, prune__refine=when, **how)
        assert_truthful(outcome, conv, 0.85)
        loss[when] = outcome.pruned.metrics["loss"]
    assert max(loss["last"], loss["stages"]) < loss["none"]


def test_refinement_without_gain_is_skipped_unless_requested(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"sparsity": 0.3, "calibration__labels": False}
    refined = quick(conv, **how)
    monkeypatch.setattr("prunetaylor.pipeline.stages.refinement.NEGLIGIBLE", 1.0)
    left_out, asked = quick(conv, **how), quick(conv, prune__refine="last", **how)
    same_bits(left_out, quick(conv, prune__refine="none", **how))
    same_bits(asked, refined)


@pytest.fixture(scope="module")
def sparse(conv: nn.Module) -> PruneResult:
    """Pruned by magnitude alone: with much to make up for."""
    return quick(conv, sparsity=0.8, prune__method="magnitude", prune__refine="none")


def decided(outcome: PruneResult, key: str) -> object:
    [value] = [choice.value for choice in outcome.plan if choice.key == key]
    return value


@pytest.mark.parametrize(("when", "sparsity"), [("last", 0.8), ("stages", 0.3)])
def test_with_nothing_to_remove_requested_refinement_uses_labels(
    sparse: PruneResult, when: str, sparsity: float
) -> None:
    how = {"prune__refine": when, "prune__repair": "least-squares", "calibration__labels": True}
    refined = quick(sparse.module, sparsity=sparsity, prune__method="magnitude", **how)
    assert refined.pruned.metrics["loss"] < 0.5 * sparse.pruned.metrics["loss"]
    assert refined.sparsity.removed == sparse.sparsity.removed
    for name, mask in sparse.masks.items():
        assert torch.equal(refined.masks[name], mask)
    [stage] = refined.stages
    assert stage.sparsity == sparse.sparsity.obtained
    assert (stage.predicted_change, stage.measured_change) == (None, None)
    assert stage.metric is not None
    assert stage.seconds > 0
    assert (decided(refined, "prune.refine"), decided(refined, "prune.refine_by")) == (when, "gauss-newton")


def test_sparsity_zero_refines_all_weights(conv: nn.Module) -> None:
    far = trained(ConvNet(), TRAIN, cross_entropy, 12)
    refined = quick(far, sparsity=0.0, prune__refine="last", calibration__labels=True)
    assert_truthful(refined, far, 0.0)
    assert refined.pruned.metrics["loss"] < refined.dense.metrics["loss"]


def test_where_nothing_is_removed_the_network_stays_as_it_is(sparse: PruneResult) -> None:
    how = {"prune__repair": "least-squares", "prune__refine": "last", "calibration__labels": False}
    outcome = quick(sparse.module, sparsity=0.8, **how)
    assert outcome.stages == []
    assert decided(outcome, "prune.refine") == "none"
    for name, tensor in sparse.module.state_dict().items():
        assert torch.equal(outcome.module.state_dict()[name], tensor)


def test_there_is_no_repair_of_batch_norms_without_any(conv: nn.Module) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    how = {"sparsity": 0.3, "prune__method": "magnitude", "prune__repair": "batch-norm"}
    assert decided(quick(plain, **how), "prune.repair") == "none"
    assert decided(quick(conv, **how), "prune.repair") == "batch-norm"


def test_refinement_needs_samples() -> None:
    config = from_values({"data.source": "none", "prune.refine": "last", "finetune.epochs": 0}).config
    with pytest.raises(UsageError, match=r"prune\.refine=last needs samples\n.*--data"):
        make_job(config, ConvNet(), None, torch.device("cpu"))
