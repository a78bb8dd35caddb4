"""The device, the processes that decode samples, the criterion, and how many epochs of fine-tuning follow."""

from __future__ import annotations

import torch

from prunetaylor.core.config.asked import AS_ASKED, asked, asked_stages
from prunetaylor.core.config.schema import Config
from prunetaylor.core.results.choice import Choice
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pruning.selection.schedule import sparsities, usual_stages
from prunetaylor.pruning.selection.trust_region import fresh_stages
from prunetaylor.runtime.device import pick_device

MAX_ELIMINATION = {"cpu": 1e12, "mps": 1e12, "cuda": 2e13}
"""Floating-point operations, by device, that ExactOBS may take by default: minutes."""
MAX_WORKERS = 8
"""Processes that decode samples by default, at most."""
CUDA_EPOCHS = 3
"""Default epochs of fine-tuning on a CUDA GPU."""


def choose_device(config: Config) -> tuple[torch.device, Choice[str]]:
    """The device that is asked for, else the best that there is."""
    device, reason = pick_device(asked(config.device))
    return device, Choice("device", str(device), reason, f"device: {device} ({reason})")


def choose_workers(config: Config, facts: Facts) -> Choice[int]:
    """Return the number of processes that decode samples."""
    key, workers = "data.workers", asked(config.data.workers)
    if workers is not None:
        return Choice(key, workers, AS_ASKED)
    if not facts.decodes:
        return Choice(key, 0, "all samples are in memory")
    return Choice(key, min(MAX_WORKERS, facts.cores), f"one for each core, {MAX_WORKERS} at most")


def choose_method(config: Config, facts: Facts) -> Choice[str]:
    """The strongest criterion that samples, network and device allow."""
    key, method = "prune.method", asked(config.prune.method)
    if not facts.has_data:
        unmeasured = "no data: accuracy drop, FLOPs and the error's change cannot be measured"
        reason, method = (AS_ASKED, method) if method else ("there are no samples to fit to", "magnitude")
        return Choice(key, method, reason, f"method: {method} ({unmeasured})")
    if method is not None:
        return Choice(key, method, AS_ASKED)
    method, reason = "exact_obs", "automatic: most accurate in our benchmarks"
    work = elimination_work(config, facts)
    if work > MAX_ELIMINATION.get(facts.device, MAX_ELIMINATION["cpu"]):
        much = f"{work / 1e12:,.2f} TFLOP on the {facts.device}"
        method, reason = "obs", f"automatic: exact_obs is more accurate, and would take {much}"
    return Choice(key, method, reason, f"method: {method} ({reason})")


def elimination_work(config: Config, facts: Facts) -> float:
    """Floating-point operations of ExactOBS in all stages, about: each takes its share of what is left.

    Where the stages are adaptive, the first goes nearly all the way and counts alone; they are many, and short, where
    each draws fresh samples to learn from.
    """
    options, drawn = config.prune, config.calibration
    stages = asked_stages(options.stages)
    if stages is None and options.schedule == "one-shot":
        learns = options.refine == "stages" or (asked(options.refine) is None and drawn.labels is not False)
        stages = fresh_stages(options.sparsity) if drawn.resample and learns else 1
    elif stages is None:
        stages = usual_stages(options.sparsity)
    levels = sparsities(options.sparsity, stages)
    return facts.elimination_work * sum(1 - level for level in [0.0, *levels[:-1]])


def choose_epochs(config: Config, facts: Facts) -> Choice[int]:
    """Return the number of epochs. Its line tells how to fix it, as the default depends on the device."""
    key, epochs = "finetune.epochs", asked(config.finetune.epochs)
    if epochs is not None:
        return Choice(key, epochs, AS_ASKED, f"fine-tuning: {f'{epochs} epochs' if epochs else 'off'}, {AS_ASKED}")
    if not facts.has_data:
        return Choice(key, 0, "there are no samples", "fine-tuning: off (there are no samples)")
    epochs, reason = 0, "automatic without a CUDA GPU"
    if facts.device == "cuda":
        epochs, reason = CUDA_EPOCHS, "automatic on a CUDA GPU"
    shown = f"{epochs} epochs" if epochs else "off"
    same = f"--epochs {epochs} gives the same on every machine"
    return Choice(key, epochs, reason, f"fine-tuning: {shown} ({reason}; {same})")
