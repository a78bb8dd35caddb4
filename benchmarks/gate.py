"""How often the gate is wrong: simulated test sets of networks whose true drop is known.

    python benchmarks/gate.py            # the accuracy's gate; half a minute
    python benchmarks/gate.py --loss     # the loss's, by the bootstrap; some minutes

Rows go to gate.jsonl. At a true drop that is the maximum itself every pass and every failure is wrong (the supremum of
both errors); the rows a little beside it say what the gate is worth.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch

from prunetaylor.gate.limits import drop_limits
from prunetaylor.measure.paired import bootstrap_interval

LIMIT = 0.5  # pp
TRIALS = 100_000
MAX_STAGE_FRACTION = 15.0
"""The most that a sample's loss may rise: what the surest wrong answer of such a network costs."""
SKEWS = {
    "mild": (0.3, 0.5),
    "strong": (0.05, 1.0),
    "rare": (0.01, 1.0),
    "very rare": (0.001, 1.0),
    "confident": (0.001, 0),
}
"""The share of the samples whose loss rises, and the sigma of the lognormal rise."""
OUTPUT = Path(__file__).with_suffix(".jsonl")


@cache
def verdict(lost: int, won: int, samples: int) -> str:
    low, high = drop_limits(lost, won, samples)
    return "pass" if high <= LIMIT else "fail" if low > LIMIT else "inconclusive"


def accuracy(samples: int, won: float, drop: float, random: np.random.Generator) -> dict[str, object]:
    """Shares of verdicts where the pruned network wins a share ``won`` of the samples; ``drop`` in pp."""
    lost = won + drop / 100
    tables = random.multinomial(samples, [lost, won, 1 - lost - won], size=TRIALS)
    found = [verdict(int(b), int(c), samples) for b, c, _ in tables]
    shares = {name: found.count(name) / TRIALS for name in ("pass", "fail", "inconclusive")}
    return {"metric": "top1", "samples": samples, "won": won, "true_drop": drop, "limit": LIMIT, **shares}


def loss(samples: int, skew: str, reach: float | None, trials: int = 300) -> dict[str, object]:
    """The same for a mean of skewed differences at a true rise that is the limit; and passes where it is a half of it,
    or a quarter. ``reach`` is what the gate allows a sample that it has not seen; None: the largest seen."""
    random = torch.Generator().manual_seed(0)
    counted = {"pass": 0, "fail": 0, "pass_at_half": 0, "pass_at_quarter": 0}
    truth = float(differences(4_000_000, skew, torch.Generator().manual_seed(1)).mean())
    for trial in range(trials):
        rises = differences(samples, skew, random)
        drop = bootstrap_interval(rises, torch.zeros(samples), torch.Generator().manual_seed(trial), 0.9, reach)
        counted["pass"] += drop.high <= truth
        counted["fail"] += drop.low > truth
        counted["pass_at_half"] += drop.high <= 2 * truth
        counted["pass_at_quarter"] += drop.high <= 4 * truth
    said = {"metric": "loss", "samples": samples, "skew": skew, "reach": reach, "true_rise": truth}
    return {**said, **{k: v / trials for k, v in counted.items()}}


def differences(samples: int, skew: str, random: torch.Generator) -> torch.Tensor:
    """By sample: most hardly change; of a share of them the loss rises by a lognormal amount of at most REACH, or by 10
    ("confident": the answer flips, and is as sure as the old one)."""
    share, scale = SKEWS[skew]
    small = 0.02 * torch.randn(samples, generator=random, dtype=torch.float64)
    large = (scale * torch.randn(samples, generator=random, dtype=torch.float64)).exp().clamp_max(MAX_STAGE_FRACTION)
    if skew == "confident":
        large = torch.full_like(large, 10.0)
    return small + (torch.rand(samples, generator=random) < share) * large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", action="store_true")
    if parser.parse_args().loss:
        rows = (loss(n, skew, reach) for n in (1000, 5000) for skew in SKEWS for reach in (None, MAX_STAGE_FRACTION))
    else:
        numbers = np.random.default_rng(0)
        drops = (0.0, 0.25, LIMIT, 1.0, 1.5)
        each = product((1000, 5000, 10_000), (0.002, 0.01, 0.03), drops)
        rows = (accuracy(samples, won, drop, numbers) for samples, won, drop in each)
    for row in rows:
        with OUTPUT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
