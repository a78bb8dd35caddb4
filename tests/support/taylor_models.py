"""Risks and Taylor models of small networks, and float64 oracles to compare them with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import ScoringContext, Solver, Step, load_criterion
from prunetaylor.taylor.curvature.gram import Positions
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.outputs import read_outputs
from prunetaylor.taylor.risk import DenseOutputs, Risk
from support.samples import batches, rand

EVERY = 1 << 16
"""A limit on positions per sample that no test reaches."""
FITS = ["moments", "gradient", "diagonal", "sensitivity"]
"""Attributes of a Taylor model that it fits and that a cache keeps."""


def risk(
    module: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    task: str = "classification",
    kind: str = "divergence",
    size: int = 4,
    dense: nn.Module | None = None,
) -> Risk:
    """Return the risk of ``module``; the divergence is measured from ``dense``, which defaults to the module itself."""
    objective = Objective(task, kind)
    samples = batches(x, y, size)
    return Risk(module, samples, objective, DenseOutputs.compute(dense or module, samples))


def taylor(
    module: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    damping: float = 0.01,
    positions: int = EVERY,
    intercepts: bool = True,
    **of: object,
) -> TaylorModel:
    """Return a model whose notes on raised damping are in ``notes``; ``intercepts`` gives one to every layer."""
    notes: list[str] = []
    network = Network.from_module(module)
    model = TaylorModel(
        network,
        risk(module, x, y, **of),
        Positions(len(x), 0, positions),
        damping=damping,
        seed=0,
        note=notes.append,
        intercepts=[layer.name for layer in network.layers if intercepts],
    )
    model.notes = notes
    return model


def scored(criterion: str, model: TaylorModel, masks: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The scores of a criterion at a model's weights; without ``masks`` no weight but the zero ones is removed."""
    return load_criterion(criterion).score(_context(model, masks))


def solved(criterion: str, model: TaylorModel, removed: int, masks: dict[str, Tensor] | None = None) -> Step:
    """A solver's step from a model's weights."""
    solver = load_criterion(criterion)
    assert isinstance(solver, Solver)
    return solver.solve(_context(model, masks), removed)


def _context(model: TaylorModel, masks: dict[str, Tensor] | None) -> ScoringContext:
    masks = model.network.masks() if masks is None else masks
    return ScoringContext(model.network, masks, torch.Generator().manual_seed(0), model)


def outputs_at(module: nn.Module, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return the outputs (N, K) in float64 as a function of the state, from all samples at once."""
    double = copy.deepcopy(module).double().eval()
    return lambda state: read_outputs(
        double, functional_call(double, state, (x.double() if x.is_floating_point() else x,))
    )


def jacobians(module: nn.Module, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return dz/dw of each sample (N, K, *w) in float64, by parameter name."""
    weights = dict(module.named_parameters())
    derivatives = jacrev(outputs_at(module, x))({name: weights[name].detach().double() for name in names})
    return {name: value.detach() for name, value in derivatives.items()}


def output_hessian(outputs: Tensor, kind: str) -> Tensor:
    """Return the Hessian (N, K, K) of the error with respect to the outputs, from its formula."""
    if kind == "regression":
        return torch.eye(outputs.shape[1], dtype=outputs.dtype).expand(len(outputs), -1, -1)
    p = outputs.softmax(1)
    return torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)


def assert_least_squares(module: nn.Linear, dense: nn.Linear, mask: Tensor, x: Tensor) -> None:
    """Assert that remaining weights and biases are the least-squares fit to ``dense`` on the inputs x (N, d)."""
    with torch.no_grad():
        target = dense(x)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    for row, remaining in enumerate(mask):
        columns = torch.cat([remaining, torch.tensor([True])])
        solved = torch.linalg.lstsq(design[:, columns], target[:, row]).solution
        torch.testing.assert_close(module.weight[row, remaining].detach(), solved[:-1], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(module.bias[row].detach(), solved[-1], rtol=1e-2, atol=1e-2)


def pruned(module: nn.Module, seed: int = 3) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy with about half of its prunable weights removed, and its masks."""
    module = copy.deepcopy(module)
    masks = {}
    for i, layer in enumerate(Network.from_module(module).layers):
        masks[layer.parameter] = rand(*layer.weight.shape, seed=seed + i) > 0
        with torch.no_grad():
            layer.weight.mul_(masks[layer.parameter])
    return module, masks
