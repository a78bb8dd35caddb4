"""The published keys of the report."""

import json
from dataclasses import replace

from prunetaylor.core.results.metric import describe_metric
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.report.json_report import finite, side_to_json, to_json

_KEYS = {
    "": "schema_version verdict warnings method metric dense pruned constant sparsity drop drop_pp loss_rise stages "
    "believed_to prediction_check first_order layers skipped unfinished epochs choices plan seconds memory time flips "
    "classes histogram gate files seed device versions hashes configuration",
    "metric": "name goal unit",
    "drop": "value low high unit",
    "dense": "metrics parameters nonzero flops flops_nonzero bytes",
    "pruned": "metrics parameters nonzero flops flops_nonzero bytes",
    "sparsity": "asked obtained prunable removed prunable_share",
    "drop_pp": "value low high",
    "first_order": "share gradient_norm noise_norm kept labels",
    "versions": "prunetaylor python torch torchvision",
}
_STAGE = (
    "sparsity predicted_change measured_change gain_ratio seconds accepted noise damping cumulative_predicted "
    "cumulative_measured believed cumulative_ratio metric"
)


def test_the_keys_are_those_that_are_published(outcome: PruneResult) -> None:
    document = to_json(outcome, {"model": "m.safetensors"}, {"seed": 3})
    for section, keys in _KEYS.items():
        assert set(document[section] if section else document) == set(keys.split()), section
    assert list(document["stages"][0]) == _STAGE.split()
    assert set(document["layers"][0]) == {"name", "shape", "removed", "sparsity"}
    assert set(document["skipped"][0]) == {"name", "why"}
    assert document["schema_version"] == 1
    assert document["dense"]["metrics"]["top1"] == 88.29
    assert document["files"] == {"model": "m.safetensors"}
    assert document["configuration"] == {"seed": 3}
    assert document["hashes"] == {"checkpoint": "ab", "data": "cd"}


def test_what_is_not_finite_is_null_and_the_rest_is_strict_json(outcome: PruneResult) -> None:
    document = to_json(outcome, {})
    assert document["pruned"]["metrics"]["loss"] is None
    assert document["stages"][1]["seconds"] is None
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_run_without_data(outcome: PruneResult) -> None:
    bare = replace(outcome.dense, metrics={}, flops=None, flops_nonzero=None)
    document = to_json(replace(outcome, dense=bare, pruned=bare, drop=None, first_order=None, stages=[]), {})
    assert document["drop_pp"] is None
    assert document["first_order"] is None
    assert document["dense"]["metrics"] == {}
    assert document["dense"]["flops"] is None


def test_one_side(outcome: PruneResult) -> None:
    document = side_to_json(outcome.dense, describe_metric("loss"), 1.5, "cpu")
    assert document["metric"] == {"name": "loss", "goal": "min", "unit": ""}
    assert document["metrics"] == {"top1": 88.29, "loss": 0.4321}
    assert document["parameters"] == 272474


def test_finite_keeps_all_else() -> None:
    value = {"a": (1, 2.5, float("inf")), 3: [None, True, "x", {"b": float("-inf")}]}
    assert finite(value) == {"a": [1, 2.5, None], "3": [None, True, "x", {"b": None}]}
