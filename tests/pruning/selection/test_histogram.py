"""Counts that add up to the weights that were there, apart by what became of them."""

import math

import torch

from prunetaylor.pruning.selection.histogram import BINS, histogram


def test_it_counts_what_was_left_by_what_became_of_it() -> None:
    scores = {"a": torch.tensor([[1e-3, 1e-2], [1.0, 10.0]]), "b": torch.tensor([0.0, 5.0, 7.0])}
    before = {"a": torch.tensor([[True, True], [True, True]]), "b": torch.tensor([True, True, False])}
    after = {"a": torch.tensor([[False, True], [True, True]]), "b": torch.tensor([False, True, False])}
    found = histogram(scores, before, after)
    assert found is not None
    assert len(found.edges) == BINS + 1
    assert (sum(found.removed), sum(found.kept)) == (2, 4)
    assert found.removed[0] == 1  # the zero
    assert found.edges[-1] == 1
    assert math.isclose(found.threshold, -3, abs_tol=1e-6)
    assert found.kept[-1] == 1


def test_nothing_removed_and_nothing_to_count() -> None:
    ones, every = {"a": torch.ones(4)}, {"a": torch.ones(4, dtype=torch.bool)}
    found = histogram(ones, every, every)
    assert found is not None
    assert found.threshold is None
    assert sum(found.kept) == 4
    assert histogram({"a": torch.zeros(4)}, every, every) is None
    assert histogram(ones, {"a": ~every["a"]}, {"a": ~every["a"]}) is None
