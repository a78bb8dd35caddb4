"""Throughput of fine-tuning under masks against a plain training loop of the same network, in one run.

    python benchmarks/training_speed.py [--networks resnet20 lenet] [--rounds 7] [--device cpu]

Needs no data. The plain loop is what one writes by hand: zero_grad, forward, cross-entropy, backward, SGD with Nesterov
momentum, in the memory layout given; both loops read the same batches. Rounds alternate; ratios are medians over
rounds, above 1 where the masked loop is the faster. A line a network is added to benchmarks/training_speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from curvature_cost import HERE, machine
from torch import nn

from prunetaylor.data.samples import Batches, Preprocess, TensorSplit
from prunetaylor.network.checkpoint.architecture.factory import build
from prunetaylor.network.network import Network
from prunetaylor.network.state import channels_last
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.pruning.training.train import Training

NETWORKS = {
    "resnet20": (f"{HERE.parent / 'configs' / 'resnet20_cifar.py'}:resnet20", (3, 32, 32)),
    "lenet": ("builtin:lenet", (1, 28, 28)),
}
BATCH = 64


def batches(shape: tuple[int, ...], samples: int, device: torch.device) -> Batches:
    drawn = torch.Generator().manual_seed(0)
    split = TensorSplit(torch.randn(samples, *shape, generator=drawn), torch.arange(samples) % 10)
    return Batches(split, Preprocess(), batch_size=BATCH, device=device, generator=drawn, shuffle=True, drop_last=True)


def plain(module: nn.Module, data: Batches, layout: torch.memory_format) -> None:
    """An epoch of the loop that one writes by hand."""
    module.train().to(memory_format=layout)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for x, y in data:
        x = x.contiguous(memory_format=layout)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()


def masked(module: nn.Module, data: Batches, device: torch.device) -> None:
    """An epoch of ours, 90 % of the weights removed, without a teacher: the same work."""
    generator = torch.Generator().manual_seed(1)
    masks = {
        layer.parameter: (torch.rand(layer.weight.shape, generator=generator) > 0.9).to(device)
        for layer in Network.from_module(module).layers
    }
    options = TrainingSettings(lr=0.01, precision="float32")
    loss = nn.functional.cross_entropy
    training = Training(module, masks, data, options=options, epochs=1, loss=loss, device=device, generator=generator)
    with channels_last(module):  # as a run's are: prunetaylor/layout.py
        for _ in training.run():
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=HERE / "training_speed.jsonl")
    args = parser.parse_args()
    for name in args.networks:
        arch, shape = NETWORKS[name]
        data = batches(shape, args.samples, args.device)
        module = build(arch, {}).to(args.device)
        ways: dict[str, Callable[[], None]] = {
            "masked": partial(masked, module, data, args.device),
            "plain": partial(plain, module, data, torch.contiguous_format),
            "plain, channels last": partial(plain, module, data, torch.channels_last),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(args.rounds + 1):  # the first warms up
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                if args.device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    seconds[way].append(time.perf_counter() - start)
        ratios = {
            way: round(statistics.median(p / m for p, m in zip(times, seconds["masked"], strict=True)), 3)
            for way, times in seconds.items()
        }
        rates = {way: round(args.samples / statistics.median(times), 1) for way, times in seconds.items()}
        row = {"network": name, "device": str(args.device), "samples": args.samples, "batch": BATCH, **machine()}
        row |= {"samples_per_second": rates, "ratio": ratios}
        if args.device.type == "cuda":
            row["gpu"] = torch.cuda.get_device_name(args.device)
        with args.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(name, rates, ratios, flush=True)


if __name__ == "__main__":
    main()
