"""Block OBS against the minimum of its own quadratic model, solved densely for every weight."""

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.pruning.criteria import obs_fisher
from prunetaylor.taylor.model import TaylorModel
from support.samples import rand
from support.taylor_models import scored, solved, taylor


def fitted(samples: int, keep_first: bool = True) -> TaylorModel:
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).eval()
    model = taylor(module, rand(samples, 4), torch.arange(samples) % 3, kind="task", damping=0.05)
    model.keep_first = keep_first
    return model


def quadratic(model: TaylorModel, layer: int, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(w, share of g, F in blocks, F + ridge) of one layer, flat and in float64."""
    found, rows = list(model.fisher_rows)[layer]
    g = rows.double()
    owner = torch.arange(g.shape[1]) // obs_fisher.BLOCK
    f = g.T @ g / len(g)
    ridge = 0.05 * f.diagonal().mean() * torch.eye(len(f)).double()
    f = f * (owner[:, None] == owner)
    slope = share * model.gradient[found.parameter].flatten().double()
    return found.weight.detach().flatten().double(), slope, f, f + ridge


def least(w: Tensor, g: Tensor, f: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of g'd + d'Fd/2 with the weights ``gone`` at zero, and d."""
    d, kept = -w * gone, (~gone).nonzero().squeeze(1)
    d[kept] = -torch.linalg.inv(f[kept][:, kept]) @ (g + f @ d)[kept]
    return g @ d + d @ f @ d / 2, d


def share_of(model: TaylorModel, masks: dict[str, Tensor]) -> float:
    """Where the Taylor model of the whole network has its minimum along all blocks' Newton steps."""
    steps = {}
    for i, layer in enumerate(model.network.layers):
        w, g, _, f = quadratic(model, i, 1.0)
        steps[layer.parameter] = least(0 * w, g, f, ~masks[layer.parameter].flatten())[1].view(layer.weight.shape)
    found = model.predict({name: d.float() for name, d in steps.items()})
    return -found.first_order / (2 * found.second_order)


def masks_of(model: TaylorModel, share: float) -> dict[str, Tensor]:
    """Some weights are gone already; they are zero."""
    masks = {}
    for i, layer in enumerate(model.network.layers):
        masks[layer.parameter] = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(i)) >= share
        layer.weight.data *= masks[layer.parameter]
    return masks


@pytest.mark.parametrize("keep_first", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("samples", [4, 40])
@pytest.mark.parametrize("size", [5, 100])
def test_the_change_that_a_removal_adds(
    size: int, samples: int, share: float, keep_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obs_fisher, "BLOCK", size)
    model = fitted(samples, keep_first)
    masks = masks_of(model, share)
    scores = scored("obs_fisher", model, masks)
    share = share_of(model, masks) if keep_first else 0.0
    assert share < 1
    for i, layer in enumerate(model.network.layers):
        w, g, _, f = quadratic(model, i, share)
        gone = ~masks[layer.parameter].flatten()
        free = least(w, g, f, gone)[0]
        for j in (~gone).nonzero().flatten().tolist():
            without = gone.clone()
            without[j] = True
            added = least(w, g, f, without)[0] - free
            torch.testing.assert_close(scores[layer.parameter].flatten()[j], added, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("keep_first", [True, False])
@pytest.mark.parametrize("size", [5, 100])
def test_the_kept_weights_move_to_the_minimum_given_all_that_went(
    size: int, keep_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obs_fisher, "BLOCK", size)
    model = fitted(12, keep_first)
    masks = masks_of(model, 0.3)
    share = share_of(model, masks) if keep_first else 0.0
    before = sum(int((~m).sum()) for m in masks.values())
    step = solved("obs_fisher", model, before + 6, masks)
    assert sum(int((~m).sum()) for m in step.masks.values()) == before + 6
    for i, layer in enumerate(model.network.layers):
        w, g, _, f = quadratic(model, i, share)
        mask, d = step.masks[layer.parameter], step.displacement[layer.parameter]
        assert mask.shape == d.shape == layer.weight.shape
        assert bool((~mask | masks[layer.parameter]).all())
        wanted = least(w, g, f, ~mask.flatten())[1]
        torch.testing.assert_close(d.flatten(), wanted, rtol=1e-4, atol=1e-6)


def test_what_went_is_zero_after_the_step_to_the_bit() -> None:
    model = fitted(12)
    step = solved("obs_fisher", model, 15, model.network.masks())
    for layer in model.network.layers:
        layer.weight.data.add_(step.displacement[layer.parameter].to(layer.weight))
        assert bool((layer.weight[~step.masks[layer.parameter]] == 0).all())


def test_moving_the_rest_is_better_than_not_moving_it() -> None:
    """By the Taylor model of the whole network, which knows no blocks."""
    torch.manual_seed(0)
    module = nn.Linear(8, 3).eval()
    x = rand(300, 8) @ (torch.eye(8) + 0.7 * rand(8, 8, seed=1))
    model = taylor(module, x, task="regression", damping=1e-4)
    step = solved("obs_fisher", model, 12, model.network.masks())
    moved = model.predict({"weight": step.displacement["weight"].float()}).change(False)
    still = model.predict({"weight": -module.weight.detach() * ~step.masks["weight"]}).change(False)
    assert moved < 0.8 * still


def test_without_a_gradient_a_step_that_removes_nothing_moves_nothing() -> None:
    step = solved("obs_fisher", fitted(12, keep_first=False), 0)
    assert not any(bool(d.any()) for d in step.displacement.values())


def test_newton_s_step_lowers_the_error_of_a_network_that_is_not_converged() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(4, 3).eval(), rand(200, 4)
    y = torch.multinomial((2 * x[:, :3]).softmax(1), 1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    model = taylor(module, x, y, kind="task", size=100)
    step = solved("obs_fisher", model, 0, model.network.masks())
    before, predicted = model.risk.value(), model.predict({"weight": step.displacement["weight"].float()}).change(True)
    module.weight.data.add_(step.displacement["weight"].to(module.weight))
    assert model.risk.value() - before == pytest.approx(predicted, rel=0.5)
    assert predicted < -0.1
