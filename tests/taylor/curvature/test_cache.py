"""Fits on disk: the same are found again, bit for bit, others never; what is wrong with the folder costs a note."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss

import prunetaylor
from prunetaylor.core.config.schema import CacheSection
from prunetaylor.core.errors import NumericsError
from prunetaylor.pruning.selection.trust_region import TrustRegion
from prunetaylor.taylor.curvature import cache as module_of_cache
from prunetaylor.taylor.curvature.cache import Cache, open_cache
from prunetaylor.taylor.curvature.gram import layer_moments, pack, unpack
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.model import TaylorModel
from support.networks import NETWORKS, ConvNet, network_case, trained
from support.samples import quadrants, rand
from support.taylor_models import FITS, taylor


@pytest.fixture(autouse=True)
def _everything_is_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_cache, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(module_of_cache, "READ_RATE", 1e30)


def model(folder: Path, network: str = "mlp", *, stage: int = 1) -> TaylorModel:
    made = taylor(*network_case(network))
    made.cache, made.stage = Cache(folder, 10**9), stage
    return made


def tensors(fit: object) -> dict[str, Tensor]:
    return pack(fit) if any(hasattr(value, "xx") for value in fit.values()) else dict(fit)


def same(one: object, other: object) -> None:
    first, second = tensors(one), tensors(other)
    assert list(first) == list(second)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)
        assert second[name].stride() == tensor.stride()


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", FITS)
def test_what_was_fitted_is_found_again(tmp_path: Path, kind: str, network: str) -> None:
    first = model(tmp_path, network)
    fitted = getattr(first, kind)
    assert first.notes == []
    again = copy.deepcopy(first)
    again.note = again.notes.append
    del again.__dict__[kind]
    same(fitted, getattr(again, kind))
    [note] = again.notes
    assert "of stage 1 taken from the cache (key " in note
    assert note.split("key ")[1].rstrip(")") in files(tmp_path)[0].name
    again.cache = None
    del again.__dict__[kind]
    same(fitted, getattr(again, kind))


@pytest.mark.parametrize("kind", [kind for kind in FITS if kind != "moments"])
def test_a_loss_of_ones_own_is_known_by_what_it_says(tmp_path: Path, kind: str) -> None:
    """What its file imports may change, and the file not."""
    module, x, _ = network_case("mlp")

    def fitted(function: Callable[[Tensor, Tensor], Tensor]) -> list[str]:
        own = CustomLoss("mine.py:loss", "the same file", function)
        made = taylor(module, x, torch.full((len(x), 3), 0.5), task=own, kind="task")
        made.cache = Cache(tmp_path, 10**9)
        assert getattr(made, kind)
        assert made.moments
        return [note.split(":")[1] for note in made.notes if "taken from the cache" in note]

    def huber(width: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, y: huber_loss(z, y, reduction="sum", delta=width)

    assert fitted(huber(1.0)) == []
    assert len(fitted(huber(1.0))) == 2
    [grams] = fitted(huber(0.5))  # no error enters them
    assert "layer Grams" in grams


@pytest.mark.parametrize("function", [lambda z, y: (z * y).sum(), lambda z, y: (z - y).square().mean(1)])
def test_a_loss_of_ones_own_says_values_gradients_and_curvature(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    own, z, y = CustomLoss("mine.py:loss", "", function), rand(5, 3), rand(5, 3, seed=1)
    values, gradients, bent = own.probe(z, y)
    one_by_one = [function(a[None], b[None]).sum() for a, b in zip(z, y, strict=True)]
    torch.testing.assert_close(values, torch.stack(one_by_one))
    torch.testing.assert_close(gradients, own.gradient(z, y))
    torch.testing.assert_close(bent, own.hvp(z, y, rand(5, 3)))


def test_no_cache_no_files(tmp_path: Path) -> None:
    made = taylor(*network_case("mlp"))
    assert made.cache is None
    assert made.moments
    assert open_cache(CacheSection(enabled=False, dir=str(tmp_path))) is None


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def folder(**setting: object) -> Path:
        found = open_cache(CacheSection(**setting))
        assert found is not None
        return found.folder

    assert folder(dir=str(tmp_path)) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert folder() == Path("/x/prunetaylor")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/y")
    assert folder() == Path("/home/y/.cache/prunetaylor")
    assert folder(dir="~/c") == Path("/home/y/c")


def test_first_and_later_stages_are_apart(tmp_path: Path) -> None:
    first, later = model(tmp_path), model(tmp_path, stage=2)
    assert first.gradient
    assert later.gradient
    assert later.notes == []
    assert [file.name.split("-")[0] for file in files(tmp_path)] == ["first", "later"]


def fit_of(*sizes: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {f"t{i}": rand(n) for i, n in enumerate(sizes)}


def put(cache: Cache, key: str, *sizes: int, stage: int = 1) -> list[str]:
    """The notes of one fit."""
    notes: list[str] = []
    cache.get_or_fit("fit", stage, key, torch.device("cpu"), fit_of(*(sizes or (250,))), notes.append)
    return notes


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes()[:4]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(1000)),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        lambda path: save_file({"t0": torch.zeros(3)}, path),
        lambda path: save_file({"t0": torch.zeros(3)}, path, {"prunetaylor": "[]"}),
        lambda path: save_file({}, path, {"prunetaylor": '{"strides": {"t0": [1]}}'}),
    ],
)
def test_a_damaged_file_is_fitted_anew_and_written_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    cache = Cache(tmp_path, 10**9)
    assert put(cache, "k") == []
    [path] = files(tmp_path)
    whole = path.read_bytes()
    damage(path)
    assert path.read_bytes() != whole
    [note] = put(cache, "k")
    assert note.startswith(f"cache: fit fitted anew, as {path} cannot be used (")
    assert path.read_bytes() == whole
    assert "taken from the cache" in put(cache, "k")[0]


def test_a_file_of_another_key_is_not_believed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**9)
    put(cache, "a")
    files(tmp_path)[0].rename(tmp_path / "first-b.safetensors")
    assert "cannot be used" in put(cache, "b")[0]


def test_a_folder_that_cannot_be_written_costs_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        notes = put(Cache(folder, 10**9), "k")
        assert len(notes) >= 1
        assert "cannot be written" in notes[-1]
        assert "cache.enabled=false" in notes[-1]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module_of_cache, "save_file", full)
    assert "No space left" in put(Cache(tmp_path, 10**9), "k")[0]
    assert files(tmp_path) == []


def test_a_nearly_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_cache.shutil, "disk_usage", lambda _: Mock(free=1999))
    assert "the disk is nearly full" in put(Cache(tmp_path, 10**9), "k")[0]
    assert files(tmp_path) == []


def test_an_error_of_the_fit_is_not_kept(tmp_path: Path) -> None:
    made = model(tmp_path)
    with torch.no_grad():
        made.risk.dense.stored.fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"gradient .*not finite"):
        _ = made.gradient
    assert files(tmp_path) == []


def test_what_was_quick_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_cache, "MIN_SECONDS", 1e9)
    assert put(Cache(tmp_path, 10**9), "k") == []
    assert files(tmp_path) == []


def age(folder: Path, name: str, seconds: float) -> None:
    os.utime(folder / name, (time.time() - seconds,) * 2)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4000)  # a fit is 1000 bytes and a header
    for i, key in enumerate("abc"):
        put(cache, key)
        age(tmp_path, f"first-{key}.safetensors", 100 - i)
    assert "taken from" in put(cache, "a")[0]
    put(cache, "d")
    assert [file.name[6] for file in files(tmp_path)] == ["a", "c", "d"]
    [note] = put(cache, "e", 5000)
    assert "(0.0 MB) not kept: larger than cache.limit=4e-06 GB" in note


def test_a_later_stage_never_pushes_out_a_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4000)
    for i, (key, stage) in enumerate([("a", 1), ("b", 2), ("c", 1)]):
        put(cache, key, stage=stage)
        age(tmp_path, f"{'later' if stage == 2 else 'first'}-{key}.safetensors", 100 - i)
    put(cache, "d", stage=3)
    assert [file.name[:7] for file in files(tmp_path)] == ["first-a", "first-c", "later-d"]
    put(cache, "e")
    assert [file.name[:7] for file in files(tmp_path)] == ["first-a", "first-c", "first-e"]
    assert "fill cache.limit" in put(cache, "f", stage=2)[0]
    assert [file.name[:7] for file in files(tmp_path)] == ["first-a", "first-c", "first-e"]


def test_what_was_left_unfinished_goes_after_a_day(tmp_path: Path) -> None:
    for name, seconds in (("old", 2 * 86400), ("new", 10)):
        (tmp_path / f".{name}.partial").write_text("x")
        age(tmp_path, f".{name}.partial", seconds)
    (tmp_path / "thesis.txt").write_text("mine")
    put(Cache(tmp_path, 10**9), "k")
    assert [file.name for file in files(tmp_path)] == [".new.partial", "first-k.safetensors", "thesis.txt"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=3),
    kind=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
    turned=st.booleans(),
)
def test_any_tensors_come_back_as_they_were(
    tmp_path: Path, shapes: list[list[int]], kind: torch.dtype, turned: bool
) -> None:
    made = {f"a.{i}/b" if i else "": (5 * torch.randn(shape)).to(kind) for i, shape in enumerate(shapes)}
    made = {name: t.permute(tuple(range(t.dim()))[::-1]) if turned else t for name, t in made.items()}
    cache, cpu = Cache(tmp_path / str(len(files(tmp_path))), 10**9), torch.device("cpu")
    notes: list[str] = []
    for _ in range(2):
        found = cache.get_or_fit("fit", 1, "k", cpu, lambda: made, notes.append)
        assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in made.items()}
        if notes:
            same(made, found)
    assert len(notes) == 1


def test_moments_unpack_to_what_was_packed() -> None:
    made = taylor(*network_case("conv"))
    found = layer_moments(made.network.module, made.network.layers, made.risk.batches, made.where)
    again = unpack(pack(found))
    same(found, again)
    assert [m.rows for m in again.values()] == [m.rows for m in found.values()]


def test_after_a_first_stage_taken_back_its_fit_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = TrustRegion(0.6, 1e-6, 0.01, 0.35)
    monkeypatch.setattr("prunetaylor.pipeline.stages.loop.make_control", lambda *_: control)
    train = quadrants(120, 1)
    how = {"calibration.samples": 60, "finetune.epochs": 0, "data.workers": 0, "device": "cpu", "prune.refine": "none"}
    how |= {"prune.method": "obs", "cache.dir": str(tmp_path / "cache")}
    outcome = prunetaylor.prune(trained(ConvNet(), train, cross_entropy, 30), train, settings=how)
    assert not outcome.stages[0].accepted
    assert any("layer Grams of stage 1 taken from the cache" in choice for choice in outcome.choices)
    keys = [file.stem.partition("-")[2] for file in files(tmp_path / "cache")]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("method", ["obs", "obd"])
def test_a_run_is_the_same_with_and_without_the_cache(tmp_path: Path, method: str) -> None:
    train = quadrants(120, 1)
    network = trained(ConvNet(), train, cross_entropy, 30)
    usual = {"calibration.samples": 60, "prune.stages": 2, "finetune.epochs": 0, "data.workers": 0, "device": "cpu"}
    usual |= {"prune.method": method, "cache.dir": str(tmp_path / "cache")}

    def run(**more: object) -> prunetaylor.pipeline.run.PruneResult:
        changed = {key.replace("__", "."): value for key, value in more.items()}
        return prunetaylor.prune(network, train, settings=usual | changed)

    without, cold = run(cache__enabled=False), run()
    kept = files(tmp_path / "cache")
    assert {file.name.split("-")[0] for file in kept} == {"first", "later"}
    assert not any("taken from the cache" in choice for choice in [*without.choices, *cold.choices])
    warm = run()
    assert sum("taken from the cache" in choice for choice in warm.choices) == len(kept)
    for other in (cold, warm):
        for name, tensor in without.module.state_dict().items():
            torch.testing.assert_close(other.module.state_dict()[name], tensor, rtol=0, atol=0)
        assert [s.predicted_change for s in other.stages] == [s.predicted_change for s in without.stages]
        assert [s.measured_change for s in other.stages] == [s.measured_change for s in without.stages]


CHILD = """
import sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from pathlib import Path
from prunetaylor.taylor.curvature import cache
cache.MIN_SECONDS, cache.READ_RATE = 0.0, 1e30
notes = []
for i in range(40):
    made = cache.Cache(Path({folder!r}), 3000)  # room for two: each throws out what the other has just kept
    fit = lambda: {{"t": torch.full((250,), float(i % 3))}}
    found = made.get_or_fit("fit", 1, f"key{{i % 3}}", torch.device("cpu"), fit, notes.append)
    assert bool((found["t"] == i % 3).all())
assert not [note for note in notes if "taken from" not in note], notes
"""


def test_runs_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = textwrap.dedent(CHILD).format(paths=sys.path, folder=str(tmp_path))
    running = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    for one in running:
        _, stderr = one.communicate(timeout=120)
        assert one.returncode == 0, stderr
    assert all(file.suffix == ".safetensors" for file in files(tmp_path))


def test_strides_of_an_entry_cannot_claim_memory(tmp_path: Path) -> None:
    kept = torch.ones(3, 3)
    for strides in ([10**12, 1], [-3, 1], [1], "x", None):
        header = {"key": "k", "strides": {"t": strides}, "digest": module_of_cache._digest([kept])}
        save_file({"t": kept}, tmp_path / "first-k.safetensors", {"prunetaylor": json.dumps(header)})
        notes: list[str] = []
        found = Cache(tmp_path, 10**6).get_or_fit(
            "fit", 1, "k", torch.device("cpu"), lambda: {"t": torch.zeros(2)}, notes.append
        )
        assert found["t"].tolist() == [0, 0]
        assert "fitted anew" in notes[0], strides
