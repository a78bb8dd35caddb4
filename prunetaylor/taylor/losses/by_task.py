"""The loss of each task that has a name."""

from __future__ import annotations

from prunetaylor.taylor.losses.binary_cross_entropy import BinaryCrossEntropy
from prunetaylor.taylor.losses.cross_entropy import CrossEntropy
from prunetaylor.taylor.losses.interface import ExponentialFamilyLoss
from prunetaylor.taylor.losses.squared_error import SquaredError

LOSSES: dict[str, ExponentialFamilyLoss] = {
    "classification": CrossEntropy(),
    "binary": BinaryCrossEntropy(),
    "regression": SquaredError(),
    "features": SquaredError(),  # the targets are the dense network's outputs
}
