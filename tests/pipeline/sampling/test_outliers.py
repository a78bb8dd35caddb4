"""Samples that dwarf the rest take no part in fits or training, and are named; healthy ones do, heavy tails too."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunetaylor.core.errors import NumericsError, UsageError
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.data.samples import Inputs, TensorSplit
from prunetaylor.network.network import Network
from prunetaylor.pipeline.sampling.outliers import FAR, Energies, find_outliers, find_stored_outliers
from prunetaylor.taylor.passes import forward_one
from support.networks import ConvNet, trained
from support.runs import TRAIN, quick


@pytest.fixture(scope="module")
def conv() -> nn.Module:
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 60)


def bad(rows: list[int], factor: float) -> tuple[Tensor, Tensor]:
    x, y = TRAIN[0].clone(), TRAIN[1]
    x[rows] *= factor
    return x, y


def weights(outcome: PruneResult) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in outcome.module.named_parameters()}


def keys(outcome: PruneResult) -> list[str]:
    return [alert.key for alert in outcome.warnings]


@pytest.mark.parametrize(("rows", "factor"), [([17], 1e30), ([3, 30, 77, 100, 110], 1e4)], ids=str)
def test_they_change_nothing_but_the_number_of_samples(conv: nn.Module, rows: list[int], factor: float) -> None:
    how: dict[str, Any] = {"calibration__samples": len(TRAIN[0]), "sparsity": 0.7}
    found = quick(conv, bad(rows, factor), **how)
    healthy = quick(conv, TRAIN, **how)
    assert keys(found) == ["outlier_samples"]
    assert all(str(row) in found.warnings[0].text for row in rows)
    assert found.pruned.metrics["top1"] >= healthy.pruned.metrics["top1"] - 3
    largest = max(float(w.abs().max()) for w in weights(healthy).values())
    assert max(float(w.abs().max()) for w in weights(found).values()) < 2 * largest


def test_outlier_indices_refer_to_the_whole_training_set(conv: nn.Module) -> None:
    found = quick(conv, bad([7], 1e9), calibration__samples=len(TRAIN[0]), finetune__epochs=1, finetune__lr=1e-4)
    assert keys(found) == ["outlier_samples"]
    assert "training sample 7 is" in found.warnings[0].text


@pytest.mark.parametrize(("row", "labelled"), [(7, True), (150, False)])
def test_training_does_not_see_them_either_drawn_for_calibration_or_not(
    conv: nn.Module, row: int, labelled: bool
) -> None:
    x, y = bad([row], 1e12)
    found = quick(conv, (x, y) if labelled else x, calibration__samples=40, finetune__epochs=2, sparsity=0.7)
    assert "outlier_samples" in keys(found)
    assert "finetuning_stopped" not in keys(found)
    assert len(found.epochs) == 2
    [text] = [alert.text for alert in found.warnings if alert.key == "outlier_samples"]
    assert f"training sample {row} is" in text


def test_targets_that_are_values_are_looked_at_and_bytes_are_not() -> None:
    x, targets = torch.rand(60, 4), torch.rand(60, 1)
    targets[13] = 1e9
    assert find_stored_outliers(TensorSplit(x, targets))[0] == [13]
    bytes_ = torch.zeros(60, 4, dtype=torch.uint8)
    bytes_[5] = 255
    assert find_stored_outliers(TensorSplit(bytes_, torch.zeros(60, dtype=torch.long))) == ([], 1.0)


def test_a_constant_image_and_a_moderate_one_are_samples_like_any_other(conv: nn.Module) -> None:
    x, y = bad([4], 5.0)
    x[9] = 0.0
    x[10] = 0.5
    assert keys(quick(conv, (x, y), calibration__samples=len(x))) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_that_is_not_finite_is_refused_and_not_left_out(conv: nn.Module, value: float) -> None:
    x, y = TRAIN[0].clone(), TRAIN[1]
    x[3] = value
    with pytest.raises(NumericsError, match=r"samples .*not finite"):
        quick(conv, (x, y), calibration__samples=len(x))


def test_two_samples_are_too_few_to_fit_to_and_some_are_few(conv: nn.Module) -> None:
    with pytest.raises(UsageError, match="too few calibration samples"):
        quick(conv, calibration__samples=2)
    assert "few_samples" in keys(quick(conv, calibration__samples=20))
    plain = {"prune__method": "magnitude", "prune__repair": "none", "calibration__samples": 2}
    assert keys(quick(conv, **plain)) == ["few_samples"]


@given(st.integers(3, 300), st.integers(0, 2**31), st.sampled_from(["normal", "uniform", "exponential", "sparse"]))
@settings(max_examples=60, deadline=None)
def test_healthy_samples_are_never_left_out(count: int, seed: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 20, generator=generator, dtype=torch.float64)
    if kind == "normal":
        x = torch.randn(count, 20, generator=generator, dtype=torch.float64)
    if kind == "exponential":
        x = -torch.log(x)
    if kind == "sparse":
        x = x * (x > 0.98)
    assert find_outliers(x.square().mean(1, keepdim=True))[0] == []


@given(st.integers(20, 300), st.integers(0, 2**31), st.floats(2.5, 30), st.floats(0.001, 0.09))
@settings(max_examples=60, deadline=None)
def test_up_to_a_tenth_that_outweigh_the_rest_are_found(count: int, seed: int, power: float, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 20, generator=generator, dtype=torch.float64) + 0.1
    rows = sorted(torch.randperm(count, generator=generator)[: max(1, int(share * count))].tolist())
    x[rows] *= 10**power
    found, size = find_outliers(x.square().mean(1, keepdim=True))
    assert found == rows
    assert size > FAR**0.5


def test_a_layer_may_be_where_they_show() -> None:
    """The inputs are all of a size, and what one of them becomes is not."""

    class Blows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x / x[:, :1])
            return y

    x = torch.rand(40, 4) + 0.5
    x[11, 0] = 1e-6
    module = Blows()
    seen = Energies(Network.from_module(module).layers)
    forward_one(module, Inputs.of(x), seen.watch)
    seen.add(Inputs.of(x), torch.zeros(40, dtype=torch.long))
    assert find_outliers(seen.all())[0] == [11]
