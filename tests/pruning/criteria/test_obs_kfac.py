"""OBS with K-FAC's factors against the minimum of each row's quadratic model, solved densely for every weight."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.pruning.criteria import obs_kfac
from prunetaylor.taylor.model import TaylorModel
from support.samples import rand
from support.taylor_models import scored, taylor

DAMPING = 0.02


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).eval()


def fitted(of: str) -> TaylorModel:
    torch.manual_seed(0)
    return taylor(conv(), rand(30, 2, 3, 3), torch.arange(30) % 3, kind=of, damping=DAMPING)


def least(w: Tensor, g: Tensor, f: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of g'd + d'Fd/2 over the kept weights, the others at zero, and d."""
    d = -w * ~kept
    at = kept.nonzero().squeeze(1)
    d[at] = -torch.linalg.inv(f[at][:, at]) @ (g + f @ d)[at]
    return g @ d + d @ f @ d / 2, d


def systems(model: TaylorModel, name: str, centred: bool) -> Tensor:
    """a (H + ridge) of each row, (G, R, C, C)."""
    moments, a = model.moments[name], model.sensitivity[name]
    h = (moments.centred() if centred else moments.plain())[0]
    ridge = DAMPING * h.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(h.shape[1]).double()
    return a[..., None, None] * (h + ridge)[:, None]


def newton(model: TaylorModel, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """All rows' Newton steps, up to where the Taylor model of the whole network has its minimum along them."""
    steps = {}
    for layer in model.network.layers:
        f, g = systems(model, layer.name, False).flatten(0, 1), layer.matrix(model.gradient[layer.parameter].double())
        flat, kept = g.flatten(0, 1), layer.matrix(masks[layer.parameter]).flatten(0, 1)
        rows = [least(torch.zeros_like(flat[r]), flat[r], f[r], kept[r])[1] for r in range(len(flat))]
        steps[layer.parameter] = layer.tensor(torch.stack(rows).view_as(g))
    found = model.predict({name: step.float() for name, step in steps.items()})
    share = -found.first_order / (2 * found.second_order)
    assert 0 < share < 1
    return {name: share * step for name, step in steps.items()}


@pytest.mark.parametrize("keep_first", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_change_that_a_removal_adds(share: float, keep_first: bool) -> None:
    model = fitted("task")
    model.keep_first = keep_first
    masks = {}
    for i, layer in enumerate(model.network.layers):
        masks[layer.parameter] = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(i)) >= share
        layer.weight.data *= masks[layer.parameter]
    scores = scored("obs_kfac", model, masks)
    steps = newton(model, masks) if keep_first else {}
    for layer in model.network.layers:
        target = layer.weight.detach().double() + steps.get(layer.parameter, 0)
        tensors = (target, masks[layer.parameter], scores[layer.parameter])
        every = [layer.matrix(t).flatten(0, 1) for t in tensors]
        for t, keep, found, f in zip(*every, systems(model, layer.name, True).flatten(0, 1), strict=True):
            for j in keep.nonzero().flatten().tolist():
                without = keep.clone()
                without[j] = False
                torch.testing.assert_close(found[j], least(t, 0 * t, f, without)[0], rtol=1e-4, atol=1e-9)


def test_at_the_dense_weights_the_divergence_has_no_first_order_term() -> None:
    model = fitted("divergence")
    kept = scored("obs_kfac", model)
    model.keep_first = False
    dropped = scored("obs_kfac", model)
    for name, value in dropped.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-9)


def test_rows_that_the_outputs_do_not_depend_on_cost_nothing() -> None:
    module = conv()
    module[3].weight.data[:, :4] = 0  # nothing of the convolution's first channel comes through
    model = taylor(module, rand(30, 2, 3, 3), torch.arange(30) % 3, kind="task")
    scores = scored("obs_kfac", model)
    assert bool((scores["0.weight"][0] == 0).all())
    assert bool((scores["0.weight"][1:] > 0).all())


def shrink(model: TaylorModel, by: float) -> None:
    """As if the last layer's inputs were nearly zero at all positions that its Gram has seen; its gradient stays."""
    model.moments["3"] = replace(model.moments["3"], xx=by * model.moments["3"].xx)


@pytest.mark.parametrize("by", [0.0, 1e-300])
def test_a_layer_that_is_dead_does_not_move(by: float) -> None:
    model, still = fitted("task"), fitted("task")
    shrink(model, by)
    shrink(still, by)
    still.gradient["3.weight"].zero_()
    found, wanted = (scored("obs_kfac", m) for m in (model, still))
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values)


@pytest.mark.parametrize("by", [1e-14, 1e-80])
def test_more_damping_holds_a_layer_back_that_is_nearly_dead(by: float) -> None:
    model, sizes = fitted("task"), []
    shrink(model, by)
    for damping in (1e-2, 1.0, 1e2):
        model.damping = damping
        masks = model.network.masks()
        assert all(bool(s.isfinite().all()) for s in scored("obs_kfac", model, masks).values())
        sizes.append(float(obs_kfac._newton_steps(model, model.network, masks)["3.weight"].abs().max()))
    assert 1e12 > sizes[0] > 100 * sizes[1] > 1000 * sizes[2] > 0


def test_scores_are_in_units_of_the_error() -> None:
    """Exact for a linear network of independent outputs, whose Gauss-Newton matrix is K-FAC's."""
    module, x = nn.Linear(5, 2).eval(), rand(400, 5)
    x = x - x.mean(0)
    model = taylor(module, x, task="regression", damping=1e-9)
    scores = scored("obs_kfac", model)
    h = (x.T @ x / len(x)).double()
    inverse, w = torch.linalg.inv(h), module.weight.detach().double()
    for row, column in ((0, 1), (1, 4)):
        d = torch.zeros_like(w)
        d[row] = -w[row, column] / inverse[column, column] * inverse[column]
        assert float(scores["weight"][row, column]) == pytest.approx(
            model.predict({"weight": d.float()}).second_order, rel=1e-4
        )
