"""Bad input to a whole run: an error of ours that names cause and remedy, and a network that is as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunetaylor import prune
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import DataError, NumericsError, PruneTaylorError, UsageError
from prunetaylor.core.progress import Silent
from prunetaylor.pipeline.job import make_job
from prunetaylor.pipeline.run import run
from support.networks import ConvNet, Unreached, mlp
from support.runs import TEST, TRAIN, quick
from support.samples import Pair, Recording, curve


def changed(data: Pair, *, x: Any = None, y: Any = None, at: int = 100) -> Pair:
    """The pair with one entry of the inputs or one target changed."""
    inputs, targets = data[0].clone(), data[1].clone()
    if x is not None:
        inputs[at, 0, 2, 2] = x
    if y is not None:
        targets[at] = y
    return inputs, targets


EMPTY = (torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.long))
NAN = float("nan")
CASES: dict[str, tuple[type[PruneTaylorError], str, dict[str, Any]]] = {
    "sparsity 1": (UsageError, r"prune.sparsity is 1.*\n.*the fraction removed, in \[0, 1\)", {"sparsity": 1.0}),
    "sparsity 80": (UsageError, r"prune.sparsity is 80.*\n.*did you mean 80%", {"sparsity": 80}),
    "sparsity below 0": (UsageError, r"the fraction removed, in \[0, 1\)", {"sparsity": -0.1}),
    "sparsity nan": (UsageError, r"prune.sparsity is nan", {"sparsity": NAN}),
    "unknown key": (UsageError, r"unknown key 'prune.stage'.*did you mean 'prune.stages'", {"prune__stage": 2}),
    "unknown method": (UsageError, r"'ods' is not known; did you mean 'ob[sd]'", {"prune__method": "ods"}),
    "wrong type": (UsageError, r"calibration.samples is 'many'.*whole number", {"calibration__samples": "many"}),
    "no such layer": (UsageError, r"'conv9' matches no .*\n?.*layers: conv1", {"prune__exclude": ["conv9"]}),
    "nothing left": (UsageError, r"no prunable weights.*\n.*prune.exclude", {"prune__exclude": ["*"]}),
    "no such device": (UsageError, r"device 'gpu' cannot be used.*\n.*use auto, cpu", {"device": "gpu"}),
    "no labels": (
        UsageError,
        r"taylor1 needs labels.*\n.*calibration.labels at auto",
        {"prune__method": "taylor1", "calibration__labels": False},
    ),
    "no training samples": (DataError, r"train has no samples\n", {"train": EMPTY}),
    "no test samples": (DataError, r"test has no samples\n", {"test": EMPTY}),
    "one training sample": (UsageError, r"too few calibration samples.*\n", {"train": (TRAIN[0][:1], TRAIN[1][:1])}),
    "no data set": (DataError, r"train is a NoneType, not a data set\n", {"train": None}),
    "lengths": (DataError, r"differ in length", {"train": (TRAIN[0], TRAIN[1][:9])}),
    "another shape": (DataError, r"does not take such inputs", {"train": curve(9, 0), "test": curve(9, 0)}),
    "another test shape": (DataError, r"a test input .* is .*a training input is", {"test": curve(9, 0)}),
    "channels": (DataError, r"has 3 channels, the inputs have 1\n.*data.normalize", {"normalize": "imagenet"}),
    "no such normalization": (UsageError, r"unknown normalisation 'imagenat'; did you", {"normalize": "imagenat"}),
    "label too large": (DataError, r"class 4 at index 100 .*4 outputs\n.*0\.\.3", {"train": changed(TRAIN, y=4)}),
    "label below 0": (DataError, r"test targets: class -1 at index 100", {"test": changed(TEST, y=-1)}),
    "no classes": (
        UsageError,
        r"no top-1 accuracy\n.*metric=loss",
        {"train": (TRAIN[0], torch.rand(240, 4)), "metric": "top1"},
    ),
    "targets of another size": (DataError, r"do not fit outputs of 4", {"train": (TRAIN[0], torch.rand(240, 3))}),
    "nan in training": (NumericsError, r"the samples themselves are not finite\n", {"train": changed(TRAIN, x=NAN)}),
    "inf in training": (
        NumericsError,
        r"the samples themselves are not finite\n",
        {"train": changed(TRAIN, x=float("inf"))},
    ),
    "nan in test": (
        NumericsError,
        r"of 120 samples: the samples themselves are not finite\n",
        {"test": changed(TEST, x=NAN)},
    ),
    "nan in test targets": (
        NumericsError,
        r"loss on 120 samples is nan, and the network's outputs are finite\ncheck the targets",
        {"train": (TRAIN[0], torch.rand(240, 4)), "test": (TEST[0], torch.full((120, 4), NAN)), "metric": "loss"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str) -> None:
    kind, message, how = CASES[case]
    how = {"train": TRAIN, "test": TEST, "sparsity": 0.5, "calibration__samples": 240, "data__batch_size": 32, **how}
    if case in ("no classes", "targets of another size"):
        how["test"] = (TEST[0], torch.rand(120, how["train"][1].shape[1]))
    network = ConvNet().eval()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(kind, match=message) as caught:
        quick(network, **({"device": "cpu"} | how))
    assert caught.value.cause
    assert caught.value.remedy or case in ("no such layer",)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("label", [4, -1, -100])
def test_a_label_out_of_range_that_shows_only_when_it_is_read(part: str, label: int, epochs: int) -> None:
    data = {"train": Recording(TRAIN), "test": Recording(TEST)}
    data[part] = Recording(changed(data[part].data, y=label))
    with pytest.raises(DataError, match=rf"class {label} .*out of range for a network with 4 outputs"):
        quick(ConvNet(), **data, sparsity=0.5, finetune__epochs=epochs, calibration__samples=240)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune.method": "obs"}, r"obs needs samples\n.*--data, or use --method magnitude"),
        ({"prune.method": "taylor1"}, r"taylor1 needs samples"),
        ({"finetune.epochs": 1}, r"fine-tuning needs samples\n.*--epochs 0"),
        ({"prune.repair": "least-squares"}, r"prune.repair=least-squares needs samples\n.*prune.repair=none"),
    ],
)
def test_what_needs_samples_says_so(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        without_data(settings)


def without_data(settings: dict[str, Any]) -> Any:
    config = from_values({"finetune.epochs": 0, **settings}).config
    return run(make_job(config, ConvNet(), None, torch.device("cpu")), Silent())


def test_without_samples_magnitude_goes_and_what_is_not_known_is_left_open() -> None:
    outcome = without_data({"prune.sparsity": 0.7})
    assert outcome.sparsity.removed == round(0.7 * outcome.sparsity.prunable)
    assert outcome.drop is None
    assert outcome.first_order is None
    assert outcome.dense.metrics == outcome.pruned.metrics == {}
    assert outcome.dense.flops is None
    assert [(s.predicted_change, s.measured_change, s.gain_ratio) for s in outcome.stages] == [(None, None, None)]
    assert outcome.verdict.level == "caution"


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = ConvNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x + torch.rand_like(x))


class Wordy(Unreached):
    def forward(self, x: Tensor) -> Any:
        return {"text": "hello", "score": self.used(x).tolist()}


def test_networks_that_cannot_be_pruned() -> None:
    with pytest.raises(NumericsError, match=r"outputs(.|\n)*module.training"):
        quick(Noisy(), sparsity=0.5)
    with pytest.raises(DataError, match=r"returned dict, not a tensor of real numbers\n.*wrap it"):
        quick(Wordy(ConvNet()), sparsity=0.5)
    with pytest.raises(UsageError, match=r"no prunable weights"):
        quick(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36)), sparsity=0.5)
    bad = mlp(36, 4)
    bad[0].weight.data[0, 0] = NAN
    with pytest.raises(NumericsError, match=r"1\.0\.weight .*not finite"):
        quick(nn.Sequential(nn.Flatten(), bad), sparsity=0.5)


def test_networks_whose_weights_are_not_there_yet() -> None:
    network = ConvNet()
    network.fc = nn.LazyLinear(4)
    with pytest.raises(UsageError, match=r"fc\.weight.* lazy"):
        quick(network, sparsity=0.5)
    network.fc = nn.Linear(72, 4, device="meta")
    with pytest.raises(UsageError, match=r"fc\.weight .*meta"):
        quick(network, sparsity=0.5)


def test_a_network_in_training_mode_comes_back_so() -> None:
    network = ConvNet().train()
    outcome = prune(network, TRAIN, TEST, settings={"device": "cpu", "finetune.epochs": 0})
    assert network.training
    assert network.bn1.training
    assert not outcome.module.training
