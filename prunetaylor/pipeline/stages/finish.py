"""The end of an accepted stage: its refinement, and its metric for the report."""

from __future__ import annotations

import time
from collections.abc import Callable

from prunetaylor.core.progress import ProgressMonitor
from prunetaylor.measure.evaluate import evaluate
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pipeline.stages.refinement import refine_network
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.pipeline.stages.state import PruningState


def finish_stage(
    setup: StageSetup,
    state: PruningState,
    sampler: Sampler,
    monitor: ProgressMonitor,
    checkpoint_point: Callable[[], None],
) -> None:
    """Run the refinement of the last stage, if one has been started, and measure the stage for the report."""
    job = setup.job
    if state.refinement is not None:
        _refine(setup, state, sampler, checkpoint_point)
    # Nothing is chosen by this metric.
    evaluation = evaluate(
        job.network.module, sampler.calibration.holdout.batches, job.task, job.metric, setup.dense.module
    )
    state.amend(metric=evaluation.metrics[job.metric.name])
    note_empty_layers(setup, state)
    if (measured := state.history[-1].cumulative_measured) is not None:
        monitor("stage", len(state.history), measured)


def note_empty_layers(setup: StageSetup, state: PruningState) -> None:
    """Name the layers that have no weight left."""
    for layer in setup.job.network.layers:
        if not bool(state.masks[layer.parameter].any()):
            setup.choices(f"{layer.name}: no weight of it is left")


def _refine(setup: StageSetup, state: PruningState, sampler: Sampler, checkpoint_point: Callable[[], None]) -> None:
    refinement = setup.plan.refinement
    assert state.refinement is not None
    before, start = state.history[-1].seconds, time.perf_counter()
    setup.progress.phase("refine", refinement.steps)
    for step in refine_network(setup, state, sampler):
        if step.text is not None:
            setup.progress.note(f"refinement {step.text}")
        state.refine(step.state)
        setup.progress.step()
        state.amend(seconds=before + time.perf_counter() - start)
        checkpoint_point()
    state.end_refinement()
