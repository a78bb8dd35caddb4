"""The full Hessian of the error in the weights: products with it (Pearlmutter 1994), and its diagonal.

    H v = d/dw (g(w)'v)                              diag H = E[ z * H z ],  z random signs (Hutchinson 1990)

Unlike the Gauss-Newton matrix it may be indefinite: it holds the network's own second derivatives as well. One probe's
estimate of an entry has the variance of the squared off-diagonal entries of its row, so that k probes leave 1/k of it
(Bekas, Kokiopoulou & Saad 2007).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from prunetaylor.curvature.finite import check_finite
from prunetaylor.curvature.forward_mode import differentiable
from prunetaylor.distributed.exchange import all_sum
from prunetaylor.memory import FLOAT, Sizes, backward
from prunetaylor.network.layer import Layer
from prunetaylor.network.names import own_names, parameters_named
from prunetaylor.risk import Risk

PROBES = 16
"""Of Hutchinson's estimate; each costs about what the gradient costs."""
_AT_ONCE = 4  # probes that share a pass; each keeps two copies of the weights


def hessian_bytes(sizes: Sizes) -> tuple[int, int]:
    """The diagonal, and what estimating it takes: probes and their products, a batch, and its graph's own graph."""
    weights = FLOAT * sizes.weights
    return weights, (2 * _AT_ONCE + 2) * weights + 2 * backward(sizes) + sizes.batch * sizes.activations.kept


def hessian_products(risk: Risk, vectors: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """H v for each v at the module's weights now, a mean over samples, from one pass.

    ``vectors`` name the same parameters, any of the module's, each in its own shape; a tensor with several names moves
    as one. NumericsError, naming the parameter, where a product is not finite.
    """
    own = own_names(risk.module)
    weights = parameters_named(risk.module, vectors[0])
    along = [{own[name]: v.to(weights[own[name]]) for name, v in vector.items()} for vector in vectors]
    total = [{name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()} for _ in vectors]
    wanted = list(weights.values())
    with differentiable():  # fused attention has no second derivative either
        for _, x, outputs, reference in risk.backward_batches(wanted):
            value = risk.objective.values(outputs, reference).sum()
            grads = torch.autograd.grad(value, wanted, create_graph=True, allow_unused=True)
            for index, (into, vector) in enumerate(zip(total, along, strict=True)):
                slopes = [(g * vector[n]).sum() for n, g in zip(weights, grads, strict=True) if g is not None]
                slope = sum(slopes, torch.zeros((), device=x.device))
                if not slope.requires_grad:  # an error that is linear in these weights
                    continue
                back = torch.autograd.grad(slope, wanted, allow_unused=True, retain_graph=index < len(along) - 1)
                for name, h in zip(weights, back, strict=True):
                    if h is not None:
                        into[name] += h
    total = [all_sum(sums) for sums in total]
    for sums in total:
        check_finite(sums, "a Hessian product")
    return [{name: sums[own[name]] / risk.batches.samples for name in vectors[0]} for sums in total]


def hessian_product(risk: Risk, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """H v; see :func:`hessian_products`."""
    return hessian_products(risk, [vector])[0]


def hessian_diagonal(risk: Risk, layers: Sequence[Layer], seed: int, probes: int = PROBES) -> dict[str, Tensor]:
    """diag H by parameter name: the mean of z * H z over ``probes`` vectors of random signs.

    All samples see the same probes, so that the estimate does not depend on how they are batched.
    """
    signs = _signs(layers, seed, probes)
    total = {layer.parameter: torch.zeros_like(layer.weight, dtype=torch.float32) for layer in layers}
    while some := list(islice(signs, _AT_ONCE)):
        for probe, product in zip(some, hessian_products(risk, some), strict=True):
            for name, value in product.items():
                total[name] += probe[name] * value
    return {name: value / probes for name, value in total.items()}


def _signs(layers: Sequence[Layer], seed: int, probes: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(probes):
        yield {
            layer.parameter: (2.0 * torch.randint(2, layer.weight.shape, generator=generator) - 1).to(
                layer.weight.device
            )
            for layer in layers
        }
