"""A criterion of another installed package is found by name, keeps the contract, and prunes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunetaylor.core import registry
from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.errors import UsageError
from prunetaylor.pruning.interfaces import load_criterion
from support.criterion_contract import CONTRACT
from support.outside_package import install


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages on this process's path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    registry.forget_packages()
    yield folder
    registry.forget_packages()
    for name in [name for name in sys.modules if name.startswith("prunetaylor_")]:
        del sys.modules[name]


def test_its_criterion_keeps_the_contract(site: Path) -> None:
    install(site)
    assert "wanda" in registry.names(registry.CRITERIA)
    assert resolve(None, {}, ["prune.method=wanda"], {}).config.prune.method == "wanda"
    for rule in CONTRACT:
        rule("wanda")


def test_the_command_prunes_with_it(inline, site: Path, small_model: list[str]) -> None:
    install(site)
    small = ["calibration.samples=100", "prune.refine=none", "finetune.epochs=0"]
    code, out, errors = inline("prune", *small_model, "--sparsity", "60%", "--method", "wanda", "--json", *small)
    assert code == 0, errors
    document = json.loads(out)
    assert document["method"] == "wanda"
    assert document["sparsity"]["removed"] == round(0.6 * document["sparsity"]["prunable"])


def test_it_is_listed_without_torch_and_without_its_code(site: Path, environment: dict[str, str]) -> None:
    install(site, source="raise RuntimeError('imported')")
    code = """
import sys
from prunetaylor.core.config.describe import explain
assert "from the package prunetaylor-wanda" in explain("prune.method")
assert not {"torch", "prunetaylor_wanda"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(site)}, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("name", "source", "cause", "remedy"),
    [
        ("wanda", "import no_such_module", "cannot be imported .ModuleNotFoundError: No module", "update prunetaylor-"),
        ("wanda", "class Wanda: pass", "is incomplete: .* is no Criterion", "ask the authors of prunetaylor-wanda"),
        (
            "wanda",
            "from prunetaylor.pruning.interfaces import Criterion\nclass Wanda(Criterion): pass",
            "is incomplete: .*abstract method '?score",
            "ask the authors of prunetaylor-wanda",
        ),
        ("obd", "", "2 packages have a criterion 'obd': prunetaylor and prunetaylor-obd", "uninstall prunetaylor-obd"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(site: Path, name: str, source: str, cause: str, remedy: str) -> None:
    install(site, name=name, source=source)
    with pytest.raises(UsageError, match=cause) as caught:
        load_criterion(name)
    assert caught.value.remedy.startswith(remedy)


def test_a_module_may_stand_for_its_only_criterion(site: Path) -> None:
    install(site, target="prunetaylor_wanda")
    assert type(load_criterion("wanda")).__name__ == "Wanda"
