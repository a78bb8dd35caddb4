"""When a run refines all kept weights at once, how, and what that gains."""

from __future__ import annotations

import pytest
import torch
from runs import TRAIN, assert_truthful, quick, same_bits
from torch import nn
from torch.nn.functional import cross_entropy
from toys import ConvNet, trained

from prunetaylor.measure.cost import flops


def test_far_from_convergence_refinement_takes_the_place_of_least_squares(conv: nn.Module) -> None:
    torch.manual_seed(0)
    far = trained(ConvNet(), TRAIN, cross_entropy, 12)
    how = {"sparsity": 0.8, "calibration__samples": 200, "calibration__labels": True}
    with_it = quick(far, **how)
    assert with_it.first_order.kept
    assert any(line.startswith("refinement: after each stage") for line in with_it.choices)
    assert_truthful(with_it, far, 0.8)
    without = quick(far, prune__refine="none", prune__repair="least-squares", **how)
    assert with_it.pruned.metrics["loss"] < without.pruned.metrics["loss"]


@pytest.mark.parametrize(
    ("method", "by", "steps"),
    [("obs", "gauss-newton", 6), ("magnitude", "gauss-newton", 6), ("obs", "features", 100)],
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


def test_what_refinement_costs_decides_whether_it_is_on_by_itself(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(**how: object) -> str:
        usual = {"sparsity": 0.6, "calibration__labels": False, "prune__refine_steps": "auto"}
        outcome = quick(conv, **usual | how)
        [line] = [line for line in outcome.choices if line.startswith("refinement: ")]
        return line

    assert said().startswith("refinement: after the last stage, 350 steps of features (")
    assert said(finetune__epochs=1) == "refinement: none (fine-tuning follows)"
    assert said(prune__method="magnitude") == "refinement: none (magnitude is known without)"
    assert said(prune__refine="none") == "refinement: none (as asked)"
    assert said(prune__refine_steps=7).startswith("refinement: after the last stage, 7 steps of features (")
    each = 4 * 64 * flops(conv, TRAIN[0][:1])[0]
    monkeypatch.setattr("prunetaylor.refinement.WORTH", {"cpu": 80.5 * each})
    assert said().startswith("refinement: after the last stage, 80 steps of features (")
    monkeypatch.setattr("prunetaylor.refinement.WORTH", {"cpu": 10 * each})
    assert "none (350 steps are" in said()
    assert said(prune__refine="last").startswith("refinement: after the last stage, 350 steps of features (as asked")


def test_where_there_is_nothing_to_gain_refinement_is_left_out_unless_asked_for(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"sparsity": 0.3, "calibration__labels": False}
    refined = quick(conv, **how)
    monkeypatch.setattr("prunetaylor.refinement.NEGLIGIBLE", 1.0)
    left_out, asked = quick(conv, **how), quick(conv, prune__refine="last", **how)
    same_bits(left_out, quick(conv, prune__refine="none", **how))
    same_bits(asked, refined)


def test_what_repairs_is_said_with_what_decided(conv: nn.Module) -> None:
    def said(**settings: object) -> list[str]:
        found = quick(conv, sparsity=0.3, prune__refine_steps=1, **settings).choices
        return [line for line in found if line.startswith("repair: ")]

    assert said() == ["repair: least-squares (usual for exact_obs)"]
    assert said(prune__method="obd", prune__repair="obs") == ["repair: obs (as asked)"]
    towards_labels = {"calibration__labels": True, "calibration__resample": True}
    assert said(**towards_labels) == ["repair: none (refinement after each stage makes up for what goes)"]


def test_labels_that_come_afresh_with_each_stage_are_learnt_from(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"sparsity": 0.5, "calibration__labels": True, "calibration__resample": True}
    learning = quick(conv, **how)
    assert learning.first_order.kept
    assert not quick(conv, prune__first_order="drop", **how).first_order.kept
    assert any(
        line.startswith("refinement: after each stage, 6 steps of gauss-newton (labels are asked for")
        for line in learning.choices
    )
    for other in ({"calibration__resample": False}, {"prune__refine": "last"}, {"calibration__labels": False}):
        assert not any("gauss-newton" in line for line in quick(conv, **how | other).choices)
    monkeypatch.setattr("prunetaylor.refinement.WORTH", {"cpu": 1e9})  # FLOPs
    assert not any("gauss-newton" in line for line in quick(conv, **how).choices)
