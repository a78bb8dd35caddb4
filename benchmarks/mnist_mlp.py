"""784-40-20-10 without biases, the small network that the pruning literature has for MNIST."""

from torch import nn


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 40, bias=False),
        nn.ReLU(),
        nn.Linear(40, 20, bias=False),
        nn.ReLU(),
        nn.Linear(20, 10, bias=False),
    )
