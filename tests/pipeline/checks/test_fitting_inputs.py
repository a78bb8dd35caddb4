"""Samples are fitted to the network: types of numbers, bytes, channels and sizes of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.config.schema import DataSection
from prunetaylor.data.load import from_python
from prunetaylor.pipeline.checks.inputs import FittedInputs, fit_inputs
from prunetaylor.pipeline.job import make_job
from support.samples import rand

CPU = torch.device("cpu")
Y = torch.arange(8) % 2


def fit(module: nn.Module, x: Any, **data: Any) -> FittedInputs:
    return fit_inputs(DataSection(**data), module.eval(), from_python((x, Y)), CPU)


def chosen(fitted: FittedInputs) -> dict[str, object]:
    return {choice.key: choice.value for choice in fitted.choices}


def ready(fitted: FittedInputs, split: str = "test") -> Tensor:
    inputs = fitted.samples.preprocess(getattr(fitted.samples, split).fetch([0])[0]).tensor
    assert inputs is not None
    return inputs


class Lookup(nn.Module):
    """Looks its inputs up, whatever their form."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(256, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x.long()).flatten(1, -2).mean(1))


class Casts(nn.Module):
    """Computes in half precision by its own conversion."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.bfloat16())


def test_what_fits_is_not_changed() -> None:
    fitted = fit(nn.Linear(3, 2), rand(8, 3))
    assert (fitted.types, fitted.choices) == ({}, ())
    assert torch.equal(ready(fitted), rand(8, 3)[:1])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_computed_with_in_float32_and_known_by_their_types(kind: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(kind)
    fitted = fit(module, rand(8, 3).to(kind))
    assert set(fitted.types.values()) == {kind}
    assert set(fitted.types) >= {"0.weight", "0.bias", "1.running_mean"}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert chosen(fitted) == {"precision": "float32"}


def test_weights_that_the_network_converts_to_stay() -> None:
    module = Casts()
    assert fit(module, rand(8, 3)).types == {}
    assert module.body.weight.dtype == torch.bfloat16


def test_64_bit_weights_get_64_bit_inputs() -> None:
    fitted = fit(nn.Linear(3, 2).double(), rand(8, 3))
    assert ready(fitted).dtype == torch.float64
    assert fitted.types == {}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_pruned_network_has_the_types_of_the_one_that_was_given(kind: torch.dtype) -> None:
    from prunetaylor import prune

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).to(kind)
    x = rand(64, 6)
    settings = {"device": "cpu", "prune.method": "magnitude"}
    outcome = prune(module, (x.to(kind), (x[:, 0] > 0).long()), epochs=0, settings=settings)
    assert {p.dtype for p in outcome.module.parameters()} == {kind}
    assert all(torch.equal(outcome.module.state_dict()[name] != 0, mask) for name, mask in outcome.masks.items())
    size = torch.finfo(kind).bits // 8
    assert outcome.pruned.bytes < (6 * 16 + 16 + 32 + 2) * size + 600


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)])
def test_bytes_that_are_looked_up_are_no_pixels(shape: tuple[int, ...]) -> None:
    x = torch.arange(8, dtype=torch.uint8).view(-1, *[1] * len(shape)).expand(8, *shape)
    fitted = fit(Lookup(), x)
    assert ready(fitted).dtype == torch.uint8
    assert chosen(fitted) == {"data.pixels": False}


def test_bytes_that_are_multiplied_are_pixels() -> None:
    for module, shape in ((nn.Linear(5, 2), (5,)), (nn.Conv2d(1, 2, 3), (1, 4, 4))):
        fitted = fit(module, torch.full((8, *shape), 255, dtype=torch.uint8))
        assert torch.equal(ready(fitted), torch.ones(1, *shape))
        assert fitted.choices == ()


def images(channels: int, side: int) -> Tensor:
    return torch.rand(8, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_grey_images_become_three_equal_channels() -> None:
    fitted = fit(nn.Conv2d(3, 2, 3), images(1, 8))
    assert chosen(fitted) == {"data.channels": 3}
    assert torch.equal(ready(fitted), images(1, 8)[:1].expand(-1, 3, -1, -1))


def test_colours_become_grey_by_their_luminance() -> None:
    fitted = fit(nn.Conv2d(1, 2, 3), images(3, 8))
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close(ready(fitted), (images(3, 8)[:1] * weights).sum(1, keepdim=True))


def test_images_get_the_size_that_the_network_takes() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    fitted = fit(module, images(1, 24))
    assert chosen(fitted) == {"data.channels": 3, "data.size": 32}
    assert ready(fitted).shape == (1, 3, 32, 32)


def test_channels_can_be_set() -> None:
    fitted = fit(nn.AdaptiveAvgPool2d(1), images(1, 8), channels=3)
    assert ready(fitted).shape[1] == 3


def test_a_normalisation_of_three_channels_makes_grey_images_so() -> None:
    samples = from_python((images(1, 8), Y), normalize="imagenet")
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    job = make_job(from_values({"device": "cpu"}).config, module, samples, CPU)
    assert job.samples is not None
    assert job.samples.preprocess.channels == 3


class NeedsLabels(nn.Module):
    """Shifts its targets to get inputs of its second half, as T5 does in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.embed, self.head = nn.Linear(3, 8), nn.Embedding(2, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise ValueError("labels are needed")
        return self.head(self.body(x).relu() + 0.1 * self.embed(labels))


def test_targets_without_which_a_network_does_not_run_are_an_argument_too() -> None:
    samples = from_python({"x": rand(8, 3), "labels": Y})
    fitted = fit_inputs(DataSection(), NeedsLabels().eval(), samples, CPU)
    assert chosen(fitted) == {"data.target": "labels"}
    inputs, targets = fitted.samples.train.fetch([0, 3])
    assert isinstance(inputs.tree, dict)
    assert inputs.tree["labels"].tolist() == targets.tolist() == [0, 1]
