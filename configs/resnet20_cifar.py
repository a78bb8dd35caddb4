"""The ResNet-20 for CIFAR (He et al. 2016, section 4.2): 16, 32 and 64 channels, shortcuts without parameters.

An example of a network file:

    prunetaylor prune resnet20.pt --arch configs/resnet20_cifar.py:resnet20 --data folder:cifar10
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Shortcut(nn.Module):
    """A shortcut without parameters: it keeps every second pixel, and pads new channels with zeros."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.pad = (channels_out - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) to (N, C + 2 pad, H/2, W/2)
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(channels_in, channels_out)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._layer(16, 16, 1, blocks)
        self.layer2 = self._layer(16, 32, 2, blocks)
        self.layer3 = self._layer(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _layer(channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Sequential:
        first = Block(channels_in, channels_out, stride)
        return nn.Sequential(first, *(Block(channels_out, channels_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32) to (N, num_classes)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnet20(num_classes: int = 10) -> nn.Module:
    return ResNet(blocks=3, num_classes=num_classes)
