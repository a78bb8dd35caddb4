"""What a metric must be, whichever package it comes from: each rule takes the metric's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.metric import describe_metric
from prunetaylor.measure.metric import Metric, Predictions, SampleMetric
from prunetaylor.measure.metrics import load_metric
from support.predictions import SAMPLES, case


def cases(metric: Metric) -> list[Predictions]:
    """Predictions of every task that has this metric."""
    known = []
    for predictions in (case("classification"), case("binary", outputs=1), case("regression")):
        try:
            metric.records(predictions)
        except UsageError:
            continue
        known.append(predictions)
    return known


def states_its_facts(name: str) -> None:
    metric = load_metric(name)
    assert metric.name == name
    assert metric.title
    assert metric.summary
    assert metric.goal in ("max", "min")
    assert metric.unit in ("%", "")
    described = describe_metric(name)
    assert (described.goal, described.unit, described.title) == (metric.goal, metric.unit, metric.title)


def has_a_row_of_records_for_each_sample(name: str) -> None:
    metric = load_metric(name)
    assert cases(metric)
    for predictions in cases(metric):
        records = metric.records(predictions)
        assert records
        assert all(len(record) == SAMPLES for record in records)
        if isinstance(metric, SampleMetric):
            assert records[0].shape == (SAMPLES,)
        if records[0].dtype == torch.bool:
            assert metric.unit == "%"  # right or wrong is counted in percent


def does_not_depend_on_batches_or_on_the_order(name: str) -> None:
    metric = load_metric(name)
    for predictions in cases(metric):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
        parts = [_rows(predictions, order[rows]) for rows in (slice(0, 7), slice(7, None))]
        joined = [torch.cat(records) for records in zip(*map(metric.records, parts), strict=True)]
        whole = metric.value(*metric.records(predictions))
        assert abs(metric.value(*joined) - whole) <= 1e-6 * max(1, abs(whole))


def is_better_for_perfect_outputs(name: str) -> None:
    metric = load_metric(name)
    for predictions in cases(metric):
        if predictions.targets.is_floating_point():
            perfect = predictions.targets if predictions.outputs.shape[1] > 1 else 20 * (predictions.targets - 0.5)
        else:
            perfect = 20 * torch.nn.functional.one_hot(predictions.targets, predictions.outputs.shape[1]).float()
        if metric.needs == "dense outputs":
            perfect = predictions.dense_outputs
        best, worse = (
            metric.value(*metric.records(replace(predictions, outputs=z))) for z in (perfect, predictions.outputs)
        )
        assert metric.sign * (best - worse) > 0
        assert metric.unit != "%" or best <= 100


def _rows(predictions: Predictions, rows: torch.Tensor) -> Predictions:
    return Predictions(
        predictions.outputs[rows], predictions.targets[rows], predictions.dense_outputs[rows], predictions.task
    )


CONTRACT: list[Callable[[str], None]] = [
    states_its_facts,
    has_a_row_of_records_for_each_sample,
    does_not_depend_on_batches_or_on_the_order,
    is_better_for_perfect_outputs,
]
