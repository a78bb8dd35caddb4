"""What curvatures cost, in units of a plain forward and backward pass over the same samples in the same batches.

    python benchmarks/curvature_cost.py resnet20 [--samples 256] [--repeats 7] [--exact]
    python benchmarks/curvature_cost.py resnet50 --samples 26 --repeats 5

Needs no data: random weights, random inputs of 3 x 32 x 32 or 3 x 224 x 224, in batches of the pipeline's size.
Everything is timed in turn, round after round, in one process, so that whatever else the machine does falls on all of
it. Where much else runs, threads wait for each other: read the ratio of processor time, with OMP_NUM_THREADS=1. The
limits are the project's own. A line is added to benchmarks/curvature_cost.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunetaylor.core.config.schema import DataSection
from prunetaylor.data.samples import Batches, Preprocess, TensorSplit
from prunetaylor.network.checkpoint.architecture.factory import build
from prunetaylor.network.network import Network
from prunetaylor.pipeline.sampling.calibration import CHUNK_ELEMENTS
from prunetaylor.taylor.curvature.gradients import EXACT_OUTPUTS, gauss_newton_diagonal, output_sensitivity
from prunetaylor.taylor.curvature.gram import Positions, layer_moments
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.risk import Risk

HERE = Path(__file__).parent
PLAIN = "plain forward and backward"
LIMITS = {"layer Grams": 1.5, "output sensitivities": 3.0}


@dataclass(frozen=True)
class Case:
    """A network with random weights and the samples to fit it on."""

    network: Network
    batches: Batches
    risk: Risk  # cross-entropy with labels: no pass of its own is needed for a reference


NETWORKS = {
    "resnet20": (f"{HERE.parent / 'configs' / 'resnet20_cifar.py'}:resnet20", 32, 10),  # side of the input, classes
    "resnet50": ("torchvision:resnet50", 224, 1000),
}


def make(name: str, samples: int, seed: int) -> Case:
    """The same weights and the same first samples for every number of samples."""
    torch.manual_seed(seed)
    arch, side, classes = NETWORKS[name]
    module = build(arch, {})
    each = 3 * side * side
    size = min(DataSection().batch_size, CHUNK_ELEMENTS // each)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, side, side, generator=generator)
    y = torch.arange(samples) % classes
    _set_batch_norm(module, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed + 1)))
    batches = Batches(TensorSplit(x, y), Preprocess(), batch_size=size, device="cpu")
    return Case(Network.from_module(module), batches, Risk(module.eval(), batches, Objective("classification", "task")))


def _set_batch_norm(module: nn.Module, x: torch.Tensor) -> None:
    """Statistics of ``x``: without them the outputs of random weights saturate the softmax."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    with torch.no_grad():
        module.train()(x)
    for m, momentum in zip(norms, usual, strict=True):
        m.momentum = momentum


def plain(case: Case) -> None:
    """All parameters' gradients, in evaluation mode like the curvatures: training-mode batch norm costs more."""
    module = case.network.module
    module.zero_grad(set_to_none=True)
    for x, y in case.batches:
        nn.functional.cross_entropy(module(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)


def tasks(case: Case, seed: int, exact: bool) -> dict[str, Callable[[], object]]:
    layers, risk = case.network.layers, case.risk
    where = Positions(case.batches.samples, seed)
    found: dict[str, Callable[[], object]] = {
        PLAIN: lambda: plain(case),
        "layer Grams": lambda: layer_moments(case.network.module, layers, case.batches, where),
        "output sensitivities": lambda: output_sensitivity(risk, layers, seed),
    }
    if exact:
        outputs = case.network.layers[-1].weight.shape[0]
        how = f"exact over {outputs} outputs" if outputs <= EXACT_OUTPUTS else "4 drawn labels a sample"
        found[f"Gauss-Newton diagonal, {how}"] = lambda: gauss_newton_diagonal(risk, layers, seed)
    return found


def measure(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, processor) seconds of each repeat; a round before the first is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, run in work.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            if repeat:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return seconds


def ratios(seconds: dict[str, list[tuple[float, float]]], clock: int) -> dict[str, float]:
    """The median of each round's own ratio to the plain pass: a slow spell falls on what was timed beside it."""
    return {
        name: statistics.median(v[clock] / p[clock] for v, p in zip(values, seconds[PLAIN], strict=True))
        for name, values in seconds.items()
    }


def machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak() -> int:
    """Bytes of resident memory, at most so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--exact", action="store_true", help="time the Gauss-Newton diagonal too; it has no limit")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    case = make(args.network, args.samples, args.seed)
    seconds = measure(tasks(case, args.seed, args.exact), args.repeats)
    wall, processor = ratios(seconds, 0), ratios(seconds, 1)
    where = machine()
    print(f"{args.network}, {args.samples} samples in batches of {case.batches.batch_size}, {args.repeats} rounds")
    print(f"{where['processor']}, {where['threads']} threads, torch {where['torch']}\n")
    print("| what | median, s | ratio | of processor time | limit |\n| --- | ---: | ---: | ---: | ---: |")
    for name, values in seconds.items():
        median = statistics.median(v for v, _ in values)
        print(f"| {name} | {median:.3f} | {wall[name]:.2f} | {processor[name]:.2f} | {LIMITS.get(name, '')} |")
    row = {
        "network": args.network,
        "samples": args.samples,
        "batch_size": case.batches.batch_size,
        "seed": args.seed,
        **where,
        "load": round(os.getloadavg()[0], 2),
        "seconds": {name: [round(v, 4) for v, _ in values] for name, values in seconds.items()},
        "ratio": {name: round(value, 3) for name, value in wall.items()},
        "processor_ratio": {name: round(value, 3) for name, value in processor.items()},
    }
    with (HERE / "curvature_cost.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
