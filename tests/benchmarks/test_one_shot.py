"""The tables of benchmarks/one_shot.py, from rows that are written down."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "one_shot.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """It is no part of the package, and it is run as a script."""
    spec = importlib.util.spec_from_file_location("one_shot_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "draw", lambda *_: None)
    return module


def test_a_stage_without_a_measured_change_is_counted_and_has_no_ratio(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, results = benchmark.CASES["resnet20"], tmp_path / "rows.jsonl"
    # sparsity, predicted and measured change, whether it stands, and the ratio since the dense network
    stages = [[0.8, 0.1, None, False, None], [0.4, 0.1, 0.2, True, 2.0], [0.8, 0.2, 0.1, True, 0.5]]
    row = {"method": case.default, "dense": 91.0, "top1": 90.0, "unrefined": 89.0}
    last = {"sparsity": 0.9, "seed": 0, "stages": stages[:1] + stages[1:2] + [[0.9, 0.1, None, True, None]]}
    rows = [{**row, "sparsity": 0.8, "seed": 0, "stages": stages}, {**row, **last}]
    results.write_text("".join(json.dumps(one) + "\n" for one in rows))
    benchmark.show(case, results, tmp_path / "plot.svg")
    shown = capsys.readouterr().out
    assert f"| {case.default} | 80% | 3 | 1.25 | 0.50 | 2.00 | 0.50 |" in shown
    assert f"| {case.default} | 90% | 3 | 2.00 | 2.00 | 2.00 |  |" in shown
