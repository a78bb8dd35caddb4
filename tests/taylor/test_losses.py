"""Whole runs of networks that were trained with other losses than the cross-entropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.core.progress import Silent
from prunetaylor.gate.check import check
from prunetaylor.pipeline.files.outputs import write_run
from prunetaylor.pipeline.files.run_folder import RunFolder
from prunetaylor.pipeline.job import open_job
from prunetaylor.pipeline.run import run
from support.networks import ConvNet, trained
from support.runs import TRAIN, assert_truthful, quick
from support.samples import Pair


def questions(answers: int) -> Pair:
    x = torch.randn(800, 12, generator=torch.Generator().manual_seed(0))
    yes = [(x[:, 0] * x[:, 1] > 0) & (x[:, 2] > -1), x[:, 3] + x[:, 4] > 0, x[:, 5] > 0.5][:answers]
    return x, torch.stack(yes, 1).float()


def network(answers: int) -> tuple[nn.Module, Pair]:
    torch.manual_seed(0)
    data = questions(answers)
    module = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, answers))
    return trained(module, data, binary_cross_entropy_with_logits, 300), data


@pytest.fixture(scope="module")
def one() -> tuple[nn.Module, Pair]:
    return network(1)


@pytest.mark.parametrize("shape", ["column", "flat", "ids"])
def test_a_network_of_one_logit(one: tuple[nn.Module, Pair], shape: str) -> None:
    module, (x, y) = one
    y = {"column": y, "flat": y.flatten(), "ids": y.flatten().long()}[shape]
    outcome = quick(module, (x, y), (x, y), sparsity=0.4, loss="bce")
    assert_truthful(outcome, module, 0.4)
    assert outcome.dense.metrics["top1"] > 85
    assert outcome.drop is not None
    assert outcome.drop.value < 3
    assert len(outcome.classes) == 2
    assert outcome.loss_rise is not None
    rise = outcome.pruned.metrics["loss"] - outcome.dense.metrics["loss"]
    assert outcome.loss_rise.value == pytest.approx(rise, abs=1e-6)
    assert outcome.loss_rise.low < rise < outcome.loss_rise.high
    assert any("binary" in choice for choice in outcome.choices)


def test_zeros_and_ones_are_labels_where_the_outputs_are_logits(one: tuple[nn.Module, Pair]) -> None:
    module, (x, y) = one
    for targets in (y, y.flatten().long()):
        outcome = quick(module, (x, targets), (x, targets), sparsity=0.1)
        loss = next(choice for choice in outcome.plan if choice.key == "loss")
        assert (loss.value, loss.reason) == ("bce", "the targets are zeros and ones, and the outputs logits")
    sigmoid = quick(nn.Sequential(module, nn.Sigmoid()), (x, y), (x, y), sparsity=0.1)
    assert next(choice.value for choice in sigmoid.plan if choice.key == "loss") == "mse"
    outcome = quick(module, (x, y), (x, y), sparsity=0.1, loss="mse", metric="loss")
    assert any("halved squared error" in choice for choice in outcome.choices)


def test_several_answers_at_once_and_fine_tuning() -> None:
    module, data = network(3)
    with pytest.raises(UsageError, match="no top-1 accuracy"):
        quick(module, data, data, sparsity=0.8, loss="bce", metric="top1")
    how = {"sparsity": 0.85, "loss": "bce", "metric": "loss", "prune__method": "magnitude"}
    cut = quick(module, data, data, **how)
    for weight in ("auto", 0.0):
        tuned = quick(module, data, data, **how, finetune__epochs=5, finetune__distill__weight=weight, finetune__lr=0.2)
        assert_truthful(tuned, module, 0.85)
        assert tuned.pruned.metrics["loss"] < 0.8 * cut.pruned.metrics["loss"]


def test_answers_without_labels(one: tuple[nn.Module, Pair]) -> None:
    module, (x, y) = one
    outcome = quick(module, x, (x, y), sparsity=0.4, loss="bce", finetune__epochs=2)
    assert outcome.drop is not None
    assert outcome.drop.value < 3


@pytest.mark.parametrize(
    ("targets", "loss", "message"),
    [
        (torch.full((800, 1), 0.5), "bce", r"0\.5 of sample 0 is neither 0 nor 1"),
        (torch.zeros(800, 2), "bce", r"targets of shape \(2,\) .* do not fit outputs of 1 values and loss=bce"),
        (torch.zeros(800, 1), "cross-entropy", r"do not fit outputs of 1 values and loss=cross-entropy"),
    ],
)
def test_targets_that_a_loss_cannot_take(one: tuple[nn.Module, Pair], targets: Tensor, loss: str, message: str) -> None:
    module, (x, _) = one
    with pytest.raises(DataError, match=message):
        quick(module, (x, targets), (x, targets), sparsity=0.4, loss=loss, metric="loss")


_FOCAL = """
import torch

def focal(outputs, targets):
    p = outputs.softmax(1).gather(1, targets[:, None]).squeeze(1)
    return (-(1 - p) ** 2 * p.log()).mean()

number = 3
"""


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(_FOCAL)
    torch.manual_seed(0)
    module = trained(ConvNet(), TRAIN, cross_entropy, 10)
    how = {"sparsity": 0.7, "loss": f"{file}:focal", "calibration__labels": True, "prune__first_order": "keep"}
    outcome = quick(module, **how)
    assert_truthful(outcome, module, 0.7)
    assert outcome.stages[0].predicted_change is not None
    assert any(f"error: {file}:focal with targets" in choice for choice in outcome.choices)
    assert outcome.drop is not None
    tuned = quick(module, **how, finetune__epochs=2)
    assert tuned.epochs
    with pytest.raises(UsageError, match=f"{file}:number"):
        quick(module, sparsity=0.5, loss=f"{file}:number")
    with pytest.raises(UsageError, match=r"have no labels.*\n.*cross-entropy, bce or mse"):
        quick(module, TRAIN[0], sparsity=0.5, loss=f"{file}:focal")


def test_the_file_says_which_loss_it_was(one: tuple[nn.Module, Pair], tmp_path: Path) -> None:
    """A run folder is measured and judged with the loss of its run."""
    module, (x, y) = one
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    torch.save(module.state_dict(), tmp_path / "dense.pt")
    (tmp_path / "net.py").write_text(
        "from torch.nn import *\n\ndef make():\n    return Sequential(Linear(12, 48), ReLU(), Linear(48, 1))\n"
    )
    common = {"model.arch": f"{tmp_path / 'net.py'}:make", "data.source": f"arrays:{tmp_path / 'data.npz'}"}
    how = {**common, "model.checkpoint": str(tmp_path / "dense.pt"), "loss": "bce", "finetune.epochs": 0}
    resolved = from_values({**how, "prune.sparsity": 0.3, "prune.refine": "none"})
    job = open_job(resolved.config, trust=Trust(everything=True), progress=Silent())
    with RunFolder.create(tmp_path / "run", "run") as folder:
        write_run(folder, resolved, run(job, Silent()), job.describe_network(), {"loss": job.config.loss})
        folder.commit()
    gate = {"gate.baseline": str(tmp_path / "dense.pt"), "gate.max_drop": 50.0}
    written = from_values({**common, **gate, "model.checkpoint": str(tmp_path / "run")}).config
    verdict = check(written, trust=Trust(everything=True), progress=Silent())
    assert verdict.status == "pass"
    assert verdict.dense.metrics["top1"] > 85
    unsaid = from_values({**how, "loss": "auto"}).config
    assert open_job(unsaid, trust=Trust(everything=True), progress=Silent()).task == "binary"


def test_a_loss_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match=r"'mse2' is not known; did you mean 'mse'"):
        quick(ConvNet(), sparsity=0.5, loss="mse2")
