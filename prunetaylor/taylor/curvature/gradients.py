"""Backward passes give the mean gradient, its sampling noise, and diagonals of the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from prunetaylor.network.layer import Layer
from prunetaylor.runtime.processes.exchange import all_sum, sum_numbers
from prunetaylor.taylor.curvature.finite import check_finite
from prunetaylor.taylor.curvature.gram import accumulate_type
from prunetaylor.taylor.curvature.tape import layer_squares, recording, sample_cuts
from prunetaylor.taylor.objective import Reference, SampledFactors
from prunetaylor.taylor.risk import Risk

EXACT_OUTPUTS = 16
"""Up to so many outputs the sum over them is exact; beyond, it is estimated with labels drawn from the network."""
LABEL_DRAWS = 4
"""Labels drawn for each sample if the sum over outputs is not exact."""
_GROUPS = 32  # of samples; the scatter and squares of their summed gradients are taken


def mean_gradient(risk: Risk, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return the gradient of the mean error in each prunable weight, by parameter name.

    Raises NumericsError: it is not finite.
    """
    return parameter_gradient(risk, {layer.parameter: layer.weight for layer in layers})


def parameter_gradient(risk: Risk, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradient of the mean error in any parameters, by name. Raises NumericsError: it is not finite."""
    weights = list(parameters.values())
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in parameters.items()}
    for _, _, outputs, reference in risk.backward_batches(weights):
        value = risk.objective.values(outputs, reference).sum()
        _add(total.values(), torch.autograd.grad(value, weights, allow_unused=True))
    gradient = {name: g / risk.batches.samples for name, g in all_sum(total).items()}
    check_finite(gradient, "the gradient of the error")
    return gradient


def sampled_diagonal(risk: Risk, parameters: Mapping[str, nn.Parameter], seed: int) -> dict[str, Tensor]:
    """Return an unbiased, noisy diagonal of the Gauss-Newton matrix in any parameters, by name, from one pass.

    It sums the squared gradients over up to 32 groups of consecutive samples, the same groups however samples are
    batched, with labels that the network draws and random signs, whose cross terms have mean zero (Hutchinson 1990).
    """
    weights = list(parameters.values())
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in parameters.items()}
    group = [torch.zeros_like(t) for t in total.values()]
    edges = _group_edges(risk.batches.samples)
    signs = torch.rand(risk.batches.samples, 1, generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    factors = SampledFactors(risk.objective, risk.batches.samples, seed)
    for start, x, outputs, reference in risk.backward_batches(weights, edges):
        vector = factors.sample(outputs.detach(), reference, start)
        drawn = signs[start : start + len(x)].to(vector.device).view(-1, *[1] * (vector.dim() - 1))
        signed = torch.where(drawn, vector, -vector)
        _add(group, torch.autograd.grad((outputs * signed).sum(), weights, allow_unused=True))
        if start + len(x) in edges:
            for into, own in zip(total.values(), group, strict=True):
                into += own.square()
                own.zero_()
    total = all_sum(total)
    check_finite(total, "the Gauss-Newton diagonal")
    return {name: d / risk.batches.samples for name, d in total.items()}


def _add(total: Iterable[Tensor], grads: Sequence[Tensor | None]) -> None:
    for sum_, g in zip(total, grads, strict=True):
        if g is not None:
            sum_ += g


def gradient_norms(risk: Risk, layers: Sequence[Layer]) -> tuple[float, float]:
    """Return the norm of the mean gradient over the prunable weights, and the norm that sampling noise would give it.

    The noise is sqrt(tr Cov / n), from the scatter of the mean gradients of up to 32 groups of consecutive samples:
    the same groups however samples are batched. A single sample does not scatter: all of its gradient may be noise.

    Raises NumericsError: the gradient is not finite; it names the layer.
    """
    weights = [layer.weight for layer in layers]
    n = risk.batches.samples
    edges = _group_edges(n)
    groups = len(edges) - 1
    wide = accumulate_type(weights[0].device)
    # Only the sum over groups and the sum of squared group sums are needed:
    # sum_g |S_g - (m_g / n) S|^2 with S_g the group's summed gradient and m_g its size.
    total = [torch.zeros_like(w, dtype=wide) for w in weights]
    group = [torch.zeros_like(w, dtype=wide) for w in weights]
    squares, sizes, products = 0.0, 0.0, [torch.zeros_like(t) for t in total]
    ends = {end: end - start for start, end in pairwise(edges)}  # each process has whole groups
    for start, x, outputs, reference in risk.backward_batches(weights, edges):
        value = risk.objective.values(outputs, reference).sum()
        for into, g in zip(group, torch.autograd.grad(value, weights, allow_unused=True), strict=True):
            if g is not None:
                into += g
        if start + len(x) in ends:
            share = ends[start + len(x)] / n
            for sum_, weighted, own in zip(total, products, group, strict=True):
                sum_ += own
                weighted += share * own
                squares += float(own.square().sum())
                own.zero_()
            sizes += share**2
    squares, sizes = sum_numbers(squares, sizes)
    total, products = _summed(total), _summed(products)
    check_finite({layer.parameter: t for layer, t in zip(layers, total, strict=True)}, "the gradient of the error")
    norm = sum(float(t.square().sum()) for t in total)
    cross = sum(float((t * p).sum()) for t, p in zip(total, products, strict=True))
    scatter = max(0.0, squares - 2 * cross + sizes * norm) * groups / (groups - 1) if groups > 1 else norm
    return norm**0.5 / n, scatter**0.5 / n


def _group_edges(samples: int) -> list[int]:
    """Return 0, ..., N: the boundaries of groups of consecutive samples."""
    groups = min(_GROUPS, samples)
    return [-(-g * samples // groups) for g in range(groups + 1)]


def _summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(all_sum({str(i): t for i, t in enumerate(tensors)}).values())


def gauss_newton_diagonal(risk: Risk, layers: Sequence[Layer], seed: int) -> dict[str, Tensor]:
    """Return diag of J'HJ, a mean over samples, by parameter name: the squared gradients of s_k'z, summed over k.

    The s_k are the columns of S with SS' = H. The sum is exact up to 16 outputs; beyond, 4 labels are drawn for each
    sample from the network's own distribution (Martens 2020, section 9: the true Fisher, not the empirical one, which
    is nearly empty where a network fits its samples).

    Raises NumericsError: it is not finite; it names the first layer.
    """
    total = {layer.parameter: torch.zeros_like(layer.weight, dtype=torch.float32) for layer in layers}
    # Seeds far apart: neighbouring ones are other runs'.
    drawn = [
        SampledFactors(risk.objective, risk.batches.samples, seed + 1_000_003 * draw) for draw in range(LABEL_DRAWS)
    ]
    weights, cuts = [layer.weight for layer in layers], sample_cuts(risk, layers)
    with recording(layers) as tape:
        for start, x, outputs, reference in risk.backward_batches(weights, cuts):
            for vector, scale, last in _directions(risk, outputs.detach(), reference, start, drawn):
                grads = torch.autograd.grad(
                    (outputs * vector).sum(), tape.outputs(), allow_unused=True, retain_graph=not last
                )
                for layer, squares in layer_squares(tape, grads, len(x)):
                    total[layer.parameter] += scale * layer.tensor(squares)
            tape.clear()
    total = all_sum(total)
    check_finite(total, "the Gauss-Newton diagonal")
    return {name: value / risk.batches.samples for name, value in total.items()}


def output_sensitivity(risk: Risk, layers: Sequence[Layer], seed: int) -> dict[str, Tensor]:
    """Return (G, R) by layer name: the mean over samples of sum_p (dE'/dy_p)^2, with labels drawn from the network.

    With it, 1/2 sensitivity x mean_p (error of the output)^2 is the change of E that K-FAC's factors give (Martens &
    Grosse 2015, with the output factor's diagonal).

    Raises NumericsError: it is not finite; it names the first layer.
    """
    total: dict[str, Tensor] = {}
    factors = SampledFactors(risk.objective, risk.batches.samples, seed)
    weights, cuts = [layer.weight for layer in layers], sample_cuts(risk, layers)
    with recording(layers) as tape:
        for start, _, outputs, reference in risk.backward_batches(weights, cuts):
            vector = factors.sample(outputs.detach(), reference, start)
            grads = torch.autograd.grad((outputs * vector).sum(), tape.outputs(), allow_unused=True)
            for call, g in zip(tape.calls, grads, strict=True):
                if g is None:
                    continue
                squares = call.geometry.output_columns(call.gradient(g)).float().square().sum((0, 3))
                rows = squares.double() if g.device.type != "mps" else squares
                if call.layer.by_group:
                    part = rows
                    rows = part.new_zeros(call.layer.form.shape[:2])
                    rows[slice(*call.groups)] = part
                name = call.layer.name
                total[name] = total[name] + rows if name in total else rows
            tape.clear()
    total = all_sum(total)
    check_finite(total, "the gradient of the error in its outputs")
    return {name: value / risk.batches.samples for name, value in total.items()}


def _directions(
    risk: Risk, outputs: Tensor, reference: Reference, start: int, drawn: Sequence[SampledFactors]
) -> Iterator[tuple[Tensor, float, bool]]:
    """Yield vectors in the shape of the outputs, whose outer products add up to H, with weights; the last says so."""
    if outputs.dim() == 2 and outputs.shape[1] <= EXACT_OUTPUTS:
        factor = risk.objective.hessian_factor(outputs, reference)
        for k in range(factor.shape[2]):
            yield factor[:, :, k], 1.0, k == factor.shape[2] - 1
        return
    for factors in drawn:
        yield factors.sample(outputs, reference, start), 1 / len(drawn), factors is drawn[-1]
