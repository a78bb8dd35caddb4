"""``prunetaylor.load``: the network in a run's folder or in any checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunetaylor.core.config.code import Trust
from prunetaylor.network.checkpoint.architecture.build import build_network
from prunetaylor.network.checkpoint.read import read


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    args: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Return the network in ``path``, a checkpoint or the folder of a run or a model, in eval mode on ``device``.

    ``arch`` and ``args`` name it if the file does not: ``torchvision:NAME``, ``timm:NAME``, ``hf:DIR``,
    ``FILE.py:FACTORY`` or ``package.module:FACTORY``. Code that only the file names is imported only with
    ``trust_code=True``.

    Raises UsageError (no such file, an unknown network) and CheckpointRefused (damage, code, tensors that do not fit).
    """
    return build_network(arch, args, read(path), trust=Trust(everything=trust_code)).module.to(device)
