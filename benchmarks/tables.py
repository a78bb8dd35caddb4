"""Write benchmarks/README.md, and the tables of two pages of docs/explanation/, from the rows that have been measured.

    python benchmarks/tables.py        # after a benchmark has added rows to its .jsonl file

One current table a question. Rows of settings that are no longer the default stay in the .jsonl files; what they taught
stands in docs/explanation/what-was-tried.md.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPLANATION = HERE.parent / "docs" / "explanation"
Row = dict[str, Any]

INTRO = """Top-1 is in percent on all test images, drops are in percentage points. Means of the seeds, with the standard
deviation after ±. Each section names the script that adds its rows to a .jsonl file; `python benchmarks/tables.py`
writes this page from them. [What was tried](../docs/explanation/what-was-tried.md) has the experiments behind the
defaults."""
ALONE = {
    "magnitude": "magnitude",
    "magnitude + batch norm": "magnitude, batch norm re-estimated",
    "magnitude + least squares": "magnitude, least squares",
    "OBD": "OBD",
    "block OBS in stages (WoodFisher)": "block OBS (WoodFisher), in stages",
    "joint, one stage (CHITA, CBS)": "joint (as CHITA and CBS), one stage",
    "joint in stages": "joint, in stages",
    "OBS, one stage": "OBS, one stage",
    "OBS in stages": "OBS, in stages",
}
DEFAULT = "ExactOBS in stages"
WAYS = {
    "ours, gradual": "prunetaylor, gradual",
    "magnitude, gradual": "magnitude, the same fine-tuning",
    "magnitude, gradual, labels alone": "magnitude as it is known: labels alone",
    "dense, the same epochs": "dense, the same epochs, best by validation",
    "dense, the best of the same epochs": "dense, the best of the epochs by themselves",
}


def read(name: str) -> list[Row]:
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a table of Markdown whose first ``words`` columns are text, the others numbers."""
    ruler = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rows)) + "\n"


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.2f}" + (
        f"\u00a0±\u00a0{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    )


def column(rows: Iterable[Row], key: str, **wanted: Any) -> list[Any]:
    """Return one value of each row whose others are as ``wanted``; None values are left out."""
    fitting = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    return [row[key] for row in fitting if row.get(key) is not None]


def arrow(before: Sequence[float], after: Sequence[float]) -> str:
    return f"{statistics.mean(before):.2f}\u00a0→ {spread(after)}" if before and after else spread(after)


def one_shot(name: str, last: str) -> str:
    """Return the table of all methods, each as it is known and then refined; ``last`` names the default's row."""
    rows = read(f"one_shot-{name}")
    levels = sorted({row["sparsity"] for row in rows})

    def cell(method: str, refined: str, sparsity: float) -> str:
        before = column(rows, "top1", method=method, sparsity=sparsity)
        return arrow(before, column(rows, "top1", method=refined, sparsity=sparsity))

    lines = [[label, *(cell(m, f"{m} + refinement", s) for s in levels)] for m, label in ALONE.items()]
    lines.append([last, *(cell(DEFAULT, f"{DEFAULT} + repairs", s) for s in levels)])
    return table(["as it is known → refined at the end", *(f"{s:.0%}" for s in levels)], lines)


def same_repair() -> str:
    rows = read("one_shot-resnet20")
    levels = sorted({row["sparsity"] for row in rows})
    lines = []
    for method in [*(m for m in ALONE if not m.startswith("magnitude +")), DEFAULT]:
        name = f"{method} + repairs"
        pairs = [
            (column(rows, "unrefined", method=name, sparsity=s), column(rows, "top1", method=name, sparsity=s))
            for s in levels
        ]
        lines.append(
            [ALONE.get(method, "ExactOBS (default)").removesuffix(", in stages"), *(arrow(*pair) for pair in pairs)]
        )
    return table(["the default's stages and repair for all → refined", *(f"{s:.0%}" for s in levels)], lines)


def predictions() -> str:
    lines = []
    for name, label in (("resnet20", "ResNet-20"), ("mlp", "784-40-20-10")):
        rows = [row for row in read(f"one_shot-{name}") if row["method"] == f"{DEFAULT} + repairs"]
        for sparsity in sorted({row["sparsity"] for row in rows}):
            runs = column(rows, "stages", sparsity=sparsity)
            ratios = [
                measured / predicted
                for stages in runs
                for _, predicted, measured, *_ in stages
                if predicted and measured is not None
            ]
            last = ", ".join(f"{stages[-1][4]:.2f}" for stages in runs)
            ends = f"{min(ratios):.2f} to {max(ratios):.2f}"
            lines.append([label, f"{sparsity:.0%}", str(len(ratios)), f"{statistics.median(ratios):.2f}", ends, last])
    return table(["network", "to", "stages", "median", "range", "since the dense network, by seed"], lines)


def units() -> str:
    rows = [row for row in read("ranking") if row["weight"] in (0.5, 0.75, 1.0) or row["method"] == "magnitude"]
    levels = (0.7, 0.8, 0.9, 0.95)

    def cell(method: str, weight: float | None, sparsity: float) -> str:
        found = [row for row in rows if (row["method"], row["weight"], row["sparsity"]) == (method, weight, sparsity)]
        loss, top1 = ([row[key] for row in found] for key in ("loss", "top1"))
        return f"{statistics.mean(loss):.3f} ({statistics.mean(top1):.2f})" if found else ""

    labels = {"exact_obs": "ExactOBS", "obs": "OBS"}
    lines = [
        [
            f"{label}, b = {weight:g}" + (" (default)" if (method, weight) == ("exact_obs", 0.75) else ""),
            *(cell(method, weight, s) for s in levels),
        ]
        for method, label in labels.items()
        for weight in (0.5, 0.75, 1.0)
    ]
    return table(["loss (top-1)", *(f"{s:.0%}" for s in levels)], lines)


def gradual() -> str:
    rows = read("gradual")
    lines = []
    for goal, label in (("0.9:6", "90 % in 6 epochs"), ("0.8:4", "80 % in 4 epochs")):
        for way, meaning in WAYS.items():
            found = [row for row in rows if (row["goal"], row["way"]) == (goal, way)]
            top1 = [row["top1"] for row in sorted(found, key=lambda row: row["seed"])]
            drop = statistics.mean(row["dense"] - row["top1"] for row in found)
            name = meaning if way.startswith("dense") else f"{meaning}, {label}"
            lines.append([name, ", ".join(f"{one:.2f}" for one in top1), f"{drop:.2f}"])
    return table(["", "top-1 by seed", "mean drop"], lines)


def curvature() -> str:
    cost, growth = read("curvature_cost"), read("curvature_growth")

    def ratio(network: str, what: str) -> str:
        found = [row["ratio"][what] for row in cost if row["network"] == network and what in row["ratio"]]
        return f"{found[-1]:.2f}" if found else ""

    def grown(what: str) -> list[str]:
        found = {row["samples"]: row for row in growth if (row["network"], row["what"]) == ("resnet20", what)}
        return [
            f"{1000 * found[n]['seconds'][0] / n:.1f}, {found[n]['extra_mib']:.0f}" if found else "" for n in (128, 512)
        ]

    names = ("layer Grams", "output sensitivities", "Gauss-Newton diagonal, exact over 10 outputs", "Fisher rows")
    lines = [[what, ratio("resnet20", what), ratio("resnet50", what), *grown(what)] for what in names]
    return table(
        ["", "ResNet-20, x plain", "ResNet-50, x plain", "128 samples: ms, MiB", "512 samples: ms, MiB"], lines
    )


def masks() -> str:
    latest: dict[tuple[str, str], Row] = {}
    for row in read("training_speed"):
        latest[row["network"], row["device"]] = row
    lines = []
    for (network, _), row in sorted(latest.items(), reverse=True):
        speed, ratio = row["samples_per_second"], row["ratio"]
        machine = row.get("gpu") or f"{row['processor']}, {row['threads']} threads"
        name = {"resnet20": "ResNet-20", "lenet": "LeNet"}[network]
        numbers = [
            f"{speed['masked']:,.0f}",
            f"{speed['plain']:,.0f}",
            f"{ratio['plain']:.2f}",
            f"{ratio['plain, channels last']:.2f}",
        ]
        lines.append([name, machine, *numbers])
    head = ["network", "machine", "under masks", "plain loop", "over plain", "over plain, channels last"]
    return table(head, lines, words=2)


def memory() -> str:
    rows = read("memory_plan")
    networks = {"resnet20": "ResNet-20, 1,000 samples", "resnet18": "ResNet-18, 64 x 64, 64 samples"}

    def cell(method: str, network: str) -> str:
        found = [row for row in rows if (row["method"], row["network"]) == (method, network)]
        return "{planned_mib:,.0f} / {measured_mib:,.0f} = {ratio:.2f}".format(**found[-1]) if found else ""

    methods = dict.fromkeys(row["method"] for row in rows)
    return table(
        ["planned / measured, MiB", *networks.values()], ([f"`{m}`", *(cell(m, n) for n in networks)] for m in methods)
    )


def gate() -> str:
    rows = [row for row in read("gate") if row["metric"] == "top1"]
    lines = []
    for samples in sorted({row["samples"] for row in rows}):
        for won in sorted({row["won"] for row in rows}):
            at = {row["true_drop"]: row for row in rows if (row["samples"], row["won"]) == (samples, won)}
            right = [
                f"{at[drop][what]:.0%}" for drop, what in ((0.0, "pass"), (0.25, "pass"), (1.0, "fail"), (1.5, "fail"))
            ]
            wrong = [f"{at[0.5][what]:.1%}" for what in ("pass", "fail")]
            lines.append([f"{samples:,}", f"{won:.1%}", *wrong, *right])
    head = ["samples", "won", "false pass", "false fail", "drop 0: passes", "0.25: passes", "1: fails", "1.5: fails"]
    return table(head, lines, words=0)


def gate_of_a_loss() -> str:
    names = {
        "mild": "30 % of the samples",
        "strong": "5 %",
        "rare": "1 %",
        "very rare": "0.1 %",
        "confident": "0.1 %, by 10 each",
    }
    rows = [row for row in read("gate") if row["metric"] == "loss"]
    pairs = zip((r for r in rows if r["reach"] is None), (r for r in rows if r["reach"] is not None), strict=True)
    lines = []
    for old, new in pairs:
        numbers = (old["pass"], old["fail"], new["pass"], new["fail"], new["pass_at_half"], new["pass_at_quarter"])
        lines.append([f"{new['samples']:,}", names[new["skew"]], *(f"{one:.1%}" for one in numbers)])
    head = [
        "samples",
        "rises in",
        "largest seen: passes",
        "fails",
        "this gate: passes",
        "fails",
        "maximum 2x the rise: passes",
        "4x",
    ]
    return table(head, lines, words=2)


def chance() -> str:
    rows = read("chance")
    sizes = sorted({row["samples"] for row in rows})
    cases = dict.fromkeys((row["network"], row["kind"]) for row in rows)

    def cell(network: str, samples: int) -> str:
        return "".join(f"{100 * said:g}" for said in column(rows, "said", network=network, samples=samples))

    lines = ([*case, *(cell(case[0], n) for n in sizes)] for case in cases)
    return table(["network", "", *(f"{n:,} samples" for n in sizes)], lines, words=2)


SECTIONS: list[tuple[str, str, Callable[[], str]]] = [
    (
        "How accurate is one-shot pruning of a ResNet-20?",
        """`python benchmarks/one_shot.py resnet20 --checkpoint resnet20.pt --data folder:DIR --seeds 0 1 2`: CIFAR-10
        as JPEG, dense 88.29, 1,000 training images without labels, no epochs. The default on one thread of a
        CPU, the others on an NVIDIA H200 with 350 steps of refinement (the default has 300).""",
        lambda: one_shot("resnet20", "ExactOBS, in stages (default)"),
    ),
    (
        "How much is scoring, and how much repair?",
        """The same runs' rows `+ repairs`: every method goes through the stages that the default chose, with its least
        squares.""",
        same_repair,
    ),
    (
        "How accurate is one-shot pruning far from convergence?",
        """`python benchmarks/train_mnist.py ROOT mlp.pt --arch benchmarks/mnist_mlp.py:mlp --epochs 1 --lr 0.02`, then
        `python benchmarks/one_shot.py mlp --checkpoint mlp.pt --sparsity 0.9 0.95 0.98 --seeds 0 1 2`: 784-40-20-10 on
        MNIST, dense 93.78, with labels, 1,000 fresh samples a stage, one thread of a CPU. The best published on such a
        network is 95.6, 94.7 and 90.7. The default refines by Gauss-Newton steps after each stage.""",
        lambda: one_shot("mlp", "ExactOBS, in stages (default)"),
    ),
    (
        "Do predictions hold?",
        "Measured over predicted change of the default's stages in the runs above, those taken back too.",
        predictions,
    ),
    (
        "Which unit compares layers?",
        """`python benchmarks/ranking.py`: ResNet-20 as above, equal stages and least squares for all, on 5,000 training
        images that nothing else sees (dense 95.58); means of one or two seeds. b is the weight of the error's unit
        ([comparing layers](../docs/explanation/comparing-layers.md)).""",
        units,
    ),
    (
        "What remains after fine-tuning?",
        """`python benchmarks/gradual.py`: ResNet-20 as above, gradual pruning between epochs, one thread of a CPU; the
        same number of epochs for all rows of a goal.""",
        gradual,
    ),
    (
        "What does a curvature cost?",
        """`python benchmarks/curvature_cost.py resnet20 --exact`: time over that of a plain forward and backward pass,
        medians of interleaved rounds. `python benchmarks/curvature_growth.py resnet20 --samples 128`: ms a sample, and
        memory above the network and the samples. CPU.""",
        curvature,
    ),
    (
        "What do masks cost while training?",
        """`python benchmarks/training_speed.py`: images a second in batches of 64, 90 % removed, beside a plain loop in
        the same run.""",
        masks,
    ),
    (
        "How good is the memory plan?",
        """`python benchmarks/memory_plan.py`: the peak that the plan names before a run, over the one measured above
        what Python and torch take. One stage to 80 %, one thread.""",
        memory,
    ),
    (
        "How often is the gate wrong?",
        """`python benchmarks/gate.py`: 100,000 simulated test sets a row, `--max-drop 0.5`. At a true drop of 0.5 every
        pass and every fail is wrong, and neither may exceed 5 % (standard error 0.07 %); the other columns are its
        power. Won: the share of samples that only the pruned network gets right.""",
        gate,
    ),
]
TABLES = {"gate-statistics.md": ("loss", gate_of_a_loss), "chance.md": ("rates", chance)}


def _flat(text: str) -> str:
    return " ".join(text.split()) + "\n"


def pages() -> dict[Path, str]:
    """Return every page as it should be."""
    parts = ["<!-- written by benchmarks/tables.py -->\n# Benchmarks\n", _flat(INTRO)]
    parts += [f"## {question}\n\n{_flat(text)}\n{make()}" for question, text, make in SECTIONS]
    parts.insert(3, "![Accuracy against sparsity; predicted against measured change](one_shot-resnet20.svg)\n")
    found = {HERE / "README.md": "\n".join(parts)}
    for name, (key, make) in TABLES.items():
        begin, end = f"<!-- {key}: written by benchmarks/tables.py -->\n", f"<!-- end of {key} -->\n"
        before, _, rest = (EXPLANATION / name).read_text(encoding="utf-8").partition(begin)
        found[EXPLANATION / name] = f"{before}{begin}{make()}{end}{rest.partition(end)[2]}"
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
