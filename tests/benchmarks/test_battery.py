"""The battery of networks can be run: benchmarks/battery.py counts what becomes of all of them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from battery import run

from support.battery.cases import load_cases

SHORT = [
    "layers/conv1d",
    "outputs/named_tuple",
    "batches/half_weights",
    "batches/two_tensors_in_a_tuple",
    "batches/dict_with_labels_inside",
    "batches/grey_images_for_a_network_of_three_channels",
]
LONG = [
    "batches/float64_samples",
    "batches/float64_weights",
    "batches/bfloat16_weights",
    "batches/two_tensors_in_a_dict",
    "batches/a_list_as_one_argument",
    "batches/tabular_mixed",
    "batches/graph",
]
IN_PART = [
    "batches/token_ids",
    "batches/token_ids_uint8",
    "batches/token_ids_int32",
    "batches/variable_lengths",
    "batches/embedding_bag_with_offsets",
]
"""Less than half of their parameters is prunable: the rest are embeddings."""


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_a_case_works(name: str) -> None:
    row = run(name, load_cases()[name])
    assert (row["status"], row.get("why")) == ("works", None)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in IN_PART])
def test_a_case_with_large_embeddings_works(name: str) -> None:
    row = run(name, load_cases()[name])
    assert (row["status"], row.get("why")) == ("in part", None)
    assert row["distance"] < row["magnitude"]


def test_cases_have_names_of_their_own() -> None:
    assert len(load_cases()) > 90
