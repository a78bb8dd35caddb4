"""Settings that contradict one another are refused before any work, and what does nothing is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunetaylor.core import registry
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import UsageError
from prunetaylor.pipeline.checks.settings import check_needs, check_settings
from prunetaylor.pipeline.job import make_job
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.taylor.objective import Task
from support.networks import mlp
from support.runs import quick


def said(
    values: dict[str, object], epochs: int = 1, task: Task = "classification", *, labelled: bool = True
) -> list[str]:
    config = from_values({"finetune.epochs": epochs, **values}).config
    return check_settings(config, Facts(training_samples=100, task=task, labelled=labelled))


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"finetune.rewind": True}, r"finetune\.rewind applies to gradual schedules.*\n.*cubic"),
        ({"prune.during": 2.0}, r"prune\.during applies to gradual schedules.*\n.*cubic"),
        ({"finetune.optimizer": "adamw", "finetune.momentum": 0.5}, r"momentum applies to sgd, and .* is adamw"),
    ],
)
def test_what_cannot_both_be_meant_is_refused(values: dict[str, object], message: str, epochs: int) -> None:
    with pytest.raises(UsageError, match=message):
        said(values, epochs)


def test_smoothing_needs_labels_that_are_classes() -> None:
    smooth = {"finetune.label_smoothing": 0.1}
    assert said(smooth) == []
    with pytest.raises(UsageError, match=r"labels.*finetune\.distill\.weight=1"):
        said({**smooth, "finetune.distill.weight": 1.0})
    with pytest.raises(UsageError, match="smooths labels, and there are none"):
        said(smooth, labelled=False)
    with pytest.raises(UsageError, match="needs classes"):
        said(smooth, task="binary")


def test_what_has_no_effect_without_epochs_is_named() -> None:
    [line] = said({"finetune.ema": 0.9, "finetune.distill.weight": 0.5, "finetune.label_smoothing": 0.1}, 0)
    for name in ("finetune.ema", "finetune.distill", "finetune.label_smoothing", "--epochs"):
        assert name in line
    config = from_values({"finetune.ema": 0.9, "prune.method": "magnitude"}).config
    assert any("finetune.ema" in line for line in make_job(config, mlp(), None, torch.device("cpu")).notes)
    assert said({}, 0) == said({"finetune.lr": 0.05}, 1) == said({"prune.schedule": "cubic", "prune.during": 1.0}) == []


def test_a_temperature_that_softens_nothing_is_named() -> None:
    hot = {"finetune.distill.temperature": 2.0}
    assert said(hot) == said({**hot, "finetune.distill.weight": 0.5}, task="binary") == []
    assert said({**hot, "finetune.distill.weight": 0.0}, labelled=False) == []  # the dense network's answers alone
    for line in (*said({**hot, "finetune.distill.weight": 0.0}), *said(hot, task="regression")):
        assert line.startswith("no effect: finetune.distill.temperature, as ")
    assert len(said(hot, task="regression")) == len(said({**hot, "finetune.distill.weight": 0.0})) == 1


def test_calibration_without_samples_is_named() -> None:
    config = from_values({"calibration.samples": 50, "calibration.labels": False}).config
    [line] = check_settings(config, Facts(training_samples=None))
    assert line.startswith("no effect: calibration.samples, calibration.labels")


@pytest.mark.parametrize(
    ("stages", "why"),
    [([], "no stages are given"), ([0.5, 0.3], "the sparsities of the stages must rise"), ([0.5, 0.5], "must rise")],
)
def test_lists_of_stages_that_cannot_be_meant_are_refused(stages: list[float], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        from_values({"prune.stages": stages})


NEVER = {"prune.refine": "none"}
STEPS = {"prune.refine_steps": 9, "prune.refine_by": "features"}
DAMPING = {"prune.damping": 0.1}


@pytest.mark.parametrize(
    ("method", "values", "named"),
    [
        ("obs", NEVER | STEPS, ["refine_steps", "refine_by"]),
        ("obs", STEPS, []),
        ("magnitude", STEPS, ["refine_steps", "refine_by"]),  # auto comes to none
        ("magnitude", STEPS | {"prune.refine": "last"}, []),
        ("magnitude", NEVER | DAMPING, ["damping"]),
        ("obd", DAMPING, ["damping"]),
        ("taylor1", DAMPING | {"prune.repair": "batch-norm", "prune.refine": "last"}, ["damping"]),
        ("magnitude", DAMPING | {"prune.repair": "least-squares"}, []),
        ("obs_fisher", DAMPING, []),
        ("exact_obs", DAMPING | {"prune.repair": "none"}, []),
    ],
)
def test_settings_of_pruning_without_effect_are_named(method: str, values: dict[str, object], named: list[str]) -> None:
    found = check_settings(from_values({"prune.method": method, **values}).config, Facts(training_samples=100))
    assert found == ([f"no effect: {', '.join(f'prune.{key}' for key in named)}"] if named else [])


@pytest.mark.parametrize("method", registry.names(registry.CRITERIA))
def test_damping_changes_what_it_is_said_to_change(conv: nn.Module, method: str) -> None:
    how = {"sparsity": 0.5, "prune__method": method, "prune__repair": "none", "prune__refine": "none"}
    little, much = (quick(conv, **how, prune__damping=damping) for damping in (1e-4, 1.0))
    same = all(torch.equal(mask, much.masks[name]) for name, mask in little.masks.items())
    assert same != load_criterion(method).uses_damping


def test_what_moves_weights_needs_samples() -> None:
    for key, value in (("refine", "last"), ("repair", "batch-norm")):
        with pytest.raises(UsageError, match=rf"prune\.{key}={value} needs samples\n.*prune\.{key}=none"):
            check_needs(from_values({f"prune.{key}": value}).config, Facts(training_samples=None))
