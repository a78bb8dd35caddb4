"""Settings that cannot both be meant: each pair is refused, whichever place each of them stands in."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import prunetaylor
from prunetaylor.cli.main import run
from prunetaylor.core.config.resolve import from_values, override, resolve
from prunetaylor.core.errors import UsageError
from prunetaylor.sweep.file import from_options, read


def test_a_list_of_stages_ends_at_the_sparsity() -> None:
    found = resolve(None, {}, ["prune.stages=[0.5, 80%]"], {})
    assert found.config.prune.sparsity == 0.8
    assert resolve(None, {}, ["prune.stages=[0.5, 0.8]", "prune.sparsity=80%"], {}).config.prune.sparsity == 0.8
    assert from_values({"prune.stages": [0.3]}).config.prune.sparsity == 0.3
    # a value that nobody gave follows when the list changes
    assert override(found, {"prune.stages": ([0.2, 0.9], "trial 1")}).config.prune.sparsity == 0.9
    assert override(found, {"prune.stages": (3, "trial 1")}).config.prune.sparsity == 0.5


@pytest.mark.parametrize("sparsity", ["0.5", "0.9", "0"])
def test_a_list_that_ends_elsewhere_is_refused_wherever_the_two_stand(tmp_path: Path, sparsity: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"prune: {{sparsity: {sparsity}}}\n")
    ways = (
        (None, {}, [f"prune.sparsity={sparsity}"], {}),
        (None, {}, [], {"prune.sparsity": sparsity}),
        (None, {"PRUNETAYLOR_PRUNE_SPARSITY": sparsity}, [], {}),
        (file, {}, [], {}),
    )
    for path, environ, pairs, flags in ways:
        with pytest.raises(UsageError, match=r"prune\.stages .*prune\.sparsity"):
            resolve(path, environ, ["prune.stages=[0.5, 0.8]", *pairs], flags)


@pytest.mark.parametrize(
    ("pairs", "flags", "key"),
    [
        (["prune.sparsity=0.5", "prune.sparsity=0.8"], {}, "prune.sparsity"),
        (["prune={sparsity: 0.5}", "prune.sparsity=0.8"], {}, "prune.sparsity"),
        (["prune.sparsity=0.5"], {"prune.sparsity": "0.8"}, "prune.sparsity"),
        (["model.arch=a.py:B"], {"model.arch": "a.py:C"}, "model.arch"),
        (["data.source=digits"], {"data.source": "none"}, "data.source"),
        (["seed=1"], {"seed": "2"}, "seed"),
        (["prune.exclude=[a, b]", "prune.exclude=a"], {}, "prune.exclude"),
        (["model.args.depth=3", "model.args.depth=4"], {}, "model.args.depth"),
        (["model.args={depth: 3}", "model.args.depth=4"], {}, "model.args"),
        (["model.args.depth=4", "model.args={depth: 3}"], {}, "model.args"),
    ],
)
def test_a_key_has_one_value_on_a_command_line(pairs: list[str], flags: dict[str, str | None], key: str) -> None:
    with pytest.raises(UsageError, match=re.escape(key)):
        resolve(None, {}, pairs, flags)


def test_the_same_value_twice_is_no_contradiction() -> None:
    found = resolve(None, {}, ["prune.sparsity=80%", "prune.sparsity=0.8"], {"prune.sparsity": "0.8"})
    assert found.config.prune.sparsity == 0.8
    assert resolve(None, {}, ["model.args={a: 1}", "model.args.b=2"], {}).config.model.args == {"a": 1, "b": 2}
    both = {"PRUNETAYLOR_SEED": "7", "PRUNETAYLOR__SEED": "7"}
    assert resolve(None, both, [], {}).config.seed == 7


def test_two_spellings_of_a_variable_with_two_values() -> None:
    both = {"PRUNETAYLOR_DATA_BATCH_SIZE": "7", "PRUNETAYLOR_DATA__BATCH_SIZE": "8"}
    with pytest.raises(UsageError, match=r"data\.batch_size is set twice in environment"):
        resolve(None, both, [], {})


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "m.pt", "--sparsity", "0.5", "--sparsity", "0.8"],
        ["prune", "m.pt", "--sparsity=0.5", "prune.sparsity=0.8"],
        ["prune", "m.pt", "-o", "a", "--output", "b"],
        ["prune", "m.pt", "-q", "-v"],
        ["score", "m.pt", "--seed", "1", "--seed", "2"],
        ["demo", "--seed", "1", "-o", "x", "--seed", "2"],
        ["sweep", "m.pt", "-m", "prune.sparsity=0.5", "-m", "prune.sparsity=0.8"],
        ["sweep", "m.pt", "-m", "prune.sparsity=0.5,0.8", "prune.sparsity=0.9"],
        ["sweep", "m.pt", "-m", "prune.stages=2,[0.5,0.8]", "-m", "prune.sparsity=0.5,0.8"],
        ["sweep", "m.pt", "-m", "prune.sparsity=0.5,0.7", "prune.stages=[0.2,0.5]"],
    ],
)
def test_contradictions_end_with_exit_code_2(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pt").write_bytes(b"x")
    assert run(words) == 2
    assert sorted(tmp_path.iterdir()) == [tmp_path / "m.pt"]


def test_a_sweep_of_lists_alone_is_one(tmp_path: Path) -> None:
    base = resolve(None, {}, [], {"model.checkpoint": "m.pt"})
    found = from_options("m.pt", ["prune.stages=[0.2,0.5],[0.4,0.8]"], base)
    assert [
        found.trial(i, {"prune.stages": v}).config.prune.sparsity for i, v in ((1, [0.2, 0.5]), (2, [0.4, 0.8]))
    ] == [
        0.5,
        0.8,
    ]
    (tmp_path / "s.yaml").write_text(
        "method: grid\nbase: {model: {checkpoint: m.pt}}\nparameters: {seed: {values: [1, 2]}}\n"
    )
    with pytest.raises(UsageError, match=r"seed .*command line"):
        read(tmp_path / "s.yaml", {}, ["seed=5"])


def test_from_python_too() -> None:
    x, y = torch.rand(8, 4), torch.zeros(8, dtype=torch.long)
    with pytest.raises(UsageError, match="contradict each other"):
        prunetaylor.prune(nn.Linear(4, 2), (x, y), sparsity=0.5, settings={"prune.sparsity": 0.8})
    with pytest.raises(UsageError, match=r"prune\.stages ends at"):
        prunetaylor.prune(nn.Linear(4, 2), (x, y), sparsity=0.5, settings={"prune.stages": [0.2, 0.8]})
