"""Random: any weight may go. What a criterion has to be better than.

s_j ~ U(0, 1)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.network.network import Network
from prunetaylor.taylor.memory import FLOAT, Phase, Sizes
from prunetaylor.taylor.model import TaylorModel

SUMMARY = "weights are removed at random"
COST = "none; needs no data"
USE = "a lower bound for other methods"
NEEDS = "nothing"
REPAIR = "none"
FIRST_ORDER = False
DAMPED = False
MAX_STAGE_FRACTION = None


def memory(sizes: Sizes) -> list[Phase]:
    """The scores."""
    return [Phase("scores", {"scores": FLOAT * sizes.weights})]


def score(
    model: TaylorModel | None, network: Network, masks: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    return {
        layer.parameter: torch.rand(layer.weight.shape, generator=generator).to(layer.weight.device)
        for layer in network.layers
    }
