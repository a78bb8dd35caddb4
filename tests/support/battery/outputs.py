"""Forms of what a network returns."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from support.battery.cases import Case, case, labelled, rand

CE = nn.CrossEntropyLoss()
Pair = namedtuple("Pair", "logits features")


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 24), nn.Linear(24, 12), nn.Linear(12, 3)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.b(self.a(x).relu()).relu()
        return features, self.head(features)


def of(form: Any, pick: Any) -> Case:
    class Net(Body):
        def forward(self, x: Tensor) -> Any:
            return form(*self.both(x))

    return Case("outputs", Net(), labelled(rand(200, 8)), lambda z, y: CE(pick(z), y))


@case
def logits_then_features() -> Case:
    return of(lambda features, logits: (logits, features), lambda z: z[0])


@case
def features_then_logits() -> Case:
    return of(lambda features, logits: (features, logits), lambda z: z[1])


@case
def dict_of_logits() -> Case:
    return of(lambda features, logits: {"features": features, "logits": logits}, lambda z: z["logits"])


@case
def dict_of_another_name() -> Case:
    return of(lambda features, logits: {"embedding": features, "scores": logits}, lambda z: z["scores"])


@case
def named_tuple() -> Case:
    return of(lambda features, logits: Pair(logits, features), lambda z: z.logits)


@case
def data_class() -> Case:
    @dataclass
    class Output:
        features: Tensor
        logits: Tensor

    return of(Output, lambda z: z.logits)


@case
def auxiliary_heads() -> Case:
    """As Inception and GoogLeNet in training: logits and auxiliary logits."""

    class Net(Body):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Any:
            features, logits = self.both(x)
            return (logits, self.extra(features)) if self.training else logits

    def auxiliary(z: Any, y: Tensor) -> Tensor:
        return CE(z[0], y) + 0.3 * CE(z[1], y) if isinstance(z, tuple) else CE(z, y)

    return Case("auxiliary", Net(), labelled(rand(200, 8)), auxiliary)


@case
def its_own_loss() -> Case:
    """With labels it returns its loss, as Hugging Face's networks do."""

    class Net(Body):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            _, logits = self.both(x)
            return {"logits": logits} if labels is None else {"loss": CE(logits, labels), "logits": logits}

    rows: Any = [{"x": x, "labels": y} for x, y in labelled(rand(200, 8))]

    def collate(some: list[Any]) -> Any:
        import torch

        batch = torch.utils.data.default_collate(some)
        return batch, batch["labels"]

    return Case("own_loss", Net(), rows, lambda z, y: z["loss"], collate=collate)


@case
def softmax_at_the_end() -> Case:
    return of(lambda features, logits: logits.softmax(1), lambda z: (z + 1e-9).log())


@case
def log_softmax_at_the_end() -> Case:
    return of(lambda features, logits: logits.log_softmax(1), lambda z: z)
