"""Keys of fits: whatever a fit depends on makes another key, down to a weight's last bit, and nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.data.samples import TensorSplit
from prunetaylor.taylor.curvature import cache as module_of_cache
from prunetaylor.taylor.curvature.cache import Cache
from prunetaylor.taylor.curvature.gram import Positions
from prunetaylor.taylor.model import TaylorModel
from support.samples import fetch, rand
from support.taylor_models import FITS, taylor


class Scaled(nn.Module):
    """``by`` is in no tensor and not printed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)
        self.register_buffer("shift", torch.zeros(3), persistent=False)
        self.by = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.by * self.a(x)).tanh()) + self.shift


def scaled(folder: Path) -> TaylorModel:
    torch.manual_seed(0)
    made = taylor(Scaled().eval(), 1.5 * rand(6, 3), torch.arange(6) % 3, kind="task")
    made.cache = Cache(folder, 10**9)
    return made


def weight(m: TaylorModel) -> None:
    with torch.no_grad():
        m.network.module.a.weight[1, 2] = torch.nextafter(m.network.module.a.weight[1, 2], torch.tensor(9.0))


def with_batches(m: TaylorModel, **other: object) -> None:
    fresh = copy.copy(m.risk.batches)
    for name, value in other.items():
        setattr(fresh, name, value)
    m.risk = replace(m.risk, batches=fresh)


def sample(m: TaylorModel) -> None:
    x, y = fetch(m.risk.batches.split, range(6))
    x = x.clone()
    x[5, 2] += 1e-6
    with_batches(m, split=TensorSplit(x, y))


def relabel(m: TaylorModel) -> None:
    x, y = fetch(m.risk.batches.split, range(6))
    with_batches(m, split=TensorSplit(x, y.flip(0)))


CHANGES: dict[str, Callable[[TaylorModel], object]] = {
    "a weight's last bit": weight,
    "a mask": lambda m: m.network.module.b.weight.data[0].zero_(),
    "a buffer that no checkpoint holds": lambda m: m.network.module.shift.fill_(1.0),
    "the code": lambda m: setattr(m.network.module, "by", 1.001),
    "how the network prints": lambda m: setattr(m.network.module, "c", nn.Identity()),
    "a layer less": lambda m: m.network.layers.pop(),
    "a sample": sample,
    "the batches": lambda m: with_batches(m, batch_size=3),
}
OF_MOMENTS: dict[str, Callable[[TaylorModel], object]] = {
    "the positions' seed": lambda m: setattr(m, "where", Positions(6, 1, m.where.per_sample)),
    "the positions' number": lambda m: setattr(m, "where", Positions(6, 0, 2)),
}
OF_ERRORS: dict[str, Callable[[TaylorModel], object]] = {
    "the seed": lambda m: setattr(m, "seed", 1),
    "the error": lambda m: setattr(m, "risk", replace(m.risk, objective=replace(m.risk.objective, task="regression"))),
    "the targets": relabel,
}


def key_of(kind: str, m: TaylorModel, monkeypatch: pytest.MonkeyPatch) -> str:
    found = []

    def fitted(self: Cache, what: str, stage: int, key: str, *_: object) -> dict[str, Tensor]:
        found.append(key)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "get_or_fit", fitted)
        getattr(m, kind)
    return found[0]


@pytest.mark.parametrize("kind", FITS)
def test_anything_else_is_another_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    changes = CHANGES | (OF_MOMENTS if kind == "moments" else OF_ERRORS)
    keys = {"nothing": key_of(kind, scaled(tmp_path), monkeypatch)}
    assert key_of(kind, scaled(tmp_path), monkeypatch) == keys["nothing"]
    for name, change in changes.items():
        made = scaled(tmp_path)
        change(made)
        keys[name] = key_of(kind, made, monkeypatch)
    for name, value in (
        ("__version__", "9.9"),
        ("code_digest", lambda _: "edited"),
        ("_arithmetic", lambda _: "other"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module_of_cache, name, value)
            keys[name] = key_of(kind, scaled(tmp_path), monkeypatch)
    assert len(set(keys.values())) == len(keys), keys


def test_each_kind_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({key_of(kind, scaled(tmp_path), monkeypatch) for kind in FITS}) == len(FITS)


def test_what_no_fit_depends_on_is_not_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fit serves every criterion, sparsity and damping; the Grams serve every error."""
    made = scaled(tmp_path)
    key = key_of("moments", made, monkeypatch)
    for change in (lambda m: setattr(m, "damping", 0.5), *OF_ERRORS.values()):
        other = scaled(tmp_path)
        change(other)
        assert key_of("moments", other, monkeypatch) == key
    other = scaled(tmp_path)
    other.damping = 0.5
    assert key_of("diagonal", other, monkeypatch) == key_of("diagonal", made, monkeypatch)
