"""One-shot pruning by every method on the same checkpoint, samples and layers: two tables and a plot.

    python benchmarks/one_shot.py resnet20 --checkpoint FILE --data folder:DIR [--sparsity 0.7 0.8] [--seeds 0 1 2]
    python benchmarks/one_shot.py mlp --checkpoint mlp.pt --sparsity 0.9 0.95 0.98
    python benchmarks/one_shot.py resnet20 --show        # the tables and the plot of what has been measured

Each result is added to benchmarks/one_shot-NAME.jsonl as soon as it is there; what is there is not run again. With
"+ repairs" every method goes through the stages that the default took for the same sparsity and seed, which therefore
comes first; with "+ refinement" it is as it is known, and refined at the end. A run that is refined at the end is
measured before that too: its row keeps both, and is the row without refinement besides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import Silent
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.job import Job, open_job
from prunetaylor.pipeline.run import run

HERE = Path(__file__).parent

# Each as it is known: its own way to move weights or none, and no refinement.
ALONE: dict[str, dict[str, Any]] = {
    "magnitude": {"prune.method": "magnitude"},
    "magnitude + batch norm": {"prune.method": "magnitude", "prune.repair": "batch-norm"},
    "magnitude + least squares": {"prune.method": "magnitude", "prune.repair": "least-squares"},
    "OBD": {"prune.method": "obd"},
    "block OBS in stages (WoodFisher)": {"prune.method": "obs_fisher"},
    "joint, one stage (CHITA, CBS)": {"prune.method": "joint", "prune.repair": "none", "prune.stages": 1},
    "joint in stages": {"prune.method": "joint", "prune.repair": "none"},
    "OBS, one stage": {"prune.method": "obs", "prune.stages": 1},
    "OBS in stages": {"prune.method": "obs"},
    "ExactOBS in stages": {"prune.method": "exact_obs"},
}
# What scoring gives and what repair gives, told apart: the same stages and repairs for all.
REPAIRS, REFINEMENT = " + repairs", " + refinement"
METHODS = [
    *ALONE,
    *(name + REFINEMENT for name in ALONE),
    *(name + REPAIRS for name in ALONE if not name.startswith("magnitude +")),
]


@dataclass(frozen=True)
class Case:
    """A network. ``default`` is the row that ``prunetaylor prune`` comes to by itself, with ``repairs``."""

    settings: dict[str, Any]
    default: str
    repairs: dict[str, Any]

    @property
    def judged(self) -> tuple[str, ...]:
        """Whose predictions are held against what was measured: the default's, and without refinement in its stages."""
        alone = [_name(self.default)] if self.repairs["prune.refine"] == "stages" else []
        return (self.default, *alone)

    @property
    def methods(self) -> list[str]:
        """The default first: others go through its stages."""
        return [self.default, *(name for name in METHODS if name != self.default)]

    def of(self, method: str) -> dict[str, Any]:
        """The settings of a row."""
        name = _name(method)
        more = self.repairs if method.endswith(REPAIRS) else {"prune.refine": "none"}
        return self.settings | ALONE[name] | ({"prune.refine": "last"} if method.endswith(REFINEMENT) else more)

    def without(self, method: str) -> str | None:
        """The row that a run is before it is refined at the end, if it is one."""
        if method.endswith(REFINEMENT) or (method == self.default and self.repairs["prune.refine"] == "last"):
            return _name(method)
        return None


CASES = {
    "resnet20": Case(
        {"model.arch": f"{HERE.parent / 'configs' / 'resnet20_cifar.py'}:resnet20", "data.normalize": "imagenet"},
        "ExactOBS in stages + repairs",
        {"prune.repair": "least-squares", "prune.refine": "last"},
    ),
    # One short epoch from its start: the labels say where to go, and every stage sees fresh samples.
    "mlp": Case(
        {"calibration.labels": True, "calibration.resample": True, "data.batch_size": 1000},
        "ExactOBS in stages + repairs",
        {"prune.repair": "none", "prune.refine": "stages", "prune.refine_by": "gauss-newton"},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=CASES)
    parser.add_argument("--checkpoint")
    parser.add_argument("--data")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    case, results = CASES[args.network], HERE / f"one_shot-{args.network}.jsonl"
    if not args.show:
        common = {"model.checkpoint": args.checkpoint, "finetune.epochs": 0}
        if args.data:
            common["data.source"] = args.data
        measure(results, case, common, args.methods or case.methods, args.sparsity, args.seeds)
    show(case, results, HERE / f"one_shot-{args.network}.svg")


class Before(Silent):
    """Measures the network on the test samples at the end of the stages, before it is refined."""

    def __init__(self, job: Job, sparsity: float) -> None:
        self.job, self.sparsity = job, sparsity
        self.start = time.perf_counter()
        self.top1: float | None = None
        self.seconds = 0.0
        self.measuring = 0.0

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        if values.get("sparsity") != self.sparsity:
            return
        start = time.perf_counter()
        # A last stage that is taken back is followed by another, whose value stands.
        self.top1 = on_test_samples(self.job).metrics["top1"]
        self.seconds = time.perf_counter() - self.start - self.measuring
        self.measuring += time.perf_counter() - start


def on_test_samples(job: Job) -> Evaluation:
    assert job.samples is not None
    return evaluate(job.network.module, job.batches(job.samples.test), job.task, job.metric)


def measure(
    results: Path, case: Case, common: dict[str, Any], methods: list[str], sparsities: list[float], seeds: list[int]
) -> None:
    dense: Evaluation | None = None
    dense_seconds = 0.0
    for seed in seeds:
        for sparsity in sparsities:
            for method in methods:
                done = {(r["method"], r["sparsity"], r["seed"]) for r in read(results)}
                if (method, sparsity, seed) in done:
                    continue
                settings = {**common, **case.of(method), "prune.sparsity": sparsity, "seed": seed}
                if method.endswith(REPAIRS) and method != case.default and "one stage" not in method:
                    settings["prune.stages"] = stages_of(case.default, results, sparsity, seed)
                config = from_values(settings).config
                start = time.perf_counter()
                job = open_job(config, trust=Trust(everything=True), progress=Silent())
                if dense is None:  # the same for all rows
                    opened = time.perf_counter()
                    with use_memory_format(job.facts, job.network.module):
                        dense = on_test_samples(job)
                    dense_seconds = time.perf_counter() - opened
                    start += dense_seconds  # every row has them, this one too
                refined = config.prune.refine == "last"
                before = Before(job, sparsity) if refined else None
                outcome = run(job, before or Silent(), dense_evaluation=dense)
                seconds = time.perf_counter() - start + dense_seconds - (before.measuring if before else 0.0)
                row = {
                    "method": method,
                    "sparsity": sparsity,
                    "seed": seed,
                    "dense": outcome.dense.metrics["top1"],
                    "top1": outcome.pruned.metrics["top1"],
                    "seconds": round(seconds, 1),
                    "threads": torch.get_num_threads(),
                    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                    # all of them, those taken back too; cumulative: from the dense network
                    "stages": [
                        [s.sparsity, s.predicted_change, s.measured_change, s.accepted, s.cumulative_ratio]
                        for s in outcome.stages
                    ],
                }
                found = [row]
                if before is not None:
                    row["unrefined"] = before.top1
                    name = case.without(method)
                    if name is not None and (name, sparsity, seed) not in done:
                        evaluated = 2 * dense_seconds
                        own = {"top1": before.top1, "seconds": round(before.seconds + evaluated, 1)}
                        found.append({**row, "method": name, **own, "unrefined": None})
                with results.open("a") as out:
                    out.writelines(json.dumps(one) + "\n" for one in found)
                print(method, sparsity, seed, f"{row['top1']:.2f} in {row['seconds']:.0f} s", flush=True)


def stages_of(method: str, results: Path, sparsity: float, seed: int) -> list[float]:
    """The sparsities of the stages that stood."""
    for row in read(results):
        if (row["method"], row["sparsity"], row["seed"]) == (method, sparsity, seed):
            return [stage[0] for stage in row["stages"] if stage[3]]
    raise SystemExit(f"{method} at {sparsity:.0%}, seed {seed}, comes first")


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def show(case: Case, results: Path, picture: Path) -> None:
    """Print the tables (top-1 in percent, mean and spread over seeds) and draw the plot.

    Of a method with repairs or refinement a cell has both: before it is refined at the end, and after.
    """
    rows = read(results)
    cells, before = (defaultdict[str, dict[float, list[float]]](lambda: defaultdict(list)) for _ in range(2))
    for row in rows:
        cells[row["method"]][row["sparsity"]].append(row["top1"])
        if row.get("unrefined") is not None:
            before[row["method"]][row["sparsity"]].append(row["unrefined"])
    sparsities = sorted({row["sparsity"] for row in rows})
    dense = statistics.mean(row["dense"] for row in rows)
    print(f"dense {dense:.2f}\n")
    for suffix in ("", REFINEMENT, REPAIRS):
        shown = [m for m in case.methods if m in cells and m == _name(m) + suffix]
        print("| method | " + " | ".join(f"{s:.0%}" for s in sparsities) + " |")
        print("| --- |" + " ---: |" * len(sparsities))
        for method in shown:
            both = [[before[method].get(s, []), cells[method].get(s, [])] for s in sparsities]
            texts = [" → ".join(_cell(values) for values in cell if values) for cell in both]
            print(f"| {_name(method)} | " + " | ".join(texts) + " |")
        print()
    print("measured / predicted change of all stages, those taken back too; cumulative: since the dense network")
    print(
        "| | to | stages | median | from | to | cumulative, last |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for method in case.judged:
        for sparsity in sparsities:
            found = [row["stages"] for row in rows if row["method"] == method and row["sparsity"] == sparsity]
            count = sum(len(stages) for stages in found)
            # A stage that took the outputs out of range has no measured change: it is counted alone.
            ratios = [m / p for stages in found for _, p, m, *_ in stages if m is not None and p]
            last = [stages[-1][4] for stages in found if stages and len(stages[-1]) > 4 and stages[-1][4] is not None]
            if ratios:
                print(
                    f"| {method} | {sparsity:.0%} | {count} | {statistics.median(ratios):.2f} | "
                    f"{min(ratios):.2f} | {max(ratios):.2f} | {', '.join(f'{r:.2f}' for r in last)} |"
                )
    draw(case, cells, rows, dense, picture)


def _name(method: str) -> str:
    return method.removesuffix(REPAIRS).removesuffix(REFINEMENT)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def draw(
    case: Case,
    cells: dict[str, dict[float, list[float]]],
    rows: list[dict[str, Any]],
    dense: float,
    picture: Path,
) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prunetaylor"  # the same picture from the same numbers
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for method in case.methods:  # each as it is known, and the default
        if method in cells and (method in ALONE or method == case.default):
            points = sorted((100 * s, statistics.mean(v)) for s, v in cells[method].items())
            strong = {"linewidth": 2.5, "color": "black"} if method == case.default else {"linewidth": 1.2}
            label = "prunetaylor's default" if method == case.default else method
            left.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, **strong)
    left.axhline(dense, color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="sparsity, %", ylabel="top-1, %", title="accuracy, no fine-tuning")
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    pairs = [
        (p, m) for row in rows if row["method"] in case.judged for _, p, m, *_ in row["stages"] if p and m and m > 0 < p
    ]
    if pairs:
        right.scatter(*zip(*pairs, strict=True), s=12, color="black")
        ends = [min(map(min, pairs)), max(map(max, pairs))]
        right.plot(ends, ends, color="grey", linewidth=1)
        for factor in (0.5, 2):
            right.plot(ends, [factor * e for e in ends], color="grey", linestyle=":", linewidth=1)
        right.set(
            xscale="log", yscale="log", xlabel="predicted change of the error", ylabel="measured, held-out samples"
        )
        right.set_title("each stage: predicted against measured")
    figure.savefig(picture, metadata={"Date": None})
    print(f"\n{picture}")


if __name__ == "__main__":
    main()
