"""The battery of networks can be run: benchmarks/battery.py counts what becomes of all of them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from battery import run

from support.battery.cases import load_cases

SHORT = [
    "layers/conv1d",
    "layers/multihead_attention",
    "layers/lstm",
    "layers/raw_parameter_einsum",
    "operators/grid_sample",
    "outputs/named_tuple",
    "outputs/features_then_logits",
    "tasks/multi_label",
    "tasks/segmentation_with_ignored_pixels",
    "tasks/embedding",
    "batches/half_weights",
    "batches/two_tensors_in_a_tuple",
    "batches/dict_with_labels_inside",
    "batches/grey_images_for_a_network_of_three_channels",
]
LONG = [
    "outputs/dict_of_another_name",
    "outputs/data_class",
    "outputs/auxiliary_heads",
    "outputs/its_own_loss",
    "outputs/softmax_at_the_end",
    "tasks/regression",
    "tasks/regression_one_number",
    "tasks/binary",
    "tasks/soft_labels",
    "tasks/one_hot_labels",
    "tasks/segmentation",
    "tasks/language_model",
    "tasks/autoencoder",
    "tasks/image_to_image",
    "tasks/sequence_regression",
    "batches/float64_samples",
    "batches/float64_weights",
    "batches/bfloat16_weights",
    "batches/two_tensors_in_a_dict",
    "batches/a_list_as_one_argument",
    "batches/tabular_mixed",
    "batches/padding_mask",
    "batches/packed_sequences",
    "batches/no_labels",
    "batches/graph",
    "layers/linear",
    "layers/conv3d",
    "layers/transposed",
    "layers/grouped_and_depthwise",
    "layers/bilinear",
    "layers/transformer_encoder",
    "layers/transformer_seq_first",
    "layers/lstm_two_layers_both_ways",
    "layers/gru",
    "layers/rnn",
    "layers/lstm_cell",
    "layers/functional_linear_of_a_module",
    "layers/raw_parameter_matmul",
    "layers/raw_parameter_conv",
    "layers/own_linear_class",
    "layers/scaled_linear_subclass",
    "layers/lora",
    "layers/called_twice",
    "layers/tied_weights",
    "layers/experts",
    "layers/unused_layer",
    "layers/frozen_backbone",
    "operators/custom_function",
    "operators/reentrant_checkpoint",
    "operators/checkpoint_without_reentry",
    "operators/data_parallel",
    "operators/compiled",
    "operators/hook_that_closes_over_itself",
    "operators/weight_through_the_state",
]
REFUSED = [
    "operators/batch_statistics_in_evaluation",
    "operators/script_module",
    "operators/dropout_in_evaluation",
    "operators/iterable_data_set",
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


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in REFUSED])
def test_a_case_is_rightly_refused(name: str) -> None:
    assert run(name, load_cases()[name])["status"] == "rightly refused"


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in IN_PART])
def test_a_case_with_large_embeddings_works(name: str) -> None:
    row = run(name, load_cases()[name])
    assert (row["status"], row.get("why")) == ("in part", None)
    assert row["distance"] < row["magnitude"]


def test_cases_have_names_of_their_own() -> None:
    assert len(load_cases()) > 90
