"""Count the networks of all kinds that are pruned as their authors first wrote them, and tell why the others are not.

    python benchmarks/battery.py                    all cases of tests/support/battery, a row each, to battery.jsonl
    python benchmarks/battery.py layers/lstm tasks  those whose names begin so, without writing

A case works where exactly as many weights are removed as were asked for (60 %), the outputs are finite, the given
network is untouched, and the outputs change less, or the loss on held-out samples rises less, than with magnitude
pruning. ``refused`` is a PruneTaylorError, right where the case says so; ``traceback`` is any other exception.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

# After the tests' helpers are on the path.
import prunetaylor  # noqa: E402
from support.battery.cases import Case, call, load_cases, train  # noqa: E402

SPARSITY = 0.6
HELD_OUT = 40
"""Samples at the end of each case that no run sees."""


def tensors(outputs: Any) -> list[Tensor]:
    """Return the floating tensors in what a network returned."""
    if isinstance(outputs, Tensor):
        return [outputs.detach().double()] if outputs.is_floating_point() else []
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    elif hasattr(outputs, "__dataclass_fields__"):
        outputs = list(vars(outputs).values())
    return [one for part in outputs for one in tensors(part)] if isinstance(outputs, list | tuple) else []


def distance(made: Case, dense: nn.Module, pruned: nn.Module) -> float:
    """Return the squared distance of all outputs on held-out samples, relative to the dense outputs' size."""
    inputs, _ = made.collate([made.samples[i] for i in range(len(made.samples) - HELD_OUT, len(made.samples))])
    with torch.no_grad():
        pairs = list(zip(tensors(call(dense, inputs)), tensors(call(pruned, inputs)), strict=True))
    size = sum(float(a.square().sum()) for a, _ in pairs)
    return sum(float((a - b).square().sum()) for a, b in pairs) / size


def rise(made: Case, dense: nn.Module, pruned: nn.Module) -> float:
    """Return by how much the case's own loss rises on the held-out samples."""
    inputs, targets = made.collate([made.samples[i] for i in range(len(made.samples) - HELD_OUT, len(made.samples))])
    with torch.no_grad():
        return float(made.loss(call(pruned, inputs), targets) - made.loss(call(dense, inputs), targets))


def prune(made: Case, module: nn.Module, **settings: Any) -> prunetaylor.Result:
    samples: Any = made.samples
    if isinstance(samples, list):
        samples = samples[:-HELD_OUT]
    if made.loader:
        samples = DataLoader(samples, collate_fn=made.collate)
    return prunetaylor.prune(module, samples, sparsity=SPARSITY, epochs=0, settings={**made.settings, **settings})


def outcome(name: str, made: Case) -> dict[str, Any]:
    """Prune one case and say what became of it."""
    module = train(made)
    before = copy.deepcopy(module.state_dict())
    try:
        result = prune(made, module)
    except prunetaylor.PruneTaylorError as error:
        right = made.refused is not None
        return {"case": name, "status": "refused" if not right else "rightly refused", "why": str(error)[:300]}
    row: dict[str, Any] = {"case": name, "status": "works"}
    asked, removed = round(SPARSITY * result.sparsity.prunable), result.sparsity.removed
    ours, our_rise = distance(made, module, result.module), rise(made, module, result.module)
    try:
        magnitude = prune(made, module, **{"prune.method": "magnitude", "prune.repair": "none", "prune.refine": "none"})
        row["magnitude"] = distance(made, module, magnitude.module)
        row["magnitude_rise"] = rise(made, module, magnitude.module)
    except prunetaylor.PruneTaylorError as error:
        row["why"] = f"magnitude: {error}"[:300]
    share = result.sparsity.prunable / max(1, sum(p.numel() for p in module.parameters()))
    row |= {"distance": ours, "rise": our_rise, "prunable": round(share, 3), "skipped": len(result.skipped)}
    touched = any(not torch.equal(a, before[key]) for key, a in module.state_dict().items() if isinstance(a, Tensor))
    wrong = {
        "should be refused": made.refused is not None,
        f"{removed} removed, {asked} asked for": removed != asked,
        "outputs are not finite": ours != ours or ours == float("inf"),
        "the given network was touched": touched,
    }
    reasons = [text for text, holds in wrong.items() if holds]
    if reasons:
        row |= {"status": "wrong", "why": "; ".join(reasons)}
    elif share < 0.5:
        row["status"] = "in part"
    elif "magnitude" in row and ours >= row["magnitude"] and our_rise >= row["magnitude_rise"]:
        row["status"] = "worse than magnitude"
    return row


def run(name: str, make: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    start = time.perf_counter()
    try:
        made = make()
    except ImportError as error:
        return {"case": name, "status": "not installed", "why": str(error)}
    try:
        row = outcome(name, made)
    except Exception as error:  # whatever a user would see as a traceback
        row = {"case": name, "status": "traceback", "why": f"{type(error).__name__}: {error}"[:300]}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def main(wanted: list[str]) -> None:
    warnings.simplefilter("ignore")
    rows = []
    for name, make in load_cases().items():
        if wanted and not name.startswith(tuple(wanted)):
            continue
        rows.append(run(name, make))
        shown = {k: float(f"{v:.3g}") for k, v in rows[-1].items() if k not in ("case", "status", "why")}
        print(f"{rows[-1]['status']:22} {name:50} {shown} {rows[-1].get('why', '')}", flush=True)
    print(dict(Counter(row["status"] for row in rows)))
    if not wanted:
        out = ROOT / "benchmarks" / "battery.jsonl"
        out.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
