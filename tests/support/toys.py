"""Small trained networks with their samples, for tests of whole runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Pair = tuple[Tensor, Tensor]


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


class Idle(nn.Module):
    """A network inside one that has a layer which no input reaches."""

    def __init__(self, used: nn.Module) -> None:
        super().__init__()
        self.used, self.idle = used, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def mlp(features: int = 6, outputs: int = 3, width: int = 24) -> nn.Sequential:
    """Smooth, so that its error has the expansion that the Taylor model takes."""
    return nn.Sequential(
        nn.Linear(features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


def quadrants(n: int, seed: int) -> Pair:
    """Noisy images (N, 1, 6, 6) and which of their quadrants is bright (N,)."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.6 * torch.randn(n, 1, 6, 6, generator=generator)
    y = torch.randint(4, (n,), generator=generator)
    for i, label in enumerate(y.tolist()):
        x[i, 0, 3 * (label // 2) : 3 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += 1
    return x, y


def curve(n: int, seed: int) -> Pair:
    """Features (N, 6) and three smooth functions of them (N, 3)."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, torch.stack([x[:, 0].sin() + x[:, 1], x[:, 2] * x[:, 3].tanh(), x[:, 4] - x[:, 5]], dim=1)


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


class Recording(Dataset[Any]):
    """Samples that note which of them are read, in ``seen``."""

    def __init__(self, data: Pair) -> None:
        self.data = data
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.seen.append(index)
        return self.data[0][index], int(self.data[1][index])
