"""Splits, and the functions that work on them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from prunetaylor.core.errors import DataError
from prunetaylor.data.conversion import as_split
from prunetaylor.data.samples import DatasetSplit, TensorSplit, WithTargets, check_targets, draw, fingerprint
from support.samples import fetch


def _split(n=10):
    return TensorSplit(torch.arange(n * 2, dtype=torch.float32).view(n, 2), torch.arange(n))


class Noisy(Dataset):
    """Each item draws from torch's, Python's and numpy's global generators."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor([torch.rand(()).item(), random.random(), np.random.rand(), float(index)]), index % 3


def test_tensor_split_fetches_in_the_order_asked_for():
    inputs, targets = fetch(_split(), [7, 0, 7])
    torch.testing.assert_close(inputs, torch.tensor([[14.0, 15.0], [0.0, 1.0], [14.0, 15.0]]))
    assert targets.tolist() == [7, 0, 7]


def test_subset_is_a_view_of_the_parents_samples():
    subset = _split().subset([5, 2, 9]).subset([2, 0])
    assert len(subset) == 2
    assert subset.fetch([0, 1])[1].tolist() == [9, 5]
    assert subset.targets().tolist() == [9, 5]
    assert subset.in_memory().inputs.tensor.tolist() == [[18.0, 19.0], [10.0, 11.0]]
    assert subset.nbytes() == 16


def test_lengths_that_differ_are_refused():
    with pytest.raises(DataError, match="differ in length"):
        TensorSplit(torch.zeros(3, 2), torch.zeros(4))


def test_a_variant_fixes_random_transforms_and_no_global_generator_moves():
    split = DatasetSplit(Noisy())
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = torch.rand(()).item(), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    first, _ = fetch(split, [0, 1, 2])
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == expected
    again, _ = fetch(split, [2, 0])
    torch.testing.assert_close(again, first[[2, 0]], rtol=0, atol=0)
    other, targets = fetch(split, [0, 1, 2], variant=1)
    assert (other[:, :3] != first[:, :3]).all()
    assert targets.dtype == torch.int64


def test_dataset_items_may_be_images_arrays_and_numbers():
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    inputs, targets = fetch(DatasetSplit([(picture, 1), (picture, 0)]), [0, 1])
    assert inputs.shape == (2, 3, 4, 4)
    assert inputs.dtype == torch.uint8
    assert inputs[0, :, 0, 1].tolist() == [3, 4, 5]
    inputs, targets = fetch(DatasetSplit([(np.zeros(3, dtype=np.float32), 0.5)]), [0])
    assert inputs.shape == (1, 3)
    assert targets.dtype == torch.float32


def test_a_failing_sample_is_named():
    class Broken(Noisy):
        def __getitem__(self, index):
            raise KeyError("lost")

    with pytest.raises(DataError, match=r"sample 4 of my data .*KeyError: 'lost'"):
        DatasetSplit(Broken(), name="my data").fetch([4])
    with pytest.raises(DataError, match="the inputs of it contain no tensor"):
        DatasetSplit(["a.png"], name="it").fetch([0])
    with pytest.raises(DataError, match="sample of it has no target"):  # the others have labels
        DatasetSplit([(torch.zeros(2), 0), torch.zeros(2)], name="it").fetch([1])
    with pytest.raises(DataError, match="cannot be stacked"):
        DatasetSplit([(torch.zeros(2), 0), (torch.zeros(3), 0)]).fetch([0, 1])


def test_inputs_alone_have_no_labels():
    x = torch.rand(5, 2)
    whole = Image.fromarray(np.full((4, 4, 3), 9, dtype=np.uint8))
    for value in (x, x.numpy(), (x, None), TensorDataset(x), DataLoader(TensorDataset(x)), list(x)):
        split = as_split(value, "train")
        assert not split.labelled
        assert not split.subset([3, 1]).labelled
        torch.testing.assert_close(split.subset([3, 1]).fetch([1])[0].tensor, x[1:2])
        assert split.fetch([0, 4])[1].tolist() == [0, 0]
    assert as_split([whole], "train").fetch([0])[0].tensor.shape == (1, 3, 4, 4)
    for value in ((x, torch.arange(5)), list(zip(x, range(5), strict=True)), TensorDataset(x, torch.arange(5))):
        assert as_split(value, "train").subset([2]).labelled
    assert as_split(x, "train").to(torch.device("cpu")).labelled is False


def test_targets_in_place_of_others():
    split = as_split(Noisy(), "train")
    other = WithTargets(split, torch.arange(10, 10 + len(split)))
    torch.testing.assert_close(other.fetch([2, 0], 5)[0].tensor, split.fetch([2, 0], 5)[0].tensor)
    assert other.fetch([2, 0])[1].tolist() == other.subset([2, 0]).targets().tolist() == [12, 10]
    assert other.lazy
    assert other.labelled
    assert not WithTargets(split, torch.zeros(len(split)), labelled=False).labelled


def test_as_split_takes_what_people_have():
    x, y = torch.rand(5, 2), torch.arange(5)
    for value in ((x, y), (x.numpy(), y.numpy()), TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=3)):
        split = as_split(value, "train")
        assert isinstance(split, TensorSplit)
        torch.testing.assert_close(split.fetch([3])[0].tensor, x[3:4])
        assert split.targets().tolist() == [0, 1, 2, 3, 4]
    part = torch.utils.data.Subset(TensorDataset(x, y), [4, 1])
    assert as_split(part, "train").targets().tolist() == [4, 1]
    assert isinstance(as_split(Noisy(), "train"), DatasetSplit)
    assert as_split((x.double().numpy(), y.int()[:, None]), "t").targets().shape == (5,)
    assert as_split((x.double(), x.double()), "t").fetch([0])[0].tensor.dtype == torch.float32


def test_a_loaders_own_collate_is_kept():
    def collate(items):
        return torch.stack([torch.full((2,), float(v)) for v, _ in items]), torch.tensor([t for _, t in items])

    split = as_split(DataLoader([(1, 0), (2, 1)], collate_fn=collate), "train")
    inputs, targets = fetch(split, [1, 0])
    assert inputs.tolist() == [[2.0, 2.0], [1.0, 1.0]]
    assert targets.tolist() == [1, 0]


def test_as_split_refuses_what_is_no_data():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(DataError, match="train is an iterable data set"):
        as_split(Stream(), "train")
    with pytest.raises(DataError, match="test is a int, not a data set"):
        as_split(3, "test")
    with pytest.raises(DataError, match="train has no samples"):
        as_split((torch.zeros(0, 2), torch.zeros(0)), "train")
    with pytest.raises(DataError, match="not numbers"):
        as_split((np.array(["a"]), np.array([1])), "train")


def test_draw_gives_distinct_indices_and_repeats_by_seed():
    split = _split(50)
    drawn = draw(split, 20, torch.Generator().manual_seed(3))
    assert len(set(drawn)) == 20
    assert set(drawn) <= set(range(50))
    assert drawn == draw(split, 20, torch.Generator().manual_seed(3))
    assert drawn != draw(split, 20, torch.Generator().manual_seed(4))
    assert sorted(draw(split, 99, torch.Generator().manual_seed(3))) == list(range(50))


def test_check_targets_names_value_and_index():
    check_targets(torch.tensor([0, 9]), 10)
    with pytest.raises(DataError, match=r"class 10 at index 2 .*10 outputs"):
        check_targets(torch.tensor([0, 1, 10, 11]), 10)
    with pytest.raises(DataError, match=r"class -1 at index 0"):
        check_targets(torch.tensor([-1]), 10)
    with pytest.raises(DataError, match="not class ids"):
        check_targets(torch.tensor([0.5]), 10)


def test_fingerprint_sees_inputs_targets_and_sizes():
    base = _split()
    same = fingerprint(base, None, base)
    assert same == fingerprint(_split(), None, _split())
    assert len(same) == 64
    changed = TensorSplit(base.inputs.tensor + 1, base.targets())
    relabelled = TensorSplit(base.inputs.tensor, base.targets().flip(0))
    others = {fingerprint(s, None, base) for s in (changed, relabelled, _split(9), base.subset(range(9)))}
    assert same not in others
    # A view of the same nine samples is the same data.
    assert len(others) == 3


def test_fingerprint_sees_every_input_that_is_in_memory():
    x, y = torch.zeros(3000, 2), torch.zeros(3000, dtype=torch.long)
    found = set()
    for index in (None, 0, 1, 1023, 1024, 1100, 2999):
        changed = x.clone()
        if index is not None:
            changed[index, 1] = 1
        split = TensorSplit(changed, y)
        found.add(fingerprint(split))
        assert fingerprint(split.subset(range(3000))) == fingerprint(WithTargets(split, y)) == fingerprint(split)
    assert len(found) == 7


def test_data_paths_are_not_opened_by_wrapping(tmp_path: Path):
    with pytest.raises(DataError, match="is a str"):
        as_split(str(tmp_path), "train")
