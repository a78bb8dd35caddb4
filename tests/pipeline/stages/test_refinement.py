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
    assert any(line.startswith("refinement: ") and "after each stage" in line for line in with_it.choices)
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


def line(outcome: PruneResult, what: str) -> str:
    [found] = [choice for choice in outcome.choices if choice.startswith(f"{what}: ")]
    return found


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
    assert line(refined, "repair") == "repair: skipped (nothing is removed)"
    assert line(refined, "refinement").endswith("by Gauss-Newton (as asked)")


def test_sparsity_zero_refines_all_weights(conv: nn.Module) -> None:
    far = trained(ConvNet(), TRAIN, cross_entropy, 12)
    refined = quick(far, sparsity=0.0, prune__refine="last", calibration__labels=True)
    assert_truthful(refined, far, 0.0)
    assert refined.pruned.metrics["loss"] < refined.dense.metrics["loss"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "off (nothing is removed)"),
        ({"prune__refine": "none"}, "off (as asked)"),
        ({"prune__refine": "last", "calibration__labels": False}, "calibration.labels=true uses them)"),
        ({"prune__refine": "last", "prune__refine_by": "features"}, "gauss-newton uses labels"),
        (
            {"prune__refine": "last", "prune__schedule": "cubic", "finetune__epochs": 1},
            "off (nothing is removed, and fine-tuning follows)",
        ),
    ],
)
@pytest.mark.parametrize("repair", ["auto", "least-squares", "batch-norm", "none"])
def test_where_nothing_is_removed_what_has_no_effect_is_named(
    sparse: PruneResult, how: dict[str, object], said: str, repair: str
) -> None:
    outcome = quick(sparse.module, sparsity=0.8, prune__repair=repair, **{"calibration__labels": True, **how})
    assert outcome.stages == []
    assert said in line(outcome, "refinement")
    skipped = "none (as asked)" if repair == "none" else "skipped (nothing is removed)"
    assert line(outcome, "repair") == f"repair: {skipped}"
    if not outcome.epochs:
        for name, tensor in sparse.module.state_dict().items():
            assert torch.equal(outcome.module.state_dict()[name], tensor)


def test_without_labels_there_is_nothing_to_refine_towards(sparse: PruneResult) -> None:
    outcome = quick(sparse.module, TRAIN[0], sparsity=0.8, prune__refine="last")
    assert line(outcome, "refinement").endswith("only labels could improve the dense network)")


def test_repair_of_batch_norms_is_named_where_there_are_none(conv: nn.Module) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    how = {"sparsity": 0.3, "prune__method": "magnitude", "prune__repair": "batch-norm"}
    assert line(quick(plain, **how), "repair").startswith("repair: none (batch-norm")
    assert line(quick(conv, **how), "repair") == "repair: batch norm (as asked)"


def test_refinement_needs_samples() -> None:
    config = from_values({"data.source": "none", "prune.refine": "last", "finetune.epochs": 0}).config
    with pytest.raises(UsageError, match=r"prune\.refine=last needs samples\n.*--data"):
        make_job(config, ConvNet(), None, torch.device("cpu"))
