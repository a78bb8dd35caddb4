"""Gauss-Newton refinement: all kept weights and biases at once, towards what the network should answer.

    minimise  g'd + 1/2 d'(G + lambda D)d         g, G: gradient and Gauss-Newton matrix of the error now

with D a diagonal that stands for G's own scale (Marquardt 1963). As conjugate gradients do, a few Lanczos steps solve
it without ever forming G (Hestenes & Stiefel 1952; Martens 2010), but for *every* lambda at once: with S = D^-1/2,
b = -S g and the Lanczos basis V and tridiagonal T of S G S from b,

    d(lambda) = |b| S V (T + lambda I)^-1 e_1

Which lambda is right no formula on the fitted samples knows: the largest step fits them best and answers worst
elsewhere. It is chosen on held-out samples, from the most damped on for as long as their error falls. Each step takes
fresh random changes of the samples (crops, flips), where they are images; the search ends when the held-out error falls
no more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunetaylor.network.names import movable_parameters, own_names
from prunetaylor.pruning.interfaces import RefinementContext, RefinementStep, Refiner
from prunetaylor.taylor.curvature.gauss_newton import gauss_newton_product
from prunetaylor.taylor.curvature.gradients import parameter_gradient, sampled_diagonal
from prunetaylor.taylor.curvature.gram import accumulate_type
from prunetaylor.taylor.risk import Risk
from prunetaylor.taylor.sizes import FLOAT, Phase, Sizes, backward, directional

PRODUCTS = 8
"""The most products with the Gauss-Newton matrix in a step: the dimension of the space that it is solved in."""
DAMPINGS = tuple(10.0 ** (1 - k / 2) for k in range(10))
"""lambda in units of the largest eigenvalue that Lanczos found, the most damped first."""
ENOUGH = 0.01
"""A step that lowers the held-out error by less than this share of it is the last: the rest is chance."""

Vector = dict[str, Tensor]


class GaussNewton(Refiner):
    """Damped Gauss-Newton steps on the run's own error."""

    summary = "few Gauss-Newton steps, towards the error's own target"
    action = "by Gauss-Newton"
    towards = "error"
    usual_steps = 6

    def refine(self, context: RefinementContext) -> Iterator[RefinementStep]:
        """Take the steps that are left of an interrupted refinement, or all."""
        if context.state.get("last", False):
            return
        for step in refine(
            context.network.module,
            context.masks,
            context.samples.risk,
            context.holdout,
            steps=context.steps,
            seed=context.seed,
            frozen=[one.name for one in context.network.skipped],
            steps_done=context.state.get("steps", 0),
        ):
            damping = "no step helps" if step.damping is None else f"damping {step.damping:.2g}"
            text = f"held-out error {step.before:.4g} -> {step.after:.4g} ({damping})"
            yield RefinementStep(text, partial(dict, {"steps": step.step, "last": step.last}))

    def passes(self, samples: int) -> float:
        """Return the cost of the products, of four forward passes each, and of trying the dampings."""
        return samples * (4 * PRODUCTS + len(DAMPINGS))

    def memory(self, sizes: Sizes) -> Phase:
        """Return the memory of the Lanczos basis, fifteen more vectors of all parameters, a batch with its graph, and
        new samples."""
        vectors = FLOAT * sizes.parameters * (PRODUCTS + 15)
        parts = {"curvature": vectors, "activations": backward(sizes) + directional(sizes)}
        return Phase("refinement by Gauss-Newton", {**parts, "samples": 2 * sizes.samples * sizes.sample.x})


@dataclass(frozen=True)
class RefineState:
    """The state after a step: the held-out error before and after it, and the damping (None: no step lowered it)."""

    step: int
    before: float
    after: float
    damping: float | None
    last: bool  # there is no more to gain, or to do


def refine(
    module: nn.Module,
    masks: Mapping[str, Tensor],
    fresh: Callable[[], Risk],
    holdout: Risk,
    *,
    steps: int,
    seed: int,
    frozen: Collection[str] = (),
    steps_done: int = 0,
) -> Iterator[RefineState]:
    """Refine ``module`` in place, yielding after each of at most ``steps`` steps; masked weights stay zero.

    The first ``steps_done`` of them were done before.

    Args:
        module: in evaluation mode for all of it; batch-norm statistics stay as they are.
        masks: by parameter name, True = keep.
        fresh: gives the error of ``module`` to lower, on newly augmented samples.
        holdout: the error of ``module`` on samples that are never fitted: no step is taken that raises it.
        seed: for the labels from which the diagonal is estimated.
        frozen: modules and parameters, by name, that do not move.

    Raises:
        NumericsError: a gradient or product is not finite.
    """
    free = _free(module, masks, frozen)
    error = holdout.value()
    for step in range(steps_done + 1, steps + 1):
        solve = _Krylov(fresh(), free, seed + step)
        now = {name: p.detach().clone() for name, p in solve.parameters.items()}
        before, best, chosen = error, None, None
        for damping in DAMPINGS:
            moved = solve.step(damping)
            _write(solve.parameters, {name: now[name] + moved[name] for name in now})
            lowered = holdout.value_or_inf()
            if lowered >= error:
                if chosen is not None:
                    break
                continue
            error, chosen, best = lowered, damping, moved
        _write(solve.parameters, now if best is None else {name: now[name] + best[name] for name in now})
        last = step == steps or before - error <= ENOUGH * abs(before)
        yield RefineState(step, before, error, chosen, last)
        if last:
            return


class _Krylov:
    """The space that one step is solved in. ``free`` (0 or 1, by parameter name) says which weights may move."""

    def __init__(self, risk: Risk, free: Vector, seed: int) -> None:
        every = dict(risk.module.named_parameters())
        self.parameters = {name: every[name] for name in free}
        self.free = free
        gradient = self._masked(parameter_gradient(risk, self.parameters))
        self.scale = self._scale(sampled_diagonal(risk, self.parameters, seed))
        start = {name: -self.scale[name] * g for name, g in gradient.items()}
        self.norm = _dot(start, start) ** 0.5
        self.basis: list[Vector] = []
        alphas: list[float] = []
        betas: list[float] = []
        direction, length = start, self.norm
        while len(self.basis) < PRODUCTS and length > 1e-7 * self.norm:
            v = {name: d / length for name, d in direction.items()}
            self.basis.append(v)
            product = gauss_newton_product(risk, {name: self.scale[name] * x for name, x in v.items()})
            direction = {name: self.scale[name] * x for name, x in self._masked(product).items()}
            alphas.append(_dot(v, direction))
            for old in [*self.basis, *self.basis]:  # twice is enough (Giraud et al. 2005)
                share = _dot(old, direction)
                direction = {name: x - share * old[name] for name, x in direction.items()}
            length = _dot(direction, direction) ** 0.5
            betas.append(length)
        t = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        off = torch.tensor(betas[: max(0, len(alphas) - 1)], dtype=torch.float64)
        if len(off):
            t += torch.diag(off, 1) + torch.diag(off, -1)
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(t)

    def step(self, damping: float) -> Vector:
        """Return d(lambda), lambda = ``damping`` x the largest eigenvalue; zero without a gradient."""
        total = {name: torch.zeros_like(x) for name, x in self.scale.items()}
        if not self.basis or self.eigenvalues[-1] <= 0:
            return total
        inverse = 1 / (self.eigenvalues.clamp_min(0) + damping * self.eigenvalues[-1])
        coefficients = self.eigenvectors @ (inverse * self.eigenvectors[0]) * self.norm
        for c, v in zip(coefficients.tolist(), self.basis, strict=True):
            for name, x in v.items():
                total[name] += c * x
        return {name: self.scale[name] * x for name, x in total.items()}

    def _masked(self, vector: Mapping[str, Tensor]) -> Vector:
        return {name: vector[name] * free for name, free in self.free.items()}

    def _scale(self, diagonal: Mapping[str, Tensor]) -> Vector:
        """Return D^-1/2: half each weight's own curvature, half its tensor's mean; 0 for weights that are fixed or
        flat."""
        scale = {}
        for name, free in self.free.items():
            mean = (diagonal[name] * free).sum() / free.sum().clamp_min(1)
            own = 0.5 * (diagonal[name] + mean)
            scale[name] = torch.where(own > 0, own.clamp_min(torch.finfo(own.dtype).tiny).rsqrt(), 0) * free
        return scale


def _free(module: nn.Module, masks: Mapping[str, Tensor], frozen: Collection[str] = ()) -> Vector:
    """Return 1 for each parameter that may move, by name: all of floating point that are not masked or frozen."""
    own = own_names(module)
    kept = {own[name]: mask for name, mask in masks.items()}
    return {
        name: kept[name].to(p.device, torch.float32) if name in kept else torch.ones_like(p, dtype=torch.float32)
        for name, p in movable_parameters(module, frozen).items()
    }


def _dot(a: Vector, b: Vector) -> float:
    return sum(float((x * b[name]).sum(dtype=accumulate_type(x.device))) for name, x in a.items())


@torch.no_grad()
def _write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
