"""Tiny smooth networks, for products with whole Jacobians and Hessians."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from support.tiny import rand


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 2), nn.Tanh(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(2, 3))


def normed() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        module[1].running_mean.copy_(0.2 * rand(3))
        module[1].running_var.copy_(1 + rand(3, seed=1).abs())
    return module


def transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose1d(2, 2, 2, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3))


NETWORKS = {
    "mlp": (mlp, (3,)),
    "conv": (conv, (2, 3, 3)),
    "tied": (Tied, (3,)),
    "normed": (normed, (2, 3, 3)),
    "transposed": (transposed, (2, 3)),
}


def case(name: str, samples: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = NETWORKS[name]
    return make().eval(), 1.5 * rand(samples, *shape), torch.arange(samples) % 3
