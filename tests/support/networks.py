"""Small networks: those of whole runs, and tiny smooth ones whose whole Jacobians and Hessians are cheap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from support.samples import Pair, rand


class ConvNet(nn.Module):
    """(N, 1, 6, 6) to (N, 4): two convolutions without biases, each with its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 2)
        return self.fc(self.bn2(self.conv2(x)).relu().flatten(1))


class Attention(nn.Module):
    """(N, 1, 6, 6), read as six tokens, to (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.place = nn.Parameter(0.1 * torch.randn(6, 16))
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.squeeze(1)) + self.place).mean(1))


class Unreached(nn.Module):
    """A network and beside it a layer that no input reaches."""

    def __init__(self, used: nn.Module) -> None:
        super().__init__()
        self.used, self.unreached = used, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def mlp(features: int = 6, outputs: int = 3, width: int = 24) -> nn.Sequential:
    """Smooth, so that its error has the expansion that the Taylor model takes."""
    return nn.Sequential(
        nn.Linear(features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


def trained(module: nn.Module, data: Pair, loss: Callable[[Tensor, Tensor], Tensor], steps: int = 150) -> nn.Module:
    """``module`` after some steps of Adam on all of ``data``, with the learning rate falling to zero."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module(data[0]), data[1]).backward()
        optimizer.step()
        schedule.step()
    module.zero_grad(set_to_none=True)
    return module.eval()


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


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 2), nn.Tanh(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(2, 3))


def normed(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), norm(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        module[1].running_mean.copy_(0.2 * rand(3))
        module[1].running_var.copy_(1 + rand(3, seed=1).abs())
    return module


def transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose1d(2, 2, 2, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3))


NETWORKS = {
    "mlp": (two_layers, (3,)),
    "conv": (conv, (2, 3, 3)),
    "tied": (Tied, (3,)),
    "normed": (normed, (2, 3, 3)),
    "transposed": (transposed, (2, 3)),
}


def network_case(name: str, samples: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network by name with inputs of its shape and one of three classes for each."""
    make, shape = NETWORKS[name]
    return make().eval(), 1.5 * rand(samples, *shape), torch.arange(samples) % 3
