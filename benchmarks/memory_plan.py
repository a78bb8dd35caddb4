"""Planned against measured peak memory of whole runs, each in a process of its own.

    python benchmarks/memory_plan.py [--networks resnet20 resnet18] [--methods obs obd ...] [key=value ...]

Needs no data: random weights and samples, ResNet-20 on 1,000 of 3 x 32 x 32 and torchvision's ResNet-18 on 64 of
3 x 64 x 64, 80 % removed in one stage with the method's own repair, no labels, the cache of fits in use. Measured is
the peak of resident memory above that of Python with everything imported; the plan counts network and samples too.
A line a run is added to benchmarks/memory_plan.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from curvature_cost import HERE, _set_batch_norm, machine, peak

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import Silent
from prunetaylor.data.load import from_python
from prunetaylor.network.checkpoint.architecture.factory import build
from prunetaylor.pipeline.job import make_job
from prunetaylor.pipeline.run import run
from prunetaylor.runtime.torchvision_import import import_torchvision

MIB = 2**20
METHODS = ("obs", "obd", "obs_fisher", "joint", "obs_kfac")
NETWORKS = {
    "resnet20": (f"{HERE.parent / 'configs' / 'resnet20_cifar.py'}:resnet20", 1000, 32, 10),  # samples, side, classes
    "resnet18": ("torchvision:resnet18", 64, 64, 1000),
}


def point(network: str, method: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Planned in this process, and measured in it, which has to be a fresh one: a peak never falls."""
    import_torchvision()
    before = peak()
    torch.manual_seed(seed)
    arch, samples, side, classes = NETWORKS[network]
    module = build(arch, {})
    x, y = torch.randn(samples, 3, side, side), torch.arange(samples) % classes
    _set_batch_norm(module, x[:2])
    with tempfile.TemporaryDirectory() as folder:
        usual = {
            "prune.method": method,
            "prune.sparsity": 0.8,
            "prune.stages": 1,
            "calibration.samples": samples,
            "calibration.labels": False,
            "finetune.epochs": 0,
            "cache.dir": folder,
        }
        config = from_values(usual | settings).config
        data = from_python((x, y), (x[:64], y[:64]))
        job = make_job(config, module.eval(), data, torch.device("cpu"))
        start = time.perf_counter()
        outcome = run(job, Silent())
    assert outcome.memory is not None
    measured, planned = peak() - before, outcome.memory.planned
    return {
        "network": network,
        "method": method,
        "samples": samples,
        "settings": settings,
        "batch": outcome.memory.batch,
        "planned_mib": round(planned / MIB, 1),
        "measured_mib": round(measured / MIB, 1),
        "ratio": round(planned / measured, 2),
        "phase": outcome.memory.phase,
        "parts_mib": {name: round(size / MIB, 1) for name, size in outcome.memory.parts.items()},
        "seconds": round(time.perf_counter() - start, 1),
        "seed": seed,
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--point", action="store_true", help="the first of each only, as JSON, here")
    parser.add_argument("--out", type=Path, default=HERE / "memory_plan.jsonl")
    args, rest = parser.parse_known_args()
    if args.point:
        settings = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in rest)}
        print(json.dumps(point(args.networks[0], args.methods[0], settings, args.seed)))
        return
    print("| network | method | planned, MiB | measured, MiB | planned / measured | largest phase |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for network in args.networks:
        for method in args.methods:
            command = [sys.executable, __file__, "--point", "--networks", network, "--methods", method]
            command += ["--seed", str(args.seed), *rest]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            cells = (row["planned_mib"], row["measured_mib"], row["ratio"], row["phase"])
            print(f"| {network} | {method} | {' | '.join(map(str, cells))} |", flush=True)
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
