"""How time and memory of curvatures grow with the samples: n, 2n and 4n of them, each point in a process of its own.

    python benchmarks/curvature_growth.py resnet20 [--samples 256] [--repeats 3]
    python benchmarks/curvature_growth.py resnet50 --samples 13 --repeats 1 --what "layer Grams"

Memory is the process's peak above what it needed for the network and the samples: the fit with a batch's activations
and the allocator's slack. A line a point is added to benchmarks/curvature_growth.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curvature_cost import NETWORKS, Case, machine, make, peak

from prunetaylor.taylor.curvature.fisher import fisher_rows
from prunetaylor.taylor.curvature.gram import Positions, layer_moments

RESULTS = Path(__file__).parent / "curvature_growth.jsonl"
MIB = 2**20


def grams(case: Case, seed: int) -> object:
    where = Positions(case.batches.samples, seed)
    return layer_moments(case.network.module, case.network.layers, case.batches, where)


def rows(case: Case, seed: int) -> object:
    return fisher_rows(case.risk, case.network.layers, seed)


FITS: dict[str, Callable[[Case, int], object]] = {
    "layer Grams": grams,
    "Fisher rows": rows,
}


def point(network: str, samples: int, what: str, repeats: int, seed: int) -> dict[str, Any]:
    """Measured in this process, which has to be a fresh one: a peak never falls."""
    case, fit = make(network, samples, seed), FITS[what]
    before = peak()
    fit(case, seed)
    extra = peak() - before
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        fit(case, seed)
        seconds.append(time.perf_counter() - start)
    weights = sum(layer.weight.numel() for layer in case.network.layers)
    return {
        "network": network,
        "what": what,
        "samples": samples,
        "batch_size": case.batches.batch_size,
        "weights": weights,
        "seconds": [round(s, 4) for s in seconds],
        "extra_mib": round(extra / MIB, 1),
        "seed": seed,
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--samples", type=int, default=256, help="n; 2n and 4n are measured too")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--what", nargs="+", choices=FITS, default=list(FITS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--point", action="store_true", help="this number of samples only, as JSON, here")
    args = parser.parse_args()
    if args.point:
        print(json.dumps(point(args.network, args.samples, args.what[0], args.repeats, args.seed)))
        return
    print("| what | samples | median, s | ms a sample | extra memory, MiB | of these rows n x p |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for what in args.what:
        for samples in (args.samples, 2 * args.samples, 4 * args.samples):
            command = [sys.executable, __file__, args.network, "--point", "--what", what, "--samples", str(samples)]
            command += ["--repeats", str(args.repeats), "--seed", str(args.seed)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            median = statistics.median(row["seconds"])
            held = f"{4 * samples * row['weights'] / MIB:.1f}" if what == "Fisher rows" else ""
            each = 1000 * median / samples
            print(f"| {what} | {samples} | {median:.3f} | {each:.2f} | {row['extra_mib']} | {held} |", flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
