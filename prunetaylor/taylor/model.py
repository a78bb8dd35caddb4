"""The Taylor model predicts how the error changes when the state moves by d.

    E(w + d) - E(w)  =  g'd + 1/2 d'G d + ...

with g the gradient and G the Gauss-Newton matrix J'HJ of the whole network: J the Jacobian of the outputs, H the
error's Hessian in the outputs (Schraudolph 2002; Martens 2020, section 8). Both terms need J d only, one forward-mode
product a sample: no matrix is ever formed, no block is left out, nothing has to be converted from one layer's units
to another's. For the divergence at the dense weights g = 0 and G is the exact Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.layer import Layer
from prunetaylor.network.names import own_names
from prunetaylor.network.network import Network
from prunetaylor.network.state import evaluating, snapshot
from prunetaylor.runtime.processes.exchange import sum_numbers
from prunetaylor.taylor.curvature.cache import Cache
from prunetaylor.taylor.curvature.directional import differentiate_outputs
from prunetaylor.taylor.curvature.finite import not_finite_along
from prunetaylor.taylor.curvature.fisher import FisherRows
from prunetaylor.taylor.curvature.gradients import gauss_newton_diagonal, mean_gradient, output_sensitivity
from prunetaylor.taylor.curvature.gram import Moments, Positions, layer_moments, pack, unpack
from prunetaylor.taylor.curvature.solve import Note
from prunetaylor.taylor.layer_scores import LayerScores
from prunetaylor.taylor.memory import release
from prunetaylor.taylor.risk import Risk

_SENSITIVITIES = "output sensitivities"


@dataclass(frozen=True)
class Prediction:
    """The two terms of a predicted change of the mean error."""

    first_order: float  # g'd
    second_order: float  # d'G d / 2

    @property
    def first_order_share(self) -> float:
        """Return the share of the first-order term in the sum of both absolute values, in [0, 1]."""
        total = abs(self.first_order) + abs(self.second_order)
        return abs(self.first_order) / total if total > 0 else 0.0

    def change(self, keep_first: bool) -> float:
        """Return the predicted change of the mean error, with the first-order term or without."""
        return self.second_order + (self.first_order if keep_first else 0.0)


class TaylorModel:
    """The error's expansion at the network's current state, over the samples of ``risk``.

    Criteria score with its curvatures, which are fitted when a criterion first asks for them. The state is copied, so
    that predictions are about this point after the network has moved on.

    Args:
        where: the output positions whose inputs enter the layer Grams.
        intercepts: names of the layers with a bias or batch norm that compensates a shift of their mean outputs.
        cache: holds fits across runs; it keeps those of ``stage`` 1, where a run starts, before others.
        holdout_model: the expansion over samples that no weight is fitted to.
        keep_first: predictions and criteria use the first-order term.
        trained_between_stages: the step is one of a gradual schedule, whose network is trained between steps.
        layer_scores: the scores of layers that an interrupted run had computed.
    """

    def __init__(
        self,
        network: Network,
        risk: Risk,
        where: Positions,
        *,
        damping: float,
        seed: int,
        note: Note,
        intercepts: Collection[str],
        cache: Cache | None = None,
        stage: int = 1,
        holdout_model: TaylorModel | None = None,
        keep_first: bool = True,
        trained_between_stages: bool = False,
        layer_scores: LayerScores | None = None,
    ) -> None:
        self.network, self.risk, self.where = network, risk, where
        self.damping, self.seed, self.note, self.holdout_model = damping, seed, note, holdout_model
        self.intercepts, self.cache, self.stage = intercepts, cache, stage
        self.keep_first, self.trained_between_stages = keep_first, trained_between_stages
        self._layer_scores = layer_scores or LayerScores()
        self.made: dict[str, Any] = {}
        """Results of a criterion at this point that it may need again, by the criterion's name."""
        self.state = snapshot(network.module)

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Return the layer Grams by layer name."""

        def fit() -> dict[str, Tensor]:
            return pack(layer_moments(self.network.module, self.network.layers, self.risk.batches, self.where))

        drawn = self.where.offsets, self.where.turns
        moments = unpack(self._fitted("layer Grams", fit, {"per_sample": self.where.per_sample}, drawn))
        for name in moments if self.stage == 1 else ():
            dead = self._gram(moments[name], name).diagonal(dim1=-2, dim2=-1) == 0
            if bool(dead.any()):
                how = "never change" if name in self.intercepts else "are always zero"
                count = f"{int(dead.sum())} of {dead.numel()} inputs {how} on the calibration samples"
                self.note(f"{name}: {count} (dead units?); their weights look free to remove")
        return moments

    def gram(self, layer: Layer) -> Tensor:
        """Return H (G, C, C) of a layer's inputs: moving a row by d changes its output by d'H d in the mean square.

        H is centred if an intercept compensates the means.
        """
        return self._gram(self.moments[layer.name], layer.name)

    def _gram(self, moments: Moments, name: str) -> Tensor:
        return (moments.centred() if name in self.intercepts else moments.plain())[0]

    @cached_property
    def gradient(self) -> dict[str, Tensor]:
        """Return g, the gradient of the mean error, by the names of the prunable weights."""
        return self._fitted_to_error("gradient", lambda: mean_gradient(self.risk, self.network.layers))

    @cached_property
    def diagonal(self) -> dict[str, Tensor]:
        """Return diag G by the names of the prunable weights."""
        return self._fitted_to_error(
            "Gauss-Newton diagonal", lambda: gauss_newton_diagonal(self.risk, self.network.layers, self.seed)
        )

    @cached_property
    def fisher_rows(self) -> FisherRows:
        """Return each prunable weight's gradients for single samples, with labels drawn from the network."""
        return FisherRows(self.risk, self.network.layers, self.seed, note=self.note, single=self.stage == 1)

    @cached_property
    def sensitivity(self) -> dict[str, Tensor]:
        """Return s (G, R) by layer name: a squared error e in an output raises the mean error E by s e / 2."""
        return self._fitted_to_error(
            _SENSITIVITIES, lambda: output_sensitivity(self.risk, self.network.layers, self.seed)
        )

    def layer_scores(self, score: Callable[[Layer], Tensor]) -> dict[str, Tensor]:
        """Return the scores of all layers by parameter name; ``score`` computes one layer's."""
        return self._layer_scores.compute(self.network.layers, score)

    def _fitted_to_error(self, what: str, fit: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        settings = {"objective": self.risk.objective, "seed": self.seed}
        values = self._fitted(what, fit, settings, self.risk.reference_tensors())
        if what != "gradient":  # without labels there is none at the dense weights
            self.name_empty(what, values)
        return values

    def name_empty(self, what: str, values: Mapping[str, Tensor]) -> None:
        """Note the layers whose ``values`` of ``what`` are all zero; in the first stage also those with some zeros.

        Raises NumericsError: all layers' are zero before anything was removed.
        """
        dead = {name: int((tensor == 0).sum()) for name, tensor in values.items()}
        empty = [name for name, tensor in values.items() if dead[name] == tensor.numel()]
        if empty and len(empty) == len(values):
            self.nothing_to_choose_by()
        for name in empty:
            self.note(f"{name}: zero {what} on all samples, so its weights look free to remove")
        # A trained network has many layer outputs that nothing depends on; only weights without curvature are noted.
        for name, tensor in values.items() if self.stage == 1 and what != _SENSITIVITIES else ():
            if 0 < dead[name] < tensor.numel():
                count = f"{dead[name]:,} of its {tensor.numel():,} weights"
                self.note(f"{name}: zero {what} on all samples for {count}, whose weights look free to remove")

    def nothing_to_choose_by(self) -> None:
        """Report that the error has no curvature along any weight: NumericsError in the first stage, a note later."""
        if self.stage > 1:
            self.note("no curvature along any remaining weight: the order of removal is random or by magnitude")
            return
        raise NumericsError(
            "no curvature to rank by: the loss has no curvature along any weight on any sample",
            "check that the samples are normalised as in training (data.normalize), and that the loss is not linear in "
            "the outputs",
        )

    def _fitted(
        self,
        what: str,
        fit: Callable[[], dict[str, Tensor]],
        settings: Mapping[str, object],
        tensors: Iterable[Tensor],
    ) -> dict[str, Tensor]:
        """Return ``fit()``, from the cache if it is there; the fit also depends on ``settings`` and ``tensors``."""
        layers = self.network.layers
        if self.cache is None:
            fitted = fit()
        else:
            key = self.cache.key(what, fit.__module__, self.risk, layers, settings, tensors)
            fitted = self.cache.get_or_fit(what, self.stage, key, layers[0].weight.device, fit, self.note)
        release()
        return fitted

    def predict(self, displacement: Mapping[str, Tensor]) -> Prediction:
        """Return both terms for a displacement of any of the state's tensors, as means over samples.

        Raises NumericsError: they are not finite. It names the layers between which the derivative stops being so.
        """
        module = self.risk.module
        own = own_names(module)
        moving = {own.get(k, k): v for k, v in displacement.items() if v.is_floating_point() and bool(v.any())}
        at = {k: self.state[k] for k in moving}
        rest = {k: v for k, v in self.state.items() if k not in moving and own.get(k, k) == k}
        first_order = second_order = 0.0
        with evaluating(module), torch.no_grad():
            for _, x, reference in self.risk.own() if moving else ():
                outputs, moved = differentiate_outputs(module, x, {**rest, **at}, moving, self.note)
                first_order += float((self.risk.objective.gradient(outputs, reference) * moved).sum())
                second_order += 0.5 * float(self.risk.objective.quadratic_form(outputs, reference, moved).sum())
        first_order, second_order = sum_numbers(first_order, second_order)
        if not (isfinite(first_order) and isfinite(second_order)):
            raise not_finite_along(self.risk, self.network.layers, {**rest, **at}, moving)
        samples = self.risk.batches.samples
        return Prediction(first_order / samples, second_order / samples)
