"""What the kept weights do about the removed ones, held against the minimum of the layer's own error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunetaylor.pruning.repairs.obs import compensate
from prunetaylor.taylor.curvature.solve import damped
from support.samples import rand
from support.taylor_models import taylor


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5])  # few, about half, most of a row's weights go
@pytest.mark.parametrize("absorbed", [True, False])
def test_it_is_where_the_layer_s_error_is_least(absorbed: bool, threshold: float) -> None:
    model = taylor(nn.Linear(5, 6), rand(40, 5) @ rand(5, 5, seed=1) + 2, damping=1e-4)
    layer, moments = model.network.layers[0], model.moments[""]
    keep = layer.matrix(rand(6, 5, seed=2) > threshold)
    assert len(keep.sum(2).unique()) >= 2
    moved, means = compensate(layer, moments, keep, absorbed, model.damping, model.note)
    w = layer.matrix(layer.weight.detach()).double()
    torch.testing.assert_close(moved[~keep], -w[~keep], rtol=0, atol=0)
    h = (moments.centred() if absorbed else moments.plain())[0]
    slope = moved @ damped(h, model.damping)  # of d'Hd / 2: nothing is left of it on what may move
    scale = float((w @ h).abs().max())
    assert float(slope[keep].abs().max()) < 1e-9 * scale
    assert float(slope[~keep].abs().max()) > 1e-3 * scale
    assert (means is not None) == absorbed
    if means is not None:
        torch.testing.assert_close(means, (moved @ moments.xx[:, -1, :-1].unsqueeze(2)).squeeze(2))


def test_nothing_removed_nothing_moves() -> None:
    model = taylor(nn.Conv2d(4, 4, 2, groups=2), rand(6, 4, 3, 3))
    layer = model.network.layers[0]
    keep = torch.ones_like(layer.matrix(layer.weight), dtype=torch.bool)
    moved, _ = compensate(layer, model.moments[""], keep, True, model.damping, model.note)
    torch.testing.assert_close(moved, torch.zeros_like(moved), rtol=0, atol=1e-12)
