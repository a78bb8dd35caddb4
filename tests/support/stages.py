"""Stages that a test drives by hand, from prepared samples to any control of its own."""

from __future__ import annotations

import copy

import torch
from torch import nn

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import Silent
from prunetaylor.data.load import from_python
from prunetaylor.pipeline.estimates.memory import MemoryPlanner
from prunetaylor.pipeline.job import make_job
from prunetaylor.pipeline.preparation import copy_network, prepare
from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pipeline.stages.state import StepControl
from support.runs import TEST, TRAIN


def prepared(model: nn.Module, train: object = TRAIN, control: StepControl | None = None, **settings: object) -> Stages:
    """Stages before the first step; ``a__b`` is the setting a.b."""
    usual = {"calibration.samples": 120, "finetune.epochs": 0, "data.workers": 0, "device": "cpu"}
    usual |= {"prune.refine": "none", "cache.enabled": False}
    config = from_values(usual | {key.replace("__", "."): value for key, value in settings.items()}).config
    samples = from_python(train, TEST)
    job = make_job(config, copy.deepcopy(model), samples, torch.device("cpu"))
    stages = Stages(prepare(job, copy_network(job), MemoryPlanner(job), Silent()), Silent())
    if control is not None:
        stages.state.use_control(control)
    return stages


def run_all(stages: Stages) -> Stages:
    """Run stages until the sparsity asked for is reached."""
    while not stages.finished:
        stages.run_stage()
    return stages
