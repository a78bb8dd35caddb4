"""Train a network on MNIST and write it as a checkpoint that says what it is.

    python benchmarks/train_mnist.py ROOT lenet.pt              # builtin:lenet, 431,080 parameters, to convergence
    python benchmarks/train_mnist.py ROOT mlp.pt --arch benchmarks/mnist_mlp.py:mlp --epochs 1 --lr 0.01

ROOT is the folder that holds MNIST/raw, in torchvision's layout. A minute or two on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from prunetaylor.core.config.schema import DataSection
from prunetaylor.data.load import load_samples
from prunetaylor.data.samples import Batches
from prunetaylor.measure.evaluate import evaluate
from prunetaylor.measure.metrics import load_metric
from prunetaylor.network.checkpoint.architecture.factory import build
from prunetaylor.network.checkpoint.write import write_pt
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.pruning.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--arch", default="builtin:lenet")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    module = build(args.arch, {})
    root = str(args.root.resolve())
    samples = load_samples(DataSection(source="torchvision:MNIST", root=root), seed=args.seed)
    assert samples is not None
    generator = torch.Generator().manual_seed(args.seed)
    batches = Batches(
        samples.train,
        samples.preprocess,
        batch_size=128,
        device="cpu",
        generator=generator,
        shuffle=True,
        drop_last=True,
    )
    states = train(
        module,
        {},
        batches,
        options=TrainingSettings(lr=args.lr, weight_decay=5e-4),
        epochs=args.epochs,
        loss=nn.functional.cross_entropy,
        device=torch.device("cpu"),
        generator=generator,
    )
    for state in states:
        if state.epoch_done:
            print(f"epoch {state.epoch}: loss {state.epoch_loss:.4f}", flush=True)
    test = Batches(samples.test, samples.preprocess, batch_size=500, device="cpu")
    top1 = evaluate(module, test, "classification", load_metric("top1")).metrics["top1"]
    data = {"source": "torchvision:MNIST", "root": root, "normalize": "mnist", "augment": "none", "classification": 10}
    write_pt(args.output, module, arch=args.arch, args={}, data=data, extra={"top1": top1})
    print(f"{args.output}: top-1 {top1:.2f} % on {len(samples.test):,} test images")


if __name__ == "__main__":
    main()
