"""OBS is exact for a row at its least-squares optimum: held against brute force over every weight."""

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.network.layer import Call
from prunetaylor.network.network import Network
from prunetaylor.network.observation import observing
from prunetaylor.taylor.curvature.solve import inverse_diagonal
from support.samples import rand
from support.taylor_models import scored, taylor

TINY = 1e-9  # of damping: brute force has none


def inputs_of(module: nn.Module, x: Tensor) -> Tensor:
    """(positions, columns) in float64."""
    if isinstance(module, nn.Linear):
        return x.double()
    calls: list[Call] = []
    with observing(Network.from_module(module).layers, calls.append):
        module(x)
    columns = calls[0].geometry.input_columns(calls[0].inputs, calls[0].outputs)  # (B, 1, C, L)
    return columns.squeeze(1).mT.flatten(0, 1).double()


def columns_of(inputs: Tensor, kept: Tensor, affine: bool) -> Tensor:
    return torch.cat([inputs[:, kept], torch.ones(len(inputs), int(affine)).double()], 1)


def error(inputs: Tensor, targets: Tensor, kept: Tensor, affine: bool) -> float:
    """The least mean square error of a linear or affine map of the kept columns."""
    columns = columns_of(inputs, kept, affine)
    solution = torch.linalg.lstsq(columns, targets.unsqueeze(1), driver="gelsd").solution
    return float((columns @ solution - targets.unsqueeze(1)).square().mean())


def at_its_optimum(module: nn.Module, x: Tensor, keep: Tensor, affine: bool) -> Tensor:
    """Targets (positions, rows) that no such map reaches; the module's kept weights become the best ones for them."""
    inputs = inputs_of(module, x)
    rows = keep.flatten(1)
    targets = inputs @ rand(inputs.shape[1], len(rows)).double() + 0.5 * rand(len(inputs), len(rows), seed=3).double()
    best = torch.zeros(rows.shape).double()
    for row, kept in enumerate(rows):
        columns = columns_of(inputs, kept, affine)
        solution = torch.linalg.lstsq(columns, targets[:, row : row + 1], driver="gelsd").solution
        best[row, kept] = solution[: int(kept.sum()), 0]
    with torch.no_grad():
        module.weight.copy_(best.view_as(module.weight))
    return targets


@pytest.mark.parametrize("module", [nn.Linear(6, 3), nn.Conv2d(2, 3, 2)], ids=["linear", "conv"])
@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("affine", [True, False], ids=["intercept", "none"])
def test_the_error_that_a_removal_adds(module: nn.Module, share: float, affine: bool) -> None:
    x = (rand(60, 6) if isinstance(module, nn.Linear) else rand(20, 2, 4, 4)) + 1  # means that someone has to make up
    keep = torch.rand(module.weight.shape, generator=torch.Generator().manual_seed(1)) >= share
    targets = at_its_optimum(module, x, keep, affine)
    inputs, rows = inputs_of(module, x), keep.flatten(1)
    added = torch.zeros(rows.shape).double()
    for row, kept in enumerate(rows):
        for j in kept.nonzero().squeeze(1):
            without = kept.clone()
            without[j] = False
            least = [error(inputs, targets[:, row], some, affine) for some in (without, kept)]
            added[row, j] = least[0] - least[1]

    model = taylor(module.eval(), x, damping=TINY, intercepts=affine)
    h = model.gram(model.network.layers[0])
    w = module.weight.detach().flatten(1).double()
    found = w.square() / inverse_diagonal(h[0], rows, TINY, "layer", model.note)
    torch.testing.assert_close(found[rows], added[rows], rtol=1e-3, atol=1e-5)
    assert model.notes == []

    scores = scored("obs", model, {"weight": keep})
    for row, kept in enumerate(rows):  # whatever a layer's units: within a row they are the same
        by_score = scores["weight"].flatten(1)[row, kept].argsort()
        assert by_score.tolist() == added[row, kept].argsort().tolist()


def test_uncorrelated_inputs_leave_nothing_to_make_up_with() -> None:
    """H diagonal: OBS is OBD, w^2 times the input's variance."""
    module = nn.Linear(3, 2).eval()
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]) * s for s in (1, 2, 3)])
    model = taylor(module, x, damping=TINY)
    h, _ = model.moments[""].centred()
    keep = torch.ones(2, 3, dtype=torch.bool)
    variance = 1 / inverse_diagonal(h[0], keep, TINY, "layer", model.note)
    torch.testing.assert_close(variance, torch.tensor([[1.0, 4.0, 9.0]] * 2).double(), rtol=1e-5, atol=0)


def test_a_replaceable_weight_is_removed_before_a_smaller_one() -> None:
    """Two inputs that are nearly the same: either goes for little, though both weights are large."""
    module = nn.Linear(3, 1).eval()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, 3.0, 0.5]]))
    x = rand(200, 3)
    x[:, 1] = x[:, 0] + 0.01 * x[:, 1]
    model = taylor(module, x, torch.zeros(200, 1), task="regression", damping=1e-6)
    scores = scored("obs", model)
    first, second, third = scores["weight"][0].tolist()
    assert max(first, second) < 0.1 * third
