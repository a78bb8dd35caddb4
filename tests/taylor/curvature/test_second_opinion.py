"""Our curvatures against those of another library, curvlinops, which was written by others from the same papers.

Its matrices are made from whole operators in float64, with the samples in uneven batches. Only definitions that
coincide are compared; the Gauss-Newton matrix is the same for the task and for the divergence.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.network.network import Network
from prunetaylor.taylor.curvature.gauss_newton import gauss_newton_product
from prunetaylor.taylor.curvature.gradients import gauss_newton_diagonal, output_sensitivity
from prunetaylor.taylor.curvature.gram import Positions, layer_moments
from support.networks import NETWORKS, network_case
from support.samples import batches, rand
from support.taylor_models import EVERY, risk

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch, of the dev extra, is not installed")

TASKS = ["classification", "regression"]
SPLITS = (0, 1, 3, 6)  # edges of their batches: uneven ones


def samples(name: str, task: str) -> tuple[nn.Module, Tensor, Tensor]:
    module, x, y = network_case(name)
    return module, x, y if task == "classification" else rand(6, 3, seed=9)


def names_of(module: nn.Module) -> list[str]:
    return [layer.parameter for layer in Network.from_module(module).layers]


def theirs(operator: Any, module: nn.Module, x: Tensor, y: Tensor, task: str, names: list[str], **options: Any) -> Any:
    """An operator over the weights ``names``, in float64, of the mean cross-entropy or the summed squared errors."""
    double = copy.deepcopy(module).double()
    weights = dict(double.named_parameters())
    loss = nn.CrossEntropyLoss() if task == "classification" else nn.MSELoss(reduction="sum")
    parts = [(x[low:high].double(), _exact(y[low:high])) for low, high in itertools.pairwise(SPLITS)]
    return operator(double, loss, [weights[name] for name in names], parts, **options)


def _exact(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y


def times(task: str) -> float:
    """What takes their error to ours: ours is halved and a mean over samples."""
    return 1.0 if task == "classification" else 1 / (2 * 6)


def dense(operator: Any, task: str) -> Tensor:
    return times(task) * (operator @ torch.eye(operator.shape[1], dtype=torch.float64))


def flat(values: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([values[name].double().flatten() for name in names])


def split(vector: Tensor, module: nn.Module, names: list[str]) -> dict[str, Tensor]:
    weights = dict(module.named_parameters())
    parts = vector.split([weights[name].numel() for name in names])
    return {name: part.view_as(weights[name]) for name, part in zip(names, parts, strict=True)}


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gauss_newton_products_and_diagonal(name: str, task: str) -> None:
    module, x, y = samples(name, task)
    names, at = names_of(module), risk(module, x, y, task=task)
    matrix = dense(theirs(curvlinops.GGNLinearOperator, module, x, y, task, names), task)
    v = rand(len(matrix), seed=4)
    close(flat(gauss_newton_product(at, split(v, module, names)), names), matrix @ v.double())
    close(flat(gauss_newton_diagonal(at, Network.from_module(module).layers, 0), names), matrix.diagonal())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["mlp", "conv", "normed"])
def test_kronecker_factors(name: str, task: str) -> None:
    """A is our layer Gram over all positions; the diagonal of B is our sensitivity, here from many drawn labels."""
    module, x, y = samples(name, task)
    names, layers, draws = names_of(module), Network.from_module(module).layers, 2000
    options = {"fisher_type": curvlinops.FisherType.TYPE2, "kfac_approx": curvlinops.KFACType.EXPAND}
    operator = theirs(curvlinops.KFACLinearOperator, module, x, y, task, names, check_deterministic=False, **options)
    operator.compute_kronecker_factors()
    moments = layer_moments(module, layers, batches(x), Positions(len(x), 0, EVERY))
    many = risk(module, x.repeat(draws, *[1] * (x.dim() - 1)), task=task, size=3000)
    sensitivity = output_sensitivity(many, layers, 0)
    for layer in layers:
        close(moments[layer.name].plain()[0][0], operator._input_covariances[layer.name])
        wanted = times(task) * operator._gradient_covariances[layer.name].diagonal()
        found = sensitivity[layer.name].flatten().double()
        torch.testing.assert_close(found, wanted, rtol=0.06, atol=0.02 * float(wanted.max()))
