"""Operators and wrappers that derivatives, hooks or copies find hard; and what is rightly refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from support.battery.cases import Case, case, labelled, rand

CE = nn.CrossEntropyLoss()
N = 200


class Square(torch.autograd.Function):
    """A function of the user's without a forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def of(forward: Any, samples: Any = None, refused: str | None = None) -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return Case("operator", Net(), samples or labelled(rand(N, 8)), CE, refused=refused)


@case
def custom_function() -> Case:
    return of(lambda m, x: m.head(m.b(Square.apply(m.a(x))).relu()))


@case
def cdist() -> Case:
    return of(lambda m, x: m.head(torch.cdist(m.a(x).unsqueeze(1), m.b.weight.expand(len(x), -1, -1)).squeeze(1)))


@case
def grid_sample() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.theta, self.head = nn.Conv2d(1, 6, 3), nn.Linear(64, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            theta = torch.eye(2, 3).expand(len(x), 2, 3) + 0.1 * self.theta(x.flatten(1)).view(-1, 2, 3)
            x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
            return self.head(self.conv(x).relu().mean((2, 3)))

    return Case("grid_sample", Net(), labelled(rand(N, 1, 8, 8)), CE)


@case
def reentrant_checkpoint() -> Case:
    return of(lambda m, x: m.head(checkpoint(m.b, m.a(x).relu(), use_reentrant=True).relu()))


@case
def checkpoint_without_reentry() -> Case:
    return of(lambda m, x: m.head(checkpoint(m.b, m.a(x).relu(), use_reentrant=False).relu()))


@case
def fourier() -> Case:
    return of(lambda m, x: m.head(torch.fft.rfft(m.b(m.a(x).relu())).abs()[:, :8].repeat(1, 2)))


@case
def in_place() -> Case:
    return of(lambda m, x: m.head(m.b(m.a(x).relu_()).add_(1).relu_()))


@case
def data_parallel() -> Case:
    made = of(lambda m, x: m.head(m.b(m.a(x).relu()).relu()))
    return Case("data_parallel", nn.DataParallel(made.module), made.samples, CE)


@case
def compiled() -> Case:
    made = of(lambda m, x: m.head(m.b(m.a(x).relu()).relu()))
    return Case("compiled", torch.compile(made.module, backend="eager"), made.samples, CE)  # type: ignore[arg-type]


@case
def scripted_part() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = torch.jit.script(nn.Sequential(nn.Linear(8, 16), nn.ReLU())), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x))

    return Case("scripted", Net(), labelled(rand(N, 8)), CE)


@case
def hook_that_closes_over_itself() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
            self.features: Tensor | None = None
            self.a.register_forward_hook(lambda _, __, y: setattr(self, "features", y))

        def forward(self, x: Tensor) -> Tensor:
            self.a(x)
            assert self.features is not None
            return self.head(self.features.relu())

    return Case("hook", Net(), labelled(rand(N, 8)), CE)


@case
def weight_through_the_state() -> Case:
    return of(lambda m, x: m.head(F.linear(m.a(x).relu(), m.get_parameter("b.weight"), m.b.bias).relu()))


@case
def adaptive_depth() -> Case:
    """How many layers run depends on the sample."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).relu()
        deep = x[:, :1] > 0
        return m.head(torch.where(deep, m.b(h).relu(), h))

    return of(forward)


@case
def batch_statistics_in_evaluation() -> Case:
    """Outputs depend on who else is in the batch."""
    return of(lambda m, x: m.head((lambda h: (h - h.mean(0)) / (h.std(0) + 1e-3))(m.b(m.a(x).relu()))), refused="batch")


@case
def dropout_in_evaluation() -> Case:
    return of(lambda m, x: m.head(F.dropout(m.b(m.a(x).relu()), 0.3, True)), refused="random")


@case
def complex_weights() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(8, 16, dtype=torch.complex64), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x.to(torch.complex64)).abs())

    return Case("complex", Net(), labelled(rand(N, 8)), CE)


@case
def script_module() -> Case:
    made = of(lambda m, x: m.head(m.b(m.a(x).relu()).relu()))
    module = torch.jit.script(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
    return Case("script_module", module, made.samples, CE, refused="TorchScript")


@case
def iterable_data_set() -> Case:
    made = of(lambda m, x: m.head(m.b(m.a(x).relu()).relu()))

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(made.samples)

        def __len__(self) -> int:
            return len(made.samples)

        def __getitem__(self, i: int) -> Any:
            return made.samples[i]

    return Case("iterable", made.module, Stream(), CE, refused="iterable")  # type: ignore[arg-type]
