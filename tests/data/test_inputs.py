"""Inputs of any nesting: rows, joining, moving and calling, whatever the tree."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunetaylor.core.errors import DataError
from prunetaylor.data.datasets import DatasetSplit
from prunetaylor.data.inputs import Inputs

COUNT = 5


def leaf(seed: int, shape: list[int], kind: torch.dtype) -> Tensor:
    drawn = torch.randint(0, 9, (COUNT, *shape), generator=torch.Generator().manual_seed(seed))
    return drawn.to(kind)


leaves = st.builds(
    leaf,
    st.integers(0, 99),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]),
)
others = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner | others, min_size=1, max_size=3),
        st.tuples(inner, inner | others),
        st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
).filter(lambda tree: any(isinstance(part, Tensor) for part in tree_leaves(tree)))


def same(one: Inputs, other: Inputs) -> bool:
    a, b = tree_leaves(one.tree), tree_leaves(other.tree)
    pairs = zip(a, b, strict=True)
    return len(one) == len(other) and all(
        torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y for x, y in pairs
    )


@given(trees, st.integers(0, COUNT))
def test_parts_joined_are_the_whole(tree: Any, cut: int) -> None:
    whole = Inputs.of(tree, COUNT)
    parts = [whole.rows(slice(0, cut)), whole.rows(slice(cut, None))]
    assert [len(part) for part in parts] == [cut, COUNT - cut]
    assert same(Inputs.cat([part for part in parts if len(part)]), whole)
    assert same(Inputs.cat(whole.split(3)), whole)


@given(trees, st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=8))
def test_rows_by_index_are_rows_one_by_one(tree: Any, chosen: list[int]) -> None:
    whole = Inputs.of(tree)
    assert same(whole.rows(chosen), Inputs.cat([whole.rows(slice(i, i + 1)) for i in chosen]))


@given(trees)
def test_moving_keeps_everything(tree: Any) -> None:
    whole = Inputs.of(tree)
    assert len(whole) == COUNT
    assert same(whole.to("cpu"), whole)
    assert whole.to("meta").device.type == "meta"
    assert whole.elements == sum(tensor.numel() for tensor in whole.tensors())


class Echo(nn.Module):
    def forward(self, *positional: Any, **named: Any) -> Any:
        return positional, named


class One(nn.Module):
    def forward(self, sample: Any) -> Any:
        return sample


class Named(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        return ids, mask


@pytest.mark.parametrize(
    ("tree", "positional", "named"),
    [
        (torch.zeros(2, 3), 1, []),
        ((torch.zeros(2), torch.ones(2)), 2, []),
        ([torch.zeros(2), torch.ones(2), 3], 3, []),
        ({"a": torch.zeros(2), "b": torch.ones(2)}, 0, ["a", "b"]),
        (UserDict(a=torch.zeros(2)), 0, ["a"]),
    ],
)
def test_a_call_passes_arguments_by_the_form(tree: Any, positional: int, named: list[str]) -> None:
    got_positional, got_named = Inputs.of(tree).call(Echo())  # type: ignore[misc]
    assert (len(got_positional), list(got_named)) == (positional, named)


def test_a_network_of_one_argument_gets_the_whole_sample() -> None:
    pair, mapping = (torch.zeros(2), torch.ones(2)), {"a": torch.zeros(2), "b": torch.ones(2)}
    assert isinstance(Inputs.of(pair).call(One()), tuple)
    assert isinstance(Inputs.of(mapping).call(One()), dict)
    ids, mask = Inputs.of({"ids": pair[0], "mask": pair[1]}).call(Named())  # type: ignore[misc]
    assert torch.equal(ids, pair[0])
    assert torch.equal(mask, pair[1])


def test_a_state_replaces_parameters_in_a_call() -> None:
    network = nn.Bilinear(2, 2, 1, bias=False)
    inputs = Inputs.of((torch.ones(3, 2), torch.ones(3, 2)))
    assert torch.equal(inputs.call(network, {"weight": torch.ones(1, 2, 2)}), torch.full((3, 1), 4.0))


def packed(graphs: list[tuple[Tensor, int]]) -> tuple[Mapping[str, Tensor], Tensor]:
    """Nodes of all graphs in one tensor, with the graph of each."""
    sizes = torch.tensor([len(nodes) for nodes, _ in graphs])
    batch = {"x": torch.cat([nodes for nodes, _ in graphs]), "of": torch.arange(len(graphs)).repeat_interleave(sizes)}
    return batch, torch.tensor([y for _, y in graphs])


def test_packed_graphs_are_cut_at_any_sample() -> None:
    graphs = [(torch.full((size, 2), float(size)), size) for size in (3, 1, 4, 2)]
    inputs, targets = DatasetSplit(graphs, collate=packed).fetch(range(4))
    assert (len(inputs), targets.tolist()) == (4, [3, 1, 4, 2])
    assert not inputs.divisible
    changed = inputs.change_tensors(lambda part: part + 1)
    for rows in (slice(2, 4), [2, 3]):
        part = changed.rows(rows).tree
        assert isinstance(part, dict)
        assert part["x"][:, 0].tolist() == [5.0] * 4 + [3.0] * 2
        assert part["of"].tolist() == [1, 1, 1, 1, 2, 2]
    assert same(Inputs.cat([inputs.rows(slice(0, 1)), inputs.rows(slice(1, 4))]), inputs)


def test_padded_samples_are_cut_with_their_padding() -> None:
    """So that each is compared with what the dense network computed from the same numbers."""

    def pad(rows: list[tuple[Tensor, int]]) -> Any:
        x = nn.utils.rnn.pad_sequence([x for x, _ in rows], batch_first=True)
        return x, torch.tensor([y for _, y in rows])

    inputs, _ = DatasetSplit([(torch.ones(size), 0) for size in (3, 1)], collate=pad).fetch([0, 1])
    part = inputs.rows([1]).tensor
    assert part is not None
    assert part.tolist() == [[1.0, 0.0, 0.0]]


def test_inputs_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be joined"):
        Inputs.cat([Inputs.of(torch.zeros(2, 3)), Inputs.of(torch.zeros(2, 4))])
    with pytest.raises(DataError, match="no tensor"):
        Inputs.of({"a": 3})


def test_a_description_has_types_and_shapes() -> None:
    tree = {"ids": torch.zeros(2, 6, dtype=torch.int64), "more": (torch.zeros(2), None)}
    assert Inputs.of(tree).describe() == "{ids: int64 (6,), more: (float32 (), NoneType)}"
