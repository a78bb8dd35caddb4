"""torchvision's transforms by name: the same for a seed, image by image, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.errors import UsageError
from prunetaylor.data.augment import load_augmentation
from prunetaylor.data.row_random import RowRandom
from prunetaylor.data.samples import Inputs

CROP = {"RandomCrop": {"size": 8, "padding": 2}}


def images(n: int = 16) -> Tensor:
    return torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def changed(named: list[object], seed: int = 0) -> Tensor:
    name, change = load_augmentation(named, Inputs.of(images()))
    assert name == named
    return change(images(), RowRandom(torch.Generator().manual_seed(seed), len(images())))


def test_each_image_is_changed_by_itself_and_a_seed_repeats_it() -> None:
    before = torch.get_rng_state()
    found = changed(["RandomHorizontalFlip"])
    assert torch.equal(torch.get_rng_state(), before)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(found, images(), strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found, images(), strict=True)]
    assert [a or b for a, b in zip(mirrored, same, strict=True)] == [True] * 16
    assert 0 < sum(mirrored) < 16
    assert torch.equal(found, changed(["RandomHorizontalFlip"]))
    assert not torch.equal(found, changed(["RandomHorizontalFlip"], seed=1))


def test_some_rows_are_changed_as_they_are_in_the_whole_batch() -> None:
    _, change = load_augmentation(["RandomHorizontalFlip", CROP], Inputs.of(images()))
    whole = change(images(), RowRandom(torch.Generator().manual_seed(2), 16))
    some = change(images()[5:9], RowRandom(torch.Generator().manual_seed(2), 16, range(5, 9)))
    assert torch.equal(some, whole[5:9])
    assert change(images()[:0], RowRandom(torch.Generator().manual_seed(2), 16, range(3, 3))).shape == (0, 3, 8, 8)


def test_transforms_come_one_after_another_with_their_arguments() -> None:
    found = changed([CROP, {"RandomErasing": {"p": 1.0, "value": 7}}])
    assert found.shape == images().shape
    assert found.dtype == torch.uint8
    assert bool((found == 7).flatten(1).any(1).all())


def test_transforms_of_transforms_and_transforms_themselves() -> None:
    from torchvision.transforms import v2

    inner = [CROP, {"RandomApply": {"transforms": ["RandomHorizontalFlip"], "p": 0.5}}]
    found = changed([{"RandomOrder": {"transforms": inner}}])
    own = v2.RandomOrder([v2.RandomCrop(size=8, padding=2), v2.RandomApply([v2.RandomHorizontalFlip()], p=0.5)])
    assert torch.equal(found, changed([own]))
    assert not torch.equal(found, images())
    steps, change = load_augmentation(own, Inputs.of(images()))
    assert steps == [own]
    assert torch.equal(found, change(images(), RowRandom(torch.Generator().manual_seed(0), 16)))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["RandomCorp"], "unknown transform 'RandomCorp'.*RandomCrop"),
        ([{"RandomCrop": {"sized": 3}}], "RandomCrop: .*sized"),
        (["MixUp"], "MixUp mixes labels"),
        ([{"Resize": {"size": [4, 4]}}], r"makes torch.uint8 \(3, 4, 4\) of torch.uint8 \(3, 8, 8\)"),
        ([{"ToDtype": {"dtype": "x"}}], "data.augment"),
        ([{"A": {}, "B": {}}], "is not one transform"),
        ([3], "3 is not one transform"),
        ([{"RandomApply": {"transforms": ["RandomCorp"]}}], "unknown transform 'RandomCorp'.*RandomCrop"),
        (["Transform"], "does not work on samples of shape"),  # IndexError in torchvision
    ],
)
def test_what_cannot_be_is_refused(named: list[object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_augmentation(named, Inputs.of(images()))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ([{"RandomZoomOut": {"p": 0.4}}], r"makes torch.uint8 \(3, \d+, \d+\) of torch.uint8 \(3, 8, 8\)"),
        ([{"RandomApply": {"transforms": [{"Resize": {"size": [4, 4]}}], "p": 0.4}}], r"makes torch.uint8 \(3, 4, 4\)"),
    ],
)
def test_what_fails_for_some_images_only_is_refused_there(named: list[object], said: str) -> None:
    seeds = range(40)
    _, change = load_augmentation(named, Inputs.of(images()))  # the one image that is tried is left as it is
    with pytest.raises(UsageError, match=f"data.augment .*{said}"):
        [change(images(), RowRandom(torch.Generator().manual_seed(seed), 16)) for seed in seeds]


def test_a_configuration_names_them() -> None:
    told = "data.augment=[RandomHorizontalFlip, {RandomCrop: {size: 32, padding: 4}}]"
    config = resolve(None, {}, [told], {}).config
    assert config.data.augment == ["RandomHorizontalFlip", {"RandomCrop": {"size": 32, "padding": 4}}]
