"""What Optuna samples for a sweep: its distributions, the values of each trial, which sampler and which pruner."""

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


def distribution(domain: Choices | Range) -> BaseDistribution:
    if isinstance(domain, Choices):
        return CategoricalDistribution([label(value) for value in domain.values])
    high = domain.high if domain.count is None else domain.at(domain.count - 1)  # Optuna wants whole steps
    if domain.whole:
        return IntDistribution(int(domain.low), int(high), log=domain.log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, high, log=domain.log, step=domain.step)


def sampler(sweep: Sweep, number: int) -> BaseSampler:
    """What samples the values of trial ``number`` that are not fixed: with seeds of their own, whoever asks."""
    seed = (sweep.base.config.seed * 1_000_003 + number) % 2**32
    if sweep.method != "bayes":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=startup(sweep.size))


def startup(trials: int) -> int:
    """Trials of a ``bayes`` sweep before its model is asked: Optuna's ten, fewer in a short sweep."""
    return min(10, max(2, trials // 3))


def fixed(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """What each trial's values are fixed to when it is enqueued, by number."""
    if sweep.method == "grid":
        return ({key: label(value) for key, value in row.items()} for row in grid(sweep.parameters))
    if sweep.method == "random":
        return _random(sweep)
    return itertools.repeat({})


def _random(sweep: Sweep) -> Iterator[dict[str, Any]]:
    study = optuna.create_study()
    space = {one.key: distribution(one.domain) for one in sweep.parameters}
    for number in itertools.count(1):
        study.sampler = sampler(sweep, number)
        yield study.ask(space).params


def pruner(sweep: Sweep) -> BasePruner:
    if sweep.early is None:
        return NopPruner()
    most = sweep.early.max_iter
    return HyperbandPruner(sweep.early.min_iter, "auto" if most is None else most, sweep.early.eta)


def suggested(trial: optuna.Trial, one: Parameter) -> Any:
    d = distribution(one.domain)
    if isinstance(d, CategoricalDistribution):
        return meant(one, trial.suggest_categorical(one.key, d.choices))
    if isinstance(d, IntDistribution):
        return trial.suggest_int(one.key, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(one.key, d.low, d.high, step=d.step, log=d.log)


def meant(one: Parameter, chosen: Any) -> Any:
    """The value behind what the study keeps of it."""
    if isinstance(one.domain, Range):
        return chosen
    return next(value for value in one.domain.values if label(value) == chosen)
