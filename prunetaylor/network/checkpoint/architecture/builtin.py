"""The networks that come with the package: ``builtin:digits`` and ``builtin:lenet``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Digits(nn.Module):
    """A small network for 8 x 8 grey images: (N, 1, 8, 8) to (N, num_classes). 90,090 parameters at 10 classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(256, 128)
        self.fc2 = nn.Linear(128, num_classes)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        x = self.pool(self.relu(self.bn3(self.conv3(x))))
        y: Tensor = self.fc2(self.relu(self.fc1(x.flatten(1))))
        return y


class LeNet(nn.Module):
    """LeNet-5 as Caffe has it, 20-50-500: (N, 1, 28, 28) to (N, num_classes). 431,080 parameters at 10.

    LeCun et al. 1998; the sizes that Han et al. 2015 and the pruning literature since then mean by "LeNet-5".
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        y: Tensor = self.fc2(self.relu(self.fc1(x.flatten(1))))
        return y


NETWORKS: dict[str, Callable[..., nn.Module]] = {"digits": Digits, "lenet": LeNet}
