"""What a network is for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.battery.cases import Case, case, labelled, rand

CE = nn.CrossEntropyLoss()
N = 200


def mlp(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, outputs))


@case
def regression() -> Case:
    x = rand(N, 8)
    return Case("regression", mlp(2), [(a, a[:2].sin()) for a in x], F.mse_loss)


@case
def regression_one_number() -> Case:
    x = rand(N, 8)
    module = nn.Sequential(*mlp(1), nn.Flatten(0))
    return Case("regression_one", module, [(a, a.sum().sin()) for a in x], F.mse_loss)


@case
def binary() -> Case:
    x = rand(N, 8)
    return Case("binary", mlp(1), [(a, (a.sum(0, keepdim=True) > 0).float()) for a in x],
                F.binary_cross_entropy_with_logits)  # fmt: skip


@case
def multi_label() -> Case:
    x = rand(N, 8)
    return Case("multi_label", mlp(4), [(a, (a[:4] > 0).float()) for a in x], F.binary_cross_entropy_with_logits)


@case
def soft_labels() -> Case:
    x = rand(N, 8)
    return Case("soft_labels", mlp(), [(a, (2 * a[:3]).softmax(0)) for a in x], CE)


@case
def one_hot_labels() -> Case:
    rows = [(a, F.one_hot(torch.tensor(y), 3)) for a, y in labelled(rand(N, 8))]
    return Case("one_hot", mlp(), rows, lambda z, y: CE(z, y.float()))


@case
def segmentation() -> Case:
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    x = rand(N, 1, 8, 8)
    return Case("segmentation", module, [(a, (a[0] > 0).long() + (a[0] > 1).long()) for a in x], CE)


@case
def segmentation_with_ignored_pixels() -> Case:
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    x = rand(N, 1, 8, 8)
    y = [torch.where(a[0] < -1, -100, (a[0] > 0).long() + (a[0] > 1).long()) for a in x]
    return Case("segmentation_ignored", module, list(zip(x, y, strict=True)), CE)


class Tiny(nn.Module):
    """A causal language model of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 16), nn.Parameter(0.1 * rand(8, 16, seed=1))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 20)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.block(self.embed(ids) + self.place, src_mask=mask, is_causal=True))


def text() -> Tensor:
    start = torch.randint(20, (N, 1), generator=torch.Generator().manual_seed(0))
    return (start + 3 * torch.arange(9)) % 20


def next_word(z: Tensor, y: Tensor) -> Tensor:
    return CE(z.flatten(0, 1), y.flatten())


@case
def language_model() -> Case:
    return Case("language_model", Tiny(), [(row[:-1], row[1:]) for row in text()], next_word)


@case
def token_classes_with_padding() -> Case:
    rows = [(row[:-1], torch.where(torch.arange(8) < 5, row[:-1] % 3, -100)) for row in text()]

    class Net(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 3)

    return Case("token_classes", Net(), rows, next_word)


@case
def embedding() -> Case:
    """No labels, no classes: the outputs are features."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(12)

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.body(x), dim=1)

    rows: list[Any] = list(rand(N, 8))
    collate = lambda some: (torch.stack(some), F.normalize(torch.stack(some) @ rand(8, 12, seed=4), dim=1))  # noqa: E731
    return Case("embedding", Net(), rows, F.mse_loss, collate=collate)


@case
def autoencoder() -> Case:
    module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    return Case("autoencoder", module, [(a, a) for a in rand(N, 8)], F.mse_loss)


@case
def image_to_image() -> Case:
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    return Case("image_to_image", module, [(a, a.flip(2)) for a in rand(N, 1, 8, 8)], F.mse_loss)


@case
def sequence_regression() -> Case:
    module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    return Case("sequence_regression", module, [(a, a[:, :2].sin()) for a in rand(N, 6, 4)], F.mse_loss)


@case
def unbalanced_classes() -> Case:
    return Case("unbalanced", mlp(3), [(a, 0 if a[0] < 1.5 else 2) for a in rand(N, 8)], CE)
