"""The files that the pages on contributing show are written, and do what the pages say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError
from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import Criterion, Repair, ScoringContext, Structure
from prunetaylor.pruning.selection.budget import Budget, masks_after, select
from support.pages import ROOT, blocks, spans
from support.repair_contract import one_layer_and_its_batch_norm, repaired_by
from support.samples import fetch, rand
from support.taylor_models import taylor

PAGES = sorted((ROOT / "docs" / "contributing").glob("*.md"))


def written(page: str) -> ModuleType:
    """The module that a page shows."""
    [block] = [one for one in blocks(f"docs/contributing/{page}") if one.title]
    module = ModuleType("shown")
    exec(compile(block.text, str(block.title), "exec"), vars(module))
    return module


def test_the_criterion() -> None:
    module, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), rand(30, 4)
    model = taylor(module, x, torch.arange(30) % 3, kind="task")
    criterion: Criterion = written("criterion.md").Wanda()
    network = model.network
    scores = criterion.score(ScoringContext(network, network.masks(), torch.Generator(), model))
    w, found = module[0].weight.detach().double(), scores["0.weight"].double()
    unit = found / (w.square() * x.double().var(0, correction=0))
    torch.testing.assert_close(unit, unit[:, :1].expand_as(unit), rtol=1e-3, atol=0)  # one for each row


def test_the_data_source(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("".join(f"{i},{-i},{i % 3}\n" for i in range(10)))
    read = written("data-source.md").read
    found = read(str(file), DataSection(), 0)
    assert (len(found.train), len(found.test), found.classes) == (8, 2, 3)
    x, y = fetch(found.test, [1])
    torch.testing.assert_close(x, torch.tensor([[9.0, -9.0]]))
    assert y.tolist() == [0]
    file.write_text("a,b\n")
    with pytest.raises(DataError, match=r"cannot be read as numbers.*\n.*commas"):
        read(str(file), DataSection(), 0)


def test_the_structure() -> None:
    network = Network.from_module(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 2, 1)))
    masks = network.masks()
    scores = {layer.parameter: layer.weight.detach().abs() for layer in network.layers}
    structure: Structure = written("structure.md").Row()
    groups = structure.groups(ScoringContext(network, masks, torch.Generator()), scores)
    assert [each.scores.numel() for each in groups] == [6, 2]
    assert sum(float(each.costs["weights"].sum()) for each in groups) == network.prunable
    after = masks_after(groups, select(groups, Budget(network.prunable / 2)), masks)
    assert sum(int(mask.sum()) for mask in after.values()) <= network.prunable / 2
    for mask in after.values():
        rows = mask.flatten(1)
        assert bool((rows.all(1) | ~rows.any(1)).all())


def test_the_repair() -> None:
    repair: Repair = written("repair.md").BiasCorrection()
    removal = one_layer_and_its_batch_norm()
    shift = removal.shift()
    assert repaired_by(repair, removal) == ["0"]
    assert shift > 1e-3
    assert removal.shift() < 1e-9


NEW = {
    "criteria/wanda.py",
    "sources/csv.py",
    "structures/row.py",
    "repairs/bias.py",
    "test_wanda.py",
    "test_bias.py",
    "test_source_csv.py",
}
"""Files that a reader of the pages writes."""


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", *(f"docs/contributing/{path.name}" for path in PAGES)])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    for span in spans(page):
        if not re.fullmatch(r"[\w./]+(/|\.py|\.sh|\.md)", span) or any(span.endswith(new) for new in NEW):
            continue
        homes = [ROOT, ROOT / "prunetaylor", *(ROOT / "prunetaylor").iterdir()]
        assert any((home / span).exists() for home in homes) or any((ROOT / "tests").rglob(span)), span
