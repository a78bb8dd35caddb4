"""Refinement by mini-batches: every layer's outputs, and the network's, towards the dense network's.

    minimise  E / s + c mean_l |y_l - y_l*|^2 / var(y_l*)        y_l, y_l*: outputs of layer l, pruned and dense
                                                                 s: the error of a constant answer

over all kept weights and biases at once, by Adam (Kingma & Ba 2015) on randomly changed samples. A thousand samples say
too little through the network's outputs alone: there are more weights than outputs, and what is fitted to them answers
worse elsewhere. Through the layers' outputs each sample says thousands of times more (hints: Romero et al. 2015,
section 2.2; all layers at once: Frantar & Alistarh 2022, section 6, global AdaPrune).

Batch-norm statistics stay as they are, and nothing is kept that held-out samples do not confirm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Batches, BatchShard
from prunetaylor.network.layer import Layer
from prunetaylor.network.names import movable_parameters
from prunetaylor.network.state import evaluating, restore, snapshot, trainable
from prunetaylor.pruning.intercepts import Intercept
from prunetaylor.pruning.interfaces import RefinementContext, RefinementStep, Refiner
from prunetaylor.pruning.masks import keep_masks
from prunetaylor.pruning.refiners._feature_loss import FeatureLoss, add_gradients, output_variances
from prunetaylor.pruning.training.optimizer import learning_rate
from prunetaylor.runtime.processes.training import sum_gradients
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.risk import Risk
from prunetaylor.taylor.sizes import FLOAT, Phase, Sizes, forward, graph

BATCH = 64
"""Number of samples in a step."""
RATE = 0.015
"""The largest step of a weight, as a share of its tensor's root mean square; from there it falls along a cosine."""
SMALLEST = 0.01
"""The least root mean square of a tensor for its rate: biases may all be zero."""
WARMUP = 10
"""Number of steps in which the rate rises at first."""
CHECKS = 6
"""Number of times that the held-out error is measured on the way."""


class Features(Refiner):
    """Mini-batches of Adam towards the outputs of the dense network and of each of its layers."""

    summary = "Adam by mini-batches, towards the dense layers' outputs"
    action = "matching the dense layers' outputs"
    towards = "dense layers"
    usual_steps = 300

    def refine(self, context: RefinementContext) -> Iterator[RefinementStep]:
        """Take the steps that are left of an interrupted refinement, or all."""
        network, samples = context.network, context.samples
        matching = Matching(
            network.module,
            context.dense.module,
            network.layers,
            context.intercepts,
            context.masks,
            samples.augmented(BATCH),
            context.holdout,
            scale=context.scale,
            steps=context.steps,
            chunk=samples.chunk,
            frozen=[one.name for one in network.skipped],
        )
        if context.state:
            matching.load_state_dict(context.state)
        for step in matching.run():
            text = f"held-out error {step.before:.4g} -> {step.after:.4g} (step {step.step} of {context.steps})"
            yield RefinementStep(text if step.measured else None, matching.state_dict)

    def passes(self, samples: int) -> float:
        """Return four passes of a batch: the dense network's, the pruned one's, and a backward pass of two."""
        return 4 * BATCH

    def memory(self, sizes: Sizes) -> Phase:
        """Return the memory of gradients, Adam's state, masks as numbers and the best state, and of a batch.

        The batch has its graph. Both networks' outputs of each layer, and their differences, are stored too.
        """
        outputs = FLOAT * sum(layer.outputs for layer in sizes.layers)
        stored = FLOAT * (3 * sizes.parameters + sizes.weights) + sizes.state
        batch = 2 * forward(sizes) + graph(sizes) + 3 * sizes.batch * outputs
        parts = {"optimizer": stored, "activations": batch}
        return Phase("refinement by features", {**parts, "samples": (sizes.samples + BATCH) * sizes.sample.x})


@dataclass(frozen=True)
class MatchState:
    """The state after a step: the held-out error before the first and the lowest so far; ``measured``: it is new."""

    step: int
    before: float
    after: float
    measured: bool


class Matching:
    """A refinement of ``module`` in place towards ``dense``; masked weights stay zero.

    :meth:`run` yields after each step and ends with the state of the lowest held-out error, which may be the first.
    Like a training it continues from a state; the weights between two steps are saved by the caller.

    Args:
        layers: their outputs are matched, behind the batch norm that reads them if there is one (``intercepts``).
        masks: by parameter name, True = keep.
        batches: shuffled training batches of BATCH samples, changed anew each time.
        holdout: the error of ``module`` on samples that are never fitted.
        scale: s, in the unit of the error.
        chunk: samples that are passed through the network at once.
        frozen: modules and parameters, by name, that do not move.

    Raises (in ``run``):
        NumericsError: the error on held-out samples is not finite at the start.
        UsageError: a layer is not called as in the dense network, so that there is nothing to match.
    """

    def __init__(
        self,
        module: nn.Module,
        dense: nn.Module,
        layers: Sequence[Layer],
        intercepts: Mapping[str, Intercept],
        masks: Mapping[str, Tensor],
        batches: Batches,
        holdout: Risk,
        *,
        scale: float,
        steps: int,
        chunk: int,
        frozen: Collection[str] = (),
    ) -> None:
        self.module, self.dense, self.masks, self.batches, self.holdout = module, dense, masks, batches, holdout
        self._scale, self._steps, self._chunk = scale, steps, chunk
        self._free = movable_parameters(module, frozen)
        behind = {name: one.key.rpartition(".")[0] for name, one in intercepts.items() if one.sign < 0}
        self._layers = [layer for layer in layers if layer.name not in behind]
        self._norms = [behind[layer.name] for layer in layers if layer.name in behind]
        # Before anything is moved; what a dictionary holds instead, where one is loaded.
        rates = {name: RATE * max(_root_mean_square(p.detach()), SMALLEST) for name, p in self._free.items()}
        self._state: dict[str, Any] = {"step": 0, "rates": rates, "optimizer": None, "batches": None}

    def run(self) -> Iterator[MatchState]:
        """Refine, yielding after each step."""
        state, towards = self._state, Objective(self.holdout.objective.task, "divergence")
        if state["step"] == 0:
            state["first"] = state["best"] = self.holdout.value()
            state["kept"] = snapshot(self.module)
        with ExitStack() as stack:
            for network in (self.module, self.dense):
                stack.enter_context(evaluating(network))
            stack.enter_context(trainable(self._free.values()))
            features = FeatureLoss(self.module, self.dense, self._layers, self._norms)
            self._optimizer = torch.optim.Adam([{"params": [p]} for p in self._free.values()])
            if state["optimizer"] is not None:
                self._optimizer.load_state_dict(state["optimizer"])
                self.batches.load_state_dict(state["batches"], finished=state["finished"])
            stack.enter_context(keep_masks(self.module, self._optimizer, self.masks))
            features.variances = output_variances(self.dense, self.holdout.batches, features)
            checks = {round(self._steps * (k + 1) / CHECKS) for k in range(CHECKS)}
            for share in _endless(self.batches, self._steps - state["step"]):
                self._set_rates()
                self._optimizer.zero_grad(set_to_none=True)
                for low in range(0, len(share.x), self._chunk):
                    part = slice(low, low + self._chunk)
                    x, targets = share.x.rows(part), share.y[part]
                    weight = len(x) / share.batch_size
                    add_gradients(self.module, self.dense, x, targets, features, towards, self._scale, weight)
                sum_gradients(self._free.values())
                self._optimizer.step()
                state["step"] += 1
                if state["step"] in checks:
                    self._measure()
                yield MatchState(state["step"], state["first"], state["best"], state["step"] in checks)
        self.module.zero_grad(set_to_none=True)
        restore(self.module, state["kept"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the coming steps depend on; call it between two steps."""
        place = self.batches.state_dict()
        finished = place["given"] == len(self.batches)
        return {
            **self._state,
            "optimizer": self._optimizer.state_dict(),
            "batches": place,
            "finished": finished,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that state once :meth:`run` is called."""
        self._state = dict(state)

    def _set_rates(self) -> None:
        share = learning_rate(self._state["step"], self._steps, 1.0, WARMUP / self._steps)
        for group, rate in zip(self._optimizer.param_groups, self._state["rates"].values(), strict=True):
            group["lr"] = rate * share

    def _measure(self) -> None:
        error = self.holdout.value_or_inf()
        if error < self._state["best"]:
            self._state |= {"best": error, "kept": snapshot(self.module)}


def _endless(batches: Batches, steps: int) -> Iterator[BatchShard]:
    count = 0
    while count < steps:
        for share in batches.shards():
            count += 1
            yield share
            if count == steps:  # before another is drawn: a run that goes on after the last step draws none either
                return


def _root_mean_square(x: Tensor) -> float:
    """Return the root mean square of the entries that are not zero."""
    count = int(x.count_nonzero())
    return float((x.float().square().sum() / count).sqrt()) if count else 0.0
