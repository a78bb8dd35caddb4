"""What a metric must be, whichever package it comes from: each rule takes the metric's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.metric import describe_metric
from prunetaylor.measure.metric import Metric, Predictions, SampleMetric
from prunetaylor.measure.metrics import load_metric
from prunetaylor.taylor.objective import Task

SAMPLES = 24


def predictions(task: Task, seed: int = 0) -> Predictions:
    """Outputs that are often right, of 24 samples, with the targets of a task."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(SAMPLES, 1 if task == "binary" else 7, generator=generator)
    noise = torch.randn(outputs.shape, generator=generator)
    targets = {
        "classification": (outputs + noise).argmax(1),
        "binary": (outputs + noise > 0).float(),
        "regression": outputs + noise,
    }[str(task)]
    return Predictions(outputs, targets, outputs + noise / 4, task)


def cases(metric: Metric) -> list[Predictions]:
    """Predictions of every task that has this metric."""
    known = []
    for task in ("classification", "binary", "regression"):
        try:
            metric.records(predictions(task))  # type: ignore[arg-type]
        except UsageError:
            continue
        known.append(predictions(task))  # type: ignore[arg-type]
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
    for case in cases(metric):
        records = metric.records(case)
        assert records
        assert all(len(record) == SAMPLES for record in records)
        if isinstance(metric, SampleMetric):
            assert records[0].shape == (SAMPLES,)
        if records[0].dtype == torch.bool:
            assert metric.unit == "%"  # right or wrong is counted in percent


def does_not_depend_on_batches_or_on_the_order(name: str) -> None:
    metric = load_metric(name)
    for case in cases(metric):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
        parts = [_rows(case, order[rows]) for rows in (slice(0, 7), slice(7, None))]
        joined = [torch.cat(records) for records in zip(*map(metric.records, parts), strict=True)]
        whole = metric.value(*metric.records(case))
        assert abs(metric.value(*joined) - whole) <= 1e-6 * max(1, abs(whole))


def is_better_for_perfect_outputs(name: str) -> None:
    metric = load_metric(name)
    for case in cases(metric):
        if case.targets.is_floating_point():
            perfect = case.targets if case.outputs.shape[1] > 1 else 20 * (case.targets - 0.5)
        else:
            perfect = 20 * torch.nn.functional.one_hot(case.targets, case.outputs.shape[1]).float()
        if metric.needs == "dense outputs":
            perfect = case.dense_outputs
        best, worse = (metric.value(*metric.records(replace(case, outputs=z))) for z in (perfect, case.outputs))
        assert metric.sign * (best - worse) > 0
        assert metric.unit != "%" or best <= 100


def _rows(case: Predictions, rows: torch.Tensor) -> Predictions:
    return Predictions(case.outputs[rows], case.targets[rows], case.dense_outputs[rows], case.task)


CONTRACT: list[Callable[[str], None]] = [
    states_its_facts,
    has_a_row_of_records_for_each_sample,
    does_not_depend_on_batches_or_on_the_order,
    is_better_for_perfect_outputs,
]
