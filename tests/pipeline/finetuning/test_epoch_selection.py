"""Which epoch a run ends with: by values alone, without training."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from prunetaylor.pipeline.finetuning.epoch_selection import EpochSelector
from prunetaylor.pipeline.finetuning.loop import describe_poor_loss

MASKS = {"w": torch.tensor([True, False])}


def weights(epoch: int) -> dict[str, Tensor]:
    return {"w": torch.full((2,), float(epoch))}


def selected(sign: int, *values: float) -> EpochSelector:
    """The first of the values is that before training."""
    selector = EpochSelector(sign)
    for epoch, value in enumerate(values):
        selector.offer(epoch, value, lambda epoch=epoch: weights(epoch))
    return selector


@pytest.mark.parametrize(
    ("sign", "values", "epoch"),
    [
        (1, [80, 70, 90, 85], 2),
        (1, [90, 80, 70], 0),
        (1, [80, 80, 80], 1),  # as good as before training, it may be surer; the first of equal epochs stays
        (-1, [0.3, 0.2, 0.4], 1),
        (-1, [0.1, 0.2, 0.4], 0),
    ],
)
def test_the_best_weights_are_kept(sign: int, values: list[float], epoch: int) -> None:
    best = selected(sign, *values).best
    assert best is not None
    assert best.epoch == epoch
    assert torch.equal(best.weights["w"], weights(epoch)["w"])


def test_weights_that_are_not_better_are_not_copied() -> None:
    selector = selected(1, 90)
    selector.offer(1, 80, lambda: pytest.fail("copied"))


def test_an_epoch_with_too_many_weights_is_a_fallback_only() -> None:
    selector = EpochSelector(1)
    selector.offer_incomplete(0, lambda: weights(0), MASKS, 1)
    selector.offer_incomplete(1, lambda: weights(1), MASKS, 2)
    assert selector.best is None
    fallback = selector.fallback
    assert fallback is not None
    assert (fallback.epoch, fallback.stages, float(fallback.weights["w"][0])) == (1, 2, 1.0)
    selector.offer(2, 50.0, lambda: weights(2))
    assert selector.fallback is None
    assert selector.best is not None
    assert selector.best.epoch == 2


def test_the_selection_goes_on_from_its_state() -> None:
    for selector in (EpochSelector(1), selected(-1, 0.3, 0.2)):
        selector.offer_incomplete(3, lambda: weights(3), MASKS, 2)
        file = io.BytesIO()
        torch.save(selector.state_dict(), file)
        file.seek(0)
        other = EpochSelector(-1)
        other.load_state_dict(torch.load(file, weights_only=True))
        torch.testing.assert_close(other.state_dict(), selector.state_dict())


@pytest.mark.parametrize(
    ("losses", "constant", "said"),
    [
        ([0.5, 0.4], 0.3, True),
        ([0.5, 0.2], 0.3, False),
        ([0.5], 0.3, False),
        ([], 0.3, False),
        ([0.5, 0.4], None, False),
    ],
)
def test_a_loss_no_better_than_that_of_a_constant_answer_is_said(
    losses: list[float], constant: float | None, said: bool
) -> None:
    text = describe_poor_loss(losses, constant)
    assert (text is not None) == said
    if text is not None:
        assert "0.4 at best, was better than that of an answer which never changes, 0.3; lower finetune.lr" in text
