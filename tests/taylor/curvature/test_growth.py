"""What is held while curvatures are fitted: layer Grams whatever the number of samples, n x p values of rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunetaylor.network.network import Network
from prunetaylor.taylor.curvature.fisher import fisher_rows
from prunetaylor.taylor.curvature.gradients import gauss_newton_diagonal, mean_gradient
from prunetaylor.taylor.curvature.gram import Positions, layer_moments
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.risk import Risk
from support.samples import batches, rand

BATCH = 4


class Live(TorchDispatchMode):
    """Bytes of the storages that operators make and that are still alive; ``peak`` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage(), given)
        return result

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in given:  # a view, or written in place
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def case(samples: int) -> tuple[Network, Risk]:
    module = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 20))
    y = torch.arange(samples) % 20
    at = batches(rand(samples, 2, 4, 4), y, BATCH)
    return Network.from_module(module.eval()), Risk(module, at, Objective("classification", "task"))


def held(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that live on in the result, and the most that lived at once."""
    live = Live()
    with live:
        result = work()
        kept = live.now
    assert result is not None
    return kept, live.peak


def test_live_bytes_are_those_of_storages() -> None:
    def work() -> list[Tensor]:
        a = torch.zeros(100)  # 400 bytes
        (a + 1).mul_(2)  # as many again, for a moment
        return [a.view(10, 10), a[:3], torch.zeros(5, dtype=torch.float64)]  # views are not counted again

    assert held(work) == (440, 800)


def test_layer_grams_hold_no_more_for_more_samples() -> None:
    """Beside the samples and the drawn positions, which the caller holds: not a byte, while and after they are made."""

    def fit(samples: int) -> tuple[int, int]:
        network, risk = case(samples)
        where = Positions(samples, 0, 5)
        return held(lambda: layer_moments(network.module, network.layers, risk.batches, where))

    few = fit(2 * BATCH)
    assert few == fit(4 * BATCH) == fit(16 * BATCH)
    sums = 19**2 + 6 * 19 + 6 + 97**2 + 20 * 97 + 20  # xx, tx and tt of both layers, in float64
    assert few[0] == 8 * sums


@pytest.mark.parametrize(
    ("fit", "drawn"),
    [
        (lambda network, risk: gauss_newton_diagonal(risk, network.layers, 0), 4),
        (lambda network, risk: mean_gradient(risk, network.layers), 0),
    ],
)
def test_diagonals_hold_only_the_drawn_numbers_of_more_samples(
    fit: Callable[[Network, Risk], object], drawn: int
) -> None:
    """One number in float32 for each label drawn."""
    few, more = case(2 * BATCH), case(16 * BATCH)
    (kept, peak), (kept_more, peak_more) = held(lambda: fit(*few)), held(lambda: fit(*more))
    assert kept == kept_more
    assert peak_more - peak <= 4 * drawn * 14 * BATCH


def test_rows_hold_n_times_p_values_and_one_batch_s_work() -> None:
    p = 6 * 18 + 20 * 96
    beside = []
    for n in (2 * BATCH, 4 * BATCH):
        network, risk = case(n)
        kept, peak = held(lambda network=network, risk=risk: fisher_rows(risk, network.layers, 0))
        assert kept == 4 * n * p
        beside.append(peak - kept - 4 * n)  # besides rows and drawn labels
    assert beside[0] == beside[1]
