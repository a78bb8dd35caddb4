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


def loss(samples: int, skew: str, trials: int = 1000) -> dict[str, object]:
    """The same for a mean of skewed differences at a true rise that is the limit; and passes where it is half of it."""
    random = torch.Generator().manual_seed(0)
    wrong = {"pass": 0, "fail": 0, "pass_at_half": 0}
    for trial in range(trials):
        rises, truth = differences(samples, skew, random)
        drop = bootstrap_interval(rises, torch.zeros(samples), torch.Generator().manual_seed(trial), 0.9)
        wrong["pass"] += drop.high <= truth
        wrong["fail"] += drop.low > truth
        wrong["pass_at_half"] += drop.high <= 2 * truth
    return {"metric": "loss", "samples": samples, "skew": skew, **{k: v / trials for k, v in wrong.items()}}


def differences(samples: int, skew: str, random: torch.Generator) -> tuple[torch.Tensor, float]:
    """By sample, and their true mean: most hardly change; of a share of them the loss rises by a lognormal amount."""
    share, scale = {"mild": (0.3, 0.5), "strong": (0.05, 1.0), "rare": (0.01, 1.0)}[skew]
    small = 0.02 * torch.randn(samples, generator=random, dtype=torch.float64)
    large = (scale * torch.randn(samples, generator=random, dtype=torch.float64)).exp()
    hit = torch.rand(samples, generator=random) < share
    return small + hit * large, share * float(np.exp(scale**2 / 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", action="store_true")
    if parser.parse_args().loss:
        rows = (loss(n, skew) for n in (1000, 5000) for skew in ("mild", "strong", "rare"))
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
