"""Sampling by Optuna for a sweep: distributions, the values of each trial, the sampler and the pruner."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.space import Choices, Parameter, Range, grid, label


def make_distribution(domain: Choices | Range) -> BaseDistribution:
    """Return Optuna's distribution over ``domain``."""
    if isinstance(domain, Choices):
        return CategoricalDistribution([label(value) for value in domain.values])
    high = domain.high if domain.count is None else domain.at(domain.count - 1)  # Optuna wants whole steps
    if domain.whole:
        return IntDistribution(int(domain.low), int(high), log=domain.log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, high, log=domain.log, step=domain.step)


def make_sampler(sweep: Sweep, number: int) -> BaseSampler:
    """Return the sampler of trial ``number``. Its seed depends on the sweep and the number, not on the worker."""
    seed = (sweep.base.config.seed * 1_000_003 + number) % 2**32
    if sweep.method != "bayes":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=startup_trials(sweep.size))


def startup_trials(trials: int) -> int:
    """Return how many trials of a ``bayes`` sweep are random: Optuna's ten, fewer in a short sweep."""
    return min(10, max(2, trials // 3))


def fixed_values(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield the values that each trial is enqueued with, by number; those that are missing are sampled later."""
    if sweep.method == "grid":
        return ({key: label(value) for key, value in row.items()} for row in grid(sweep.parameters))
    if sweep.method == "random":
        return _random_values(sweep)
    return itertools.repeat({})


def _random_values(sweep: Sweep) -> Iterator[dict[str, Any]]:
    study = optuna.create_study()
    space = {one.key: make_distribution(one.domain) for one in sweep.parameters}
    for number in itertools.count(1):
        study.sampler = make_sampler(sweep, number)
        yield study.ask(space).params


def make_pruner(sweep: Sweep) -> BasePruner:
    """Return Optuna's pruner, which stops trials early: Hyperband, or none."""
    if sweep.early is None:
        return NopPruner()
    most = sweep.early.max_iter
    return HyperbandPruner(sweep.early.min_iter, "auto" if most is None else most, sweep.early.eta)


def suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    """Let Optuna choose the value of a parameter for ``trial``."""
    d = make_distribution(parameter.domain)
    if isinstance(d, CategoricalDistribution):
        return original_value(parameter, trial.suggest_categorical(parameter.key, d.choices))
    if isinstance(d, IntDistribution):
        return trial.suggest_int(parameter.key, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(parameter.key, d.low, d.high, step=d.step, log=d.log)


def original_value(parameter: Parameter, stored: Any) -> Any:
    """Return the value that the study stores as ``stored``: a list, for instance, is stored as text."""
    if isinstance(parameter.domain, Range):
        return stored
    return next(value for value in parameter.domain.values if label(value) == stored)
