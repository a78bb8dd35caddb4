"""Who finds the lowest value of the same quadratic model with k of its weights kept: our joint solve, CHITA's, CBS's.

    python benchmarks/joint.py                                                        # a random low-rank model
    python benchmarks/joint.py --checkpoint FILE --arch FILE.py:NAME --data folder:DIR [--normalize imagenet]

The model is  Q(d) = g'd + 1/2 d'(F + r I)d,  F of n gradients of single samples, r = damping x F's mean diagonal.
Printed are Q (lower is better) and seconds, by sparsity. CHITA and CBS are our own implementations of the papers, and
every method ends with the exact solve on the support that it chose. Times include all that a method needs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import Silent
from prunetaylor.data.samples import draw
from prunetaylor.pipeline.job import open_job
from prunetaylor.pruning.criteria._quadratic import Quadratic
from prunetaylor.pruning.criteria._subset import best_subset, eliminate
from prunetaylor.taylor.curvature.fisher import FisherRows
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.risk import DenseOutputs, Risk

ACTIVE = 2  # CHITA's active set, in multiples of k
SEARCHES = 16  # doublings of its step size
PATIENCE = 3  # of them in a row that do not pay
CBS_POOL = 2048  # weights on either side that a round of CBS's swaps looks at
TINY = 1e-12


def exact(model: Quadratic, keep: Tensor) -> Tensor:
    return model.best_point(model.support(keep))


def top(values: Tensor, k: int) -> Tensor:
    keep = torch.zeros(len(values), dtype=torch.bool)
    keep[torch.argsort(values, descending=True, stable=True)[:k]] = True
    return keep


def magnitude(model: Quadratic, k: int) -> Tensor:
    return exact(model, top(model.w.abs(), k))


def obs(model: Quadratic, k: int) -> Tensor:
    """All at once by single removals' cost (Singh & Alistarh 2020, without blocks)."""
    everything = torch.ones(len(model.w), dtype=torch.bool)
    return exact(model, top(model.changes(model.support(everything)).size, k))


def elimination(model: Quadratic, k: int) -> Tensor:
    """Our joint solve's first part alone."""
    return exact(model, eliminate(model, k, torch.zeros(len(model.w), dtype=torch.bool)).kept)


def joint(model: Quadratic, k: int) -> Tensor:
    return best_subset(model, k)[1]


def chita(model: Quadratic, k: int, *, rounds: int = 10, steps: int = 20) -> Tensor:
    """Benbaki et al. 2023: projected gradient steps with line search on an active set, the support solved exactly.

    Section 3.2: the step size is the exact minimiser while the support stays the same; where that is beyond the first
    change of the support, it is doubled from there and the best taken. The active set is the ACTIVE x k
    weights that are largest after a gradient step. Section 3.3: back-solve on the support. Then a step on all weights
    decides whether another round pays. From magnitude, and from magnitude with its support solved: the better end.
    """
    v = model.w * top(model.w.abs(), k)
    solved = model.w + exact(model, v != 0)
    return min((chita_from(model, start, k, rounds, steps) for start in (v, solved)), key=model.value)


def chita_from(model: Quadratic, v: Tensor, k: int, rounds: int, steps: int) -> Tensor:
    value = model.value(v - model.w)
    step = 1 / (1 + top_eigenvalue(model))
    for _ in range(rounds):
        before = value
        slope = model.slope(v - model.w) / model.ridge
        active = top((v - step * slope).abs(), min(len(v), ACTIVE * k)) | (v != 0)
        for _ in range(steps):
            last = value
            v, value = hard_threshold(model, v, value, k, active)
            if last - value <= 1e-4 * abs(value):
                break
        solved = model.w + exact(model, v != 0)
        if (better := model.value(solved - model.w)) < value:
            v, value = solved, better
        v, value = hard_threshold(model, v, value, k, torch.ones_like(active))
        if before - value <= 1e-4 * abs(value):
            break
    return exact(model, v != 0) if int((v != 0).sum()) else v - model.w


def hard_threshold(model: Quadratic, v: Tensor, value: float, k: int, active: Tensor) -> tuple[Tensor, float]:
    """One projected step with CHITA's line search among the active weights; the start where none is better."""
    slope = torch.where(active, model.slope(v - model.w) / model.ridge, 0)
    kept = v != 0
    inside = slope * kept
    curved = float(model.times(inside).square().sum() + inside.square().sum())
    optimal = float(slope @ inside) / curved if curved > TINY else 0.0
    outside = float(slope[~kept].abs().max()) if bool((~kept).any()) else 0.0
    # The support changes where a kept weight falls to the largest of the others: |v| - t |s| = t max|s outside|.
    shrinks = slope * v.sign()
    crossing = (v.abs() / (shrinks + outside))[kept & (shrinks + outside > 0)]
    change = float(crossing.min()) if len(crossing) else float("inf")
    beyond = [change * (1 + 1e-9) * 2**i for i in range(SEARCHES)] if change < float("inf") else []
    # Both of the paper's branches are tried, so that a solved support, whose slope is zero, is left too.
    tried = [optimal, *beyond] if 0 < optimal < change else beyond
    best, worse = (v, value), 0
    for t in tried:
        new = v - t * slope
        new = new * top(new.abs(), k)
        now = model.value(new - model.w)
        worse = 0 if now < best[1] else worse + 1
        if now < best[1]:
            best = (new, now)
        elif worse == PATIENCE:
            break
    return best


def top_eigenvalue(model: Quadratic) -> float:
    m = model.support(torch.ones(len(model.w), dtype=torch.bool)).m
    return float(torch.linalg.eigvalsh(m)[-1]) - 1


def cbs(model: Quadratic, k: int, *, rounds: int = 10) -> Tensor:
    """Yu et al. 2022: choose the removed set P by greedy swaps for  1/2 w_P'H w_P  (CBS-S), then move the rest (CBS-U).

    Algorithm 1: swapping i in P for j outside changes the value by  -alpha_i + beta_j - gamma_ij. From magnitude and
    from OBS; the best of both starts and both ends, so that it is never worse than either.
    """
    everything = torch.ones(len(model.w), dtype=torch.bool)
    starts = [top(model.w.abs(), k), top(model.changes(model.support(everything)).size, k)]
    ends = [cbs_select(model, keep, rounds) for keep in starts]
    return min((exact(model, keep) for keep in [*starts, *ends]), key=model.value)


def cbs_select(model: Quadratic, keep: Tensor, rounds: int) -> Tensor:
    keep = keep.clone()
    own = 0.5 * model.w.square() * (1 + model.squares)
    for _ in range(rounds):
        # The change of the value by w_j's going (outside P) or its coming back (in P), the others as they are.
        linear = -model.w * model.slope(-model.w * ~keep) / model.ridge
        gone = (~keep).nonzero().squeeze(1)
        there = keep.nonzero().squeeze(1)
        gone = gone[torch.argsort((own - linear)[gone], stable=True)[:CBS_POOL]]
        there = there[torch.argsort((own + linear)[there], stable=True)[:CBS_POOL]]
        pool = torch.cat([gone, there])
        x = model.x.index_select(1, pool).double() * model.w[pool]
        a = x.mT @ x + torch.diag(model.w[pool].square())  # w_i H_ij w_j, for the ridge 1
        inside = torch.arange(len(pool)) < len(gone)  # of P
        swaps = cbs_swaps(a, linear[pool], inside)
        if swaps == 0:
            break
        keep[pool] = ~inside
    return keep


def cbs_swaps(a: Tensor, linear: Tensor, inside: Tensor) -> int:
    """Make the best swap until none pays, in place; the number of swaps made."""
    count = 0
    while count < len(a):
        i, j = inside.nonzero().squeeze(1), (~inside).nonzero().squeeze(1)
        diagonal = a.diagonal()
        back, go = (0.5 * diagonal - linear)[i], (0.5 * diagonal + linear)[j]
        # Only the best of either side are looked at in pairs.
        i, j = (
            i[back.topk(min(128, len(i)), largest=False).indices],
            j[go.topk(min(128, len(j)), largest=False).indices],
        )
        pairs = (0.5 * diagonal - linear)[i].unsqueeze(1) + (0.5 * diagonal + linear)[j] - a[i.unsqueeze(1), j]
        at = int(pairs.argmin())
        if float(pairs.flatten()[at]) >= -1e-12 * float(diagonal.sum()):
            break
        first, second = i[at // len(j)], j[at % len(j)]
        linear += a[second] - a[first]
        inside[first], inside[second] = False, True
        count += 1
    return count


METHODS: dict[str, Callable[[Quadratic, int], Tensor]] = {
    "magnitude": magnitude,
    "OBS, all at once": obs,
    "CBS (swaps)": cbs,
    "CHITA (IHT, active set, back-solve)": chita,
    "ours, elimination only": elimination,
    "ours (joint)": joint,
}


def random_model(p: int, n: int, damping: float, seed: int, dtype: torch.dtype = torch.float32) -> Quadratic:
    """Gradients with a tenth of n common directions, weights and gradients' scales with heavy tails; g = 0."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, max(1, n // 10), generator=generator) @ torch.randn(max(1, n // 10), p, generator=generator)
    rows = common / max(1, n // 10) ** 0.5 + torch.randn(n, p, generator=generator)
    rows *= torch.randn(p, generator=generator).exp() * torch.randn(n, 1, generator=generator).exp()
    w = torch.randn(p, generator=generator) * (0.5 * torch.randn(p, generator=generator)).exp()
    rows = rows.to(dtype)
    return Quadratic(rows, w, torch.zeros(p), damping * float(rows.double().square().mean()))


def network_model(args: argparse.Namespace) -> Quadratic:
    config = from_values(
        {
            "model.checkpoint": args.checkpoint,
            "model.arch": args.arch,
            "data.source": args.data,
            "data.normalize": args.normalize,
        }
    ).config
    job = open_job(config, trust=Trust(everything=True), progress=Silent())
    assert job.samples is not None
    train = job.samples.train
    chosen = train.subset(draw(train, args.samples, torch.Generator().manual_seed(args.seed))).in_memory()
    batches, objective = job.batches(chosen), Objective(job.task, "divergence")
    risk = Risk(job.network.module, batches, objective, DenseOutputs.compute(job.network.module, batches))
    x = torch.cat([rows for _, rows in FisherRows(risk, job.network.layers, args.seed)], dim=1)
    w = torch.cat([layer.weight.detach().flatten() for layer in job.network.layers])
    return Quadratic(x, w, torch.zeros_like(w), args.damping * float(x.square().mean(dtype=torch.float64)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("checkpoint", "arch", "data", "normalize"):
        parser.add_argument(f"--{name}", default="auto" if name == "normalize" else None)
    parser.add_argument("--weights", type=int, default=270_000)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = (
        network_model(args) if args.checkpoint else random_model(args.weights, args.samples, args.damping, args.seed)
    )
    n, p = model.x.shape
    print(
        f"{p:,} weights, {n} gradients, damping {args.damping:g}, seed {args.seed}, {torch.get_num_threads()} threads\n"
    )
    print("| method | " + " | ".join(f"Q at {s:.0%} | s" for s in args.sparsity) + " |")
    print("| --- |" + " ---: | ---: |" * len(args.sparsity))
    for name in args.methods:
        print(f"| {name}", end="", flush=True)
        for sparsity in args.sparsity:
            start = time.perf_counter()
            d = METHODS[name](model, p - round(sparsity * p))
            print(f" | {model.value(d):.5g} | {time.perf_counter() - start:.0f}", end="", flush=True)
        print(" |")


if __name__ == "__main__":
    main()
