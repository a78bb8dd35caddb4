"""Every decision of a plan, by key and value, from facts alone: nothing runs."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.network.network import Network
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.plan import PruningPlan, make_plan
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.taylor.convergence import Convergence

ROOT = Path(__file__).parents[3]
CONVERGED = Convergence(first_order_share=0.1, gradient_norm=1.0, noise_norm=1.0, probe=0.05)
NOT_QUITE = Convergence(first_order_share=0.1, gradient_norm=9.0, noise_norm=1.0, probe=0.05)
FAR = Convergence(first_order_share=0.9, gradient_norm=9.0, noise_norm=1.0, probe=0.05)
FACTS = Facts(prunable=1000, training_samples=1000, forward_work=1e6, elimination_work=1e9, convergence=CONVERGED)
NO_DATA = Facts(prunable=1000, training_samples=None)


def plan(facts: Facts = FACTS, *, one_step: bool = False, **settings: Any) -> PruningPlan:
    values = {key.replace("__", "."): value for key, value in settings.items()}
    return make_plan(from_values(values).config, facts, one_step=one_step)


def values(facts: Facts = FACTS, **settings: Any) -> dict[str, object]:
    return {choice.key: choice.value for choice in plan(facts, **settings).choices}


def reason(key: str, facts: Facts = FACTS, **settings: Any) -> str:
    return next(choice.reason for choice in plan(facts, **settings).choices if choice.key == key)


def test_the_usual_run() -> None:
    assert values() == {
        "data.workers": 0,
        "loss": "cross-entropy",
        "prune.method": "exact_obs",
        "finetune.epochs": 0,
        "calibration.samples": 1000,
        "prune.stages": "adaptive",
        "prune.repair": "least-squares",
        "prune.refine": "last",
        "prune.refine_by": "features",
        "prune.refine_steps": 300,
        "calibration.labels": False,
        "error": "KL divergence from the dense network's outputs, no labels",
        "prune.first_order": "keep",
        "memory_format": "contiguous",
    }


def test_every_choice_has_a_reason_and_is_listed_once() -> None:
    gpu = replace(FACTS, device="cuda", half_precision="bf16", convergence=FAR)
    gradual = {"prune__schedule": "cubic", "finetune__epochs": 6}
    for made in (plan(), plan(gpu), plan(NO_DATA), plan(gpu, **gradual), plan(one_step=True)):
        keys = [choice.key for choice in made.choices]
        assert all(choice.reason for choice in made.choices)
        assert len(set(keys)) == len(keys)


def test_choices_of_the_user_are_as_asked() -> None:
    asked = {"prune__method": "obd", "prune__repair": "batch-norm", "finetune__epochs": 2, "finetune__lr": 0.3}
    found = values(**asked)
    for key, value in asked.items():
        key = key.replace("__", ".")
        assert found[key] == value
        assert reason(key, **asked) == "as asked"


@pytest.mark.parametrize(
    ("facts", "settings", "method"),
    [
        (FACTS, {}, "exact_obs"),
        (replace(FACTS, elimination_work=2e12), {}, "obs"),
        (replace(FACTS, elimination_work=2e12, device="cuda"), {}, "exact_obs"),
        # Stages that each take a share of what is left take longer than one that goes nearly all the way.
        (replace(FACTS, elimination_work=4e11), {"prune__stages": 9, "prune__sparsity": 0.9}, "obs"),
        (replace(FACTS, elimination_work=4e11), {"calibration__resample": True, "prune__sparsity": 0.9}, "obs"),
        (replace(FACTS, elimination_work=9e11), {"calibration__resample": True, "calibration__labels": False},
         "exact_obs"),
        (NO_DATA, {}, "magnitude"),
    ],
)  # fmt: skip
def test_method(facts: Facts, settings: dict[str, Any], method: str) -> None:
    assert values(facts, **settings)["prune.method"] == method


def test_epochs_are_as_many_as_a_gpu_is_fast() -> None:
    assert values()["finetune.epochs"] == 0
    assert values(replace(FACTS, device="cuda"))["finetune.epochs"] == 3
    assert values(replace(NO_DATA, device="cuda"))["finetune.epochs"] == 0
    line = next(line for line in plan().lines if line.startswith("fine-tuning"))
    assert line == "fine-tuning: off (automatic without a CUDA GPU; --epochs 0 gives the same on every machine)"


@pytest.mark.parametrize(
    ("convergence", "settings", "labels", "first_order"),
    [
        (CONVERGED, {}, False, "keep"),
        (NOT_QUITE, {}, False, "keep"),
        (FAR, {}, True, "keep"),
        (FAR, {"calibration__labels": False}, False, "keep"),
        (CONVERGED, {"calibration__labels": True}, True, "drop"),
        (NOT_QUITE, {"calibration__labels": True}, True, "keep"),
        (CONVERGED, {"calibration__labels": True, "prune__first_order": "keep"}, True, "keep"),
        (FAR, {"prune__first_order": "drop"}, True, "drop"),
        (CONVERGED, {"prune__method": "taylor1"}, True, "keep"),
        (None, {}, False, "keep"),
    ],
)
def test_labels_and_first_order_term(
    convergence: Convergence | None, settings: dict[str, Any], labels: bool, first_order: str
) -> None:
    found = values(replace(FACTS, convergence=convergence, labelled=convergence is not None), **settings)
    assert (found["calibration.labels"], found["prune.first_order"]) == (labels, first_order)


def test_a_criterion_of_labels_is_refused_without_them() -> None:
    with pytest.raises(UsageError, match="taylor1 needs labels"):
        plan(prune__method="taylor1", calibration__labels=False)


@pytest.mark.parametrize(
    ("facts", "settings", "refine", "by", "repair"),
    [
        (FACTS, {}, "last", "features", "least-squares"),
        (replace(FACTS, convergence=FAR), {}, "stages", "gauss-newton", "none"),
        (replace(FACTS, convergence=FAR), {"prune__repair": "least-squares"}, "stages", "gauss-newton",
         "least-squares"),
        (replace(FACTS, forward_work=1e12), {}, "none", None, "least-squares"),
        (FACTS, {"prune__method": "obd"}, "none", None, "none"),
        (FACTS, {"prune__method": "obd", "prune__refine": "last"}, "last", "features", "none"),
        (FACTS, {"finetune__epochs": 2}, "none", None, "least-squares"),
        (FACTS, {"prune__refine_by": "gauss-newton"}, "none", None, "least-squares"),
        (FACTS, {"calibration__labels": True, "calibration__resample": True}, "stages", "gauss-newton", "none"),
        (replace(FACTS, forward_work=1e11), {"calibration__labels": True, "calibration__resample": True}, "none", None,
         "least-squares"),
        (replace(FACTS, zeros=500), {}, "none", None, "least-squares"),
        (replace(FACTS, zeros=500), {"prune__refine": "last"}, "none", None, "least-squares"),
        (replace(FACTS, zeros=500), {"prune__refine": "last", "calibration__labels": True}, "last", "gauss-newton",
         "least-squares"),
        (replace(FACTS, zeros=500), {"prune__refine": "none", "prune__repair": "none"}, "none", None, "none"),
        (replace(FACTS, zeros=500, labelled=False, convergence=None), {"prune__refine": "last"}, "none", None,
         "least-squares"),
        (replace(FACTS, zeros=500),
         {"prune__refine": "last", "prune__refine_by": "features", "calibration__labels": True}, "none", None,
         "least-squares"),
        (replace(FACTS, zeros=500),
         {"prune__refine": "last", "prune__schedule": "cubic", "finetune__epochs": 1, "calibration__labels": True},
         "none", None, "least-squares"),
        (replace(FACTS, batch_norms=False), {"prune__repair": "batch-norm"}, "last", "features", "none"),
    ],
)  # fmt: skip
def test_refinement_and_repair(
    facts: Facts, settings: dict[str, Any], refine: str, by: str | None, repair: str
) -> None:
    found = values(facts, **settings)
    assert (found["prune.refine"], found.get("prune.refine_by"), found["prune.repair"]) == (refine, by, repair)


def test_refinement_takes_as_many_steps_as_the_device_can_afford() -> None:
    assert values(replace(FACTS, forward_work=2e9))["prune.refine_steps"] == 97
    assert values(replace(FACTS, forward_work=2e9), prune__refine="last")["prune.refine_steps"] == 300
    assert values(replace(FACTS, forward_work=2e9), prune__refine_steps=60)["prune.refine_steps"] == 60


def test_what_follows_a_stage_of_a_solver_is_not_the_obs_update() -> None:
    with pytest.raises(UsageError, match="joint "):
        plan(prune__method="joint", prune__repair="obs")


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"prune__method": "magnitude"}, [0.5]),
        ({"prune__method": "obd"}, [0.5]),
        ({}, "adaptive"),
        ({"prune__stages": [0.2, 0.5]}, [0.2, 0.5]),
        ({"prune__stages": 1}, [0.5]),
        ({"prune__schedule": "linear", "prune__stages": 2, "finetune__epochs": 2}, [0.25, 0.5]),
    ],
)
def test_stages(settings: dict[str, Any], stages: object) -> None:
    assert values(**settings)["prune.stages"] == stages


def test_a_gradual_schedule_is_a_sparsity_by_training_step() -> None:
    made = plan(prune__schedule="linear", prune__stages=2, finetune__epochs=6, data__batch_size=100)
    assert made.gradual == {0: 0.25, 18: 0.5}  # 900 samples are trained on: 9 batches an epoch, over 4 epochs
    assert next(c.value for c in made.choices if c.key == "prune.during") == 4.0
    few = plan(replace(FACTS, training_samples=40), prune__schedule="cubic", prune__sparsity=0.95, finetune__epochs=2)
    assert len(few.gradual) == 1, "no more stages than training steps"
    with pytest.raises(UsageError, match="more than the 2 epochs"):
        plan(prune__schedule="cubic", prune__during=3.0, finetune__epochs=2)
    with pytest.raises(UsageError, match="9 stages do not fit"):
        plan(replace(FACTS, training_samples=40), prune__schedule="cubic", prune__stages=9, finetune__epochs=2)


def test_workers_decode_what_is_not_in_memory() -> None:
    images = replace(FACTS, decodes=True, cores=4)
    assert values(images)["data.workers"] == 4
    assert values(replace(images, cores=64))["data.workers"] == 8
    assert values(images, data__workers=3)["data.workers"] == 3
    assert "data.workers" not in values(NO_DATA)


def test_nothing_to_prune_is_a_choice() -> None:
    assert values(replace(FACTS, zeros=500))["prune.sparsity"] == 0.5
    assert "50.00% is zero already" in reason("prune.sparsity", replace(FACTS, zeros=500))
    assert plan(replace(NO_DATA, zeros=500)).nothing_to_prune
    assert not plan(replace(FACTS, zeros=499)).nothing_to_prune


def test_validation_samples() -> None:
    assert plan().validation == 0
    assert plan(finetune__epochs=1).validation == 100
    assert plan(replace(FACTS, training_samples=50_000), finetune__epochs=1).validation == 2000
    assert plan(finetune__epochs=1, data__validation=0.3).validation == 300
    assert plan(replace(FACTS, has_validation=True), finetune__epochs=1).validation == 0
    with pytest.raises(DataError, match="too few to hold some out"):
        plan(replace(FACTS, training_samples=3), finetune__epochs=1)


@pytest.mark.parametrize(
    ("facts", "settings", "lr", "precision", "weight"),
    [
        (FACTS, {}, 0.05, "float32", 0.9),
        (FACTS, {"finetune__optimizer": "adamw", "finetune__precision": "bf16"}, 0.001, "bf16", 0.9),
        (FACTS, {"finetune__lr": 0.3, "finetune__distill__weight": 0.0}, 0.3, "float32", 0.0),
        (replace(FACTS, device="cuda", half_precision="bf16"), {}, 0.05, "bf16", 0.9),
        (replace(FACTS, device="cuda", half_precision="fp16"), {}, 0.05, "fp16", 0.9),
        (replace(FACTS, labelled=False, convergence=None), {}, 0.05, "float32", 1.0),
    ],
)
def test_training(facts: Facts, settings: dict[str, Any], lr: float, precision: str, weight: float) -> None:
    training = plan(facts, finetune__epochs=1, **settings).training
    assert (training.lr, training.precision, training.distill.weight) == (lr, precision, weight)


def test_memory_format() -> None:
    assert values(replace(FACTS, plain_layout=None))["memory_format"] == "channels_last"
    assert values(replace(FACTS, plain_layout="the network fails"))["memory_format"] == "contiguous"
    assert "fails" in reason("memory_format", replace(FACTS, plain_layout="the network fails"))


def test_wording() -> None:
    fresh = {"calibration__labels": True, "calibration__resample": True}
    assert "repair: least squares (default for exact_obs)" in plan().lines
    assert "repair: obs (as asked)" in plan(prune__method="obd", prune__repair="obs").lines
    assert "repair: skipped; each stage is refined instead" in plan(**fresh).lines
    assert "refinement: off (default for magnitude)" in plan(prune__method="magnitude").lines
    nothing = replace(FACTS, zeros=500)
    assert "repair: skipped (nothing is removed)" in plan(nothing).lines
    assert "refinement: off (nothing is removed)" in plan(nothing).lines
    assert reason("prune.refine", nothing, prune__refine="last").endswith("calibration.labels=true uses them")
    features = {"prune__refine": "last", "prune__refine_by": "features", "calibration__labels": True}
    assert reason("prune.refine", nothing, **features).endswith("prune.refine_by=gauss-newton uses labels")
    gradual = plan(prune__schedule="linear", prune__stages=2, finetune__epochs=6)
    assert "schedule linear: 25.0% at epoch 0, 50.0% at epoch 2" in gradual.lines
    line = "refinement: 300 steps after the last stage, matching the dense layers' outputs (affordable: 0.1 TFLOP)"
    assert line in plan().lines
    assert "method: exact_obs (automatic: most accurate in our benchmarks)" in plan().lines
    assert "learning rate 0.05: the default of sgd" in plan(finetune__epochs=1).lines


def test_the_work_of_exact_obs() -> None:
    # C^2 (C + 1000) for each row of a block: two convolutions of 3 x 3, and a linear layer wider than one block.
    assert (
        load_criterion("exact_obs").work(Network.from_module(nn.Conv2d(4, 6, 3, groups=2)).layers) == 6 * 18**2 * 1018
    )
    assert load_criterion("exact_obs").work(Network.from_module(nn.Linear(1500, 2)).layers) == 2 * 2 * 750**2 * 1750


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({}, 1.0),
        ({"prune__stages": [0.5, 0.8, 0.9]}, 1 + 0.5 + 0.2),
        ({"prune__schedule": "cubic", "finetune__epochs": 9}, sum(0.1 ** (k / 7) for k in range(7))),
        # Fresh samples to learn from, 6 % of what is left at each stage.
        ({"calibration__labels": True, "calibration__resample": True}, sum(0.1 ** (k / 38) for k in range(38))),
        ({"calibration__labels": True, "calibration__resample": True, "prune__refine": "last"}, 1.0),
        ({"calibration__resample": True, "calibration__labels": False}, 1.0),
    ],
)
def test_the_work_of_exact_obs_counts_all_stages(settings: dict[str, Any], times: float) -> None:
    for work, method in ((0.999e12, "exact_obs"), (1.001e12, "obs")):
        facts = replace(FACTS, elimination_work=work / times)
        assert plan(facts, prune__sparsity=0.9, **settings).method == method


def test_single_steps_are_neither_refined_nor_trained() -> None:
    made = plan(replace(FACTS, device="cuda", zeros=900), one_step=True)
    assert (made.refinement.when, made.epochs, made.nothing_to_prune) == ("none", 0, False)


def test_the_loss_goes_with_the_task() -> None:
    assert values(replace(FACTS, task="regression"))["loss"] == "mse"
    assert reason("loss") == "the targets are class ids"
    assert reason("loss", loss="cross-entropy") == "as asked"
    assert "loss" not in values(NO_DATA)


def test_auto_is_settled_in_one_place() -> None:
    allowed = ("prunetaylor/core/config/",)
    found = []
    for path in sorted([*(ROOT / "prunetaylor").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and not name.startswith(allowed):
                parts = [constant.value for constant in ast.walk(node) if isinstance(constant, ast.Constant)]
                found += [f"{name}:{node.lineno}"] if "auto" in parts else []
    assert found == []
