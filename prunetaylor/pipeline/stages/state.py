"""The one state that the stages of a run share, and from which an interrupted run resumes.

``PruningState`` is written by its own methods only. A run that is interrupted within a stage resumes within it: the
stage's ``StageProgress`` holds the weights that the stage started from and what has been computed since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunetaylor.core.results.outcome import Histogram, Stage
from prunetaylor.network.network import Network
from prunetaylor.network.state import restore, snapshot
from prunetaylor.pipeline.choice_log import ChoiceLog
from prunetaylor.pipeline.files.resume import restoring
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pruning.selection.schedule import Fixed
from prunetaylor.pruning.selection.selector import Selection
from prunetaylor.pruning.selection.trust_region import TrustRegion

StepControl = Fixed | TrustRegion
"""Proposes the sparsity of each stage and decides whether it is accepted."""


@dataclass
class StageProgress:
    """A stage that is being computed; a resumed run skips the parts that are already here."""

    weights: dict[str, Tensor]  # the network's state before the stage
    layer_scores: dict[str, Tensor] = field(default_factory=dict)  # by parameter; emptied once weights are selected
    selection: Selection | None = None
    repaired: list[str] = field(default_factory=list)  # names of the layers that are repaired already
    restored: Mapping[str, Tensor] | None = None  # in a resumed run: the network's state when the state was saved
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """The time spent on the stage, in all processes that worked on it."""
        return time.perf_counter() - self.start

    def select(self, selection: Selection) -> None:
        """Record the selection, and drop the scores that it was made from."""
        self.selection, self.layer_scores = selection, {}

    def add_repaired(self, layer: str) -> None:
        """Record that a layer is repaired."""
        self.repaired.append(layer)

    def state_dict(self, network: Network) -> dict[str, Any]:
        """Everything but ``weights``; ``network`` is as it is now."""
        state = {"layer_scores": self.layer_scores, "selection": None, "seconds": self.seconds}
        if self.selection is None:
            return state
        changed = {"selection": self.selection.state_dict(), "repaired": self.repaired}
        return {**state, **changed, "module": snapshot(network.module)}

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], network: Network, place: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> StageProgress:
        """Restore a stage whose initial weights ``network`` has; ``place`` moves tensors by parameter to its device."""
        progress = cls(snapshot(network.module), place(state["layer_scores"]))
        progress.start -= state["seconds"]
        if state["selection"] is not None:
            selection = state["selection"]
            progress.selection = Selection.from_state({**selection, "masks": place(selection["masks"])})
            progress.repaired, progress.restored = list(state["repaired"]), state["module"]
        return progress


class PruningState:
    """The state of pruning: everything that the coming stages depend on.

    Attributes:
        network: the network that is pruned in place.
        choices: the lines that the report lists.
        generator: the source of all random draws of the stages.
        masks: True = keep, by parameter name.
        history: one record a stage, also of those that were taken back.
        histogram: the scores of the last accepted stage.
        stage: the stage being computed; None between stages.
        control: sizes and judges the stages; None where nothing has been pruned yet.
        repair_ratio: the share of the change by removal alone that remained after repair in the last stage; None
            where it is unknown.
        train_steps: optimiser steps that the network was trained for since it was dense.
    """

    def __init__(self, network: Network, choices: ChoiceLog, generator: torch.Generator) -> None:
        self.network, self.choices, self.generator = network, choices, generator
        self.masks: dict[str, Tensor] = {}
        self.history: list[Stage] = []
        self.histogram: Histogram | None = None
        self.stage: StageProgress | None = None
        self.control: StepControl | None = None
        self.repair_ratio: float | None = None
        self.train_steps = 0
        self.refinement: Mapping[str, Any] | None = None
        self._refinement_state: Callable[[], dict[str, Any]] = dict
        self._saved_control: Mapping[str, Any] | None = None

    @property
    def removed(self) -> int:
        """The number of removed weights."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    @property
    def stage_number(self) -> int:
        """The number, from 1, of the stage that starts at the present weights; one that is tried again keeps its."""
        return 1 + sum(stage.accepted for stage in self.history)

    @property
    def unfinished(self) -> bool:
        """True if a stage or its refinement was interrupted."""
        return self.stage is not None or self.refinement is not None

    def start(self, repair_ratio: float | None = None) -> None:
        """Begin with the weights that are not zero yet."""
        self.masks, self.repair_ratio = self.network.masks(), repair_ratio

    def use_control(self, control: StepControl, *, resume: bool = False) -> None:
        """Size and judge the coming stages by ``control``; with ``resume`` from where a loaded state left its own."""
        if resume and self._saved_control is not None:
            with restoring():
                control.load_state_dict(self._saved_control)
        self.control = control

    def start_stage(self) -> StageProgress:
        """Begin the next stage at the present weights, or go on with the one that was interrupted."""
        if self.stage is None:
            self.stage = StageProgress(snapshot(self.network.module))
        return self.stage

    def accept(self, selection: Selection) -> None:
        """Adopt the masks of the stage's selection; the network has been moved already."""
        self.masks, self.histogram = selection.masks, selection.histogram

    def take_back(self) -> None:
        """Give the network the weights that it had before the stage."""
        assert self.stage is not None
        restore(self.network.module, self.stage.weights)

    def update_repair_ratio(self, unrepaired: float | None, repaired: float) -> None:
        """Learn from a stage's predicted changes how much of the change by removal alone remains after repair."""
        if unrepaired is not None and unrepaired > 0 < repaired:
            self.repair_ratio = repaired / unrepaired
        elif self.repair_ratio is None:
            self.repair_ratio = 1.0  # a gain: no share of it remains

    def record(self, stage: Stage) -> None:
        """End the stage with its record."""
        self.history.append(stage)
        self.stage = None

    def amend(self, **values: Any) -> None:
        """Set values of the last stage's record."""
        self.history[-1] = replace(self.history[-1], **values)

    def start_refinement(self) -> None:
        """Let a refinement of the last stage begin."""
        self.refinement = {}

    def refine(self, state: Callable[[], dict[str, Any]]) -> None:
        """Note the progress of a refinement; ``state`` gives what its next step depends on."""
        self._refinement_state = state

    def end_refinement(self) -> None:
        """Let the refinement be complete."""
        self.refinement = None

    def train(self, steps: int) -> None:
        """Note that the network has been trained for ``steps`` optimiser steps in all."""
        self.train_steps = steps

    def revert(self, masks: Mapping[str, Tensor], stages: int) -> None:
        """Go back to ``masks`` of an earlier time, after ``stages`` stages; the later ones count as taken back."""
        self.masks = self._place(masks)
        if stages < len(self.history):
            self.history = [s if k < stages else replace(s, accepted=False) for k, s in enumerate(self.history)]
            self.histogram = None  # it is of the last of these

    def state_dict(self, sampler: Sampler) -> dict[str, Any]:
        """Plain values and tensors. Within a stage they are those that it started from, and its progress beside."""
        return {
            "module": snapshot(self.network.module) if self.stage is None else self.stage.weights,
            "masks": self.masks,
            "stage": None if self.stage is None else self.stage.state_dict(self.network),
            "history": [asdict(stage) for stage in self.history],
            "generator": self.generator.get_state(),
            "sampler": sampler.state_dict(),
            "control": None if self.control is None else self.control.state_dict(),
            "repair_ratio": self.repair_ratio,
            "choices": self.choices.state_dict(),
            "histogram": None if self.histogram is None else asdict(self.histogram),
            "refinement": None if self.refinement is None else self._refinement_state(),
            "train_steps": self.train_steps,
        }

    @restoring()
    def load_state_dict(self, state: Mapping[str, Any], sampler: Sampler) -> None:
        """Resume from a saved state, after :meth:`start`. UnreadableState where it is not of this run."""
        sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["generator"])
        restore(self.network.module, state["module"])
        self.masks = self._place(state["masks"])
        self.history = [Stage(**stage) for stage in state["history"]]
        self.histogram = None if state["histogram"] is None else Histogram(**state["histogram"])
        self.repair_ratio, self.train_steps = state["repair_ratio"], state["train_steps"]
        self.choices.load_state_dict(state["choices"])
        self.refinement, self._saved_control = state["refinement"], state["control"]
        self._refinement_state = partial(dict, self.refinement or {})
        if state["stage"] is not None:
            self.stage = StageProgress.from_state(state["stage"], self.network, self._place)

    def _place(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move tensors of prunable parameters to the parameters' devices."""
        return {name: tensor.to(self.masks[name].device) for name, tensor in tensors.items()}
