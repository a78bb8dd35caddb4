"""A small trained network with its samples as files, and what a command line says to use them."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import torch
from torch import nn

from support.networks import ConvNet
from support.runs import TEST, TRAIN


def write_model(module: nn.Module, folder: Path) -> list[str]:
    """Write a trained ``ConvNet`` to model.pt, with its code and its samples; return the words that name all three."""
    header = "import torch\nfrom torch import Tensor, nn\n\n\n"
    (folder / "net.py").write_text(header + inspect.getsource(ConvNet))
    torch.save(module.state_dict(), folder / "model.pt")
    arrays = {
        f"{name}_{part}": pair[i].numpy()
        for part, pair in (("train", TRAIN), ("test", TEST))
        for i, name in enumerate("xy")
    }
    np.savez(folder / "data.npz", **arrays)
    return [
        str(folder / "model.pt"),
        *("--arch", f"{folder / 'net.py'}:ConvNet"),
        *("--data", f"arrays:{folder / 'data.npz'}"),
        *("--device", "cpu"),
    ]
