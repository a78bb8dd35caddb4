"""The loop over stages: propose a sparsity, take the step, and keep it or take it back by its measured change."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from prunetaylor.core.progress import Progress, ProgressMonitor, no_monitor
from prunetaylor.core.results.outcome import Stage, removed_at
from prunetaylor.pipeline.choice_log import ChoiceLog
from prunetaylor.pipeline.preparation import Preparation
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pipeline.stages.acceptance import decide_acceptance, describe_rejection, make_record
from prunetaylor.pipeline.stages.control import fixed_sparsities, make_control
from prunetaylor.pipeline.stages.finish import finish_stage, note_empty_layers
from prunetaylor.pipeline.stages.repair import repair_accepted
from prunetaylor.pipeline.stages.setup import make_setup
from prunetaylor.pipeline.stages.state import PruningState
from prunetaylor.pipeline.stages.step import StepOutcome, change_since_dense, reached, run_step, synchronise
from prunetaylor.pruning.selection.schedule import Fixed
from prunetaylor.pruning.selection.trust_region import TrustRegion


class Stages:
    """Prunes the job's network in place, stage by stage.

    Args:
        checkpoint_point: called wherever the state may be saved.
        monitor: told the change of the error after each stage.
    """

    def __init__(
        self,
        prepared: Preparation,
        progress: Progress,
        checkpoint_point: Callable[[], None] = lambda: None,
        monitor: ProgressMonitor = no_monitor,
    ) -> None:
        self.job, self.progress = prepared.job, progress
        self._checkpoint_point, self._monitor = checkpoint_point, monitor
        self._sampler = prepared.sampler
        self.state = PruningState(self.job.network, ChoiceLog(progress), prepared.generator)
        self.setup = make_setup(prepared, self.state.choices, progress)
        self.state.start(None if prepared.plan.removal_repair else 1.0)

    @property
    def sampler(self) -> Sampler:
        """The source of calibration samples, in a run with data."""
        assert self._sampler is not None  # whoever asks has data
        return self._sampler

    @property
    def finished(self) -> bool:
        """True once the sparsity asked for is reached."""
        return self.state.removed >= self.setup.target_count

    def run(self, saved: Mapping[str, Any] | None = None) -> None:
        """Prune to the sparsity asked for, or go on from a ``saved`` state."""
        if self._sampler is None:
            self._prune_without_data()
            return
        state = self.state
        control = make_control(self.setup, self.sampler.calibration, state.removed)
        if saved is not None:
            self.load_state_dict(saved)
        state.use_control(control, resume=True)
        if saved is None:
            self._checkpoint_point()
        if self.finished and not state.history and self.setup.plan.refinement.when != "none":
            self.progress.phase("stage 1")  # which removes nothing
            state.record(Stage(state.removed / self.job.network.prunable, None, None, None, 0.0))
            state.start_refinement()
        if state.refinement is not None:
            self._finish_stage()
            self._checkpoint_point()
        while not self.finished:
            self.run_stage()
            self._checkpoint_point()

    def prune_to(self, sparsity: float) -> None:
        """Prune to ``sparsity`` in one stage, from weights that may have been trained since the last one.

        A stage that was interrupted is finished.
        """
        state = self.state
        if state.refinement is not None:
            self._finish_stage()
        state.use_control(Fixed([sparsity], self.job.config.prune.damping), resume=state.stage is not None)
        while state.stage is not None or removed_at(sparsity, self.job.network.prunable) > state.removed:
            self.run_stage()

    def state_dict(self) -> dict[str, Any]:
        return self.state.state_dict(self.sampler)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.state.load_state_dict(saved, self.sampler)

    def run_stage(self) -> StepOutcome:
        """Take a step as the state's control proposes, and keep it or take it back as the control decides."""
        setup, state, control, network = self.setup, self.state, self.state.control, self.job.network
        assert control is not None
        if state.history and self.job.config.calibration.resample and state.stage is None:
            self.sampler.draw()
        if isinstance(control, TrustRegion) and control.hurried:
            state.choices(
                f"stages: most of the {control.budget} that this run may take are used; each from here on removes its "
                "share of what is left to remove"
            )
        self.progress.phase(f"stage {len(state.history) + 1}", len(network.layers) + 3)
        calibration = self.sampler.calibration
        outcome = run_step(setup, state, calibration, self._checkpoint_point)
        constant_error = calibration.spread(self.job.task)
        accepted = decide_acceptance(
            control,
            outcome,
            constant_error,
            damped=setup.uses_damping,
            moves_weights=setup.moves_weights,
            repair=setup.plan.repair,
        )
        state.update_repair_ratio(outcome.selection.unrepaired, outcome.change.predicted)
        first = not (state.history or state.train_steps)
        since_dense = outcome.change if first else change_since_dense(setup, state, calibration, outcome.damping)
        if accepted:
            state.accept(outcome.selection)
            repair_accepted(setup, state.masks, calibration.fit.batches, outcome.damping)
        else:
            state.take_back()
            self.progress.note(describe_rejection(outcome, constant_error))
        synchronise(network, state.masks)
        seconds = state.start_stage().seconds
        state.record(make_record(outcome, since_dense, constant_error, accepted=accepted, seconds=seconds))
        self._report(outcome)
        if accepted:
            refinement = setup.plan.refinement.when
            if refinement == "stages" or (refinement == "last" and state.removed == self.setup.target_count):
                state.start_refinement()
            self._finish_stage()
        return outcome

    def _report(self, outcome: StepOutcome) -> None:
        change = outcome.change
        numbers = {
            "sparsity": outcome.sparsity,
            "predicted_change": change.predicted,
            "measured_change": change.measured,
        }
        self.progress.measured(
            self.state.train_steps, {name: value for name, value in numbers.items() if isfinite(value)}
        )

    def _finish_stage(self) -> None:
        finish_stage(self.setup, self.state, self.sampler, self._monitor, self._checkpoint_point)

    def _prune_without_data(self) -> None:
        """Prune by a criterion that needs no samples; nothing can be predicted, measured or repaired."""
        state, network = self.state, self.job.network
        for sparsity in fixed_sparsities(self.setup, state.removed):
            start = time.perf_counter()
            state.accept(self.setup.selector.weakest(state.masks, removed_at(sparsity, network.prunable)))
            after = reached(sparsity, state.removed, network.prunable)
            state.record(Stage(after, None, None, None, time.perf_counter() - start))
            note_empty_layers(self.setup, state)
