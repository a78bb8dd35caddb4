"""Trackers get what is measured; one that fails is named and asked no more, and one that is missing is said at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prunetaylor.core import registry
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import PruneTaylorError, UsageError
from prunetaylor.report.trackers._trackers import Trackers


class Service:
    """Records every call, under the names of the three services."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def module(self, name: str) -> ModuleType:
        made = ModuleType(name)
        if name == "mlflow":
            made.start_run = lambda run_name: self.calls.append(("start", run_name))
            made.log_params = lambda values: self.calls.append(("settings", values["seed"]))
            made.log_metrics = lambda values, step: self.measured(values, step)
            made.end_run = lambda: self.calls.append(("end",))
        elif name == "wandb":
            run = SimpleNamespace(log=self.measured, finish=lambda: self.calls.append(("end",)))
            made.init = lambda name, dir, config, reinit: (
                self.calls.extend([("start", name), ("settings", str(config["seed"]))]) or run
            )
        else:
            made.SummaryWriter = lambda folder: SimpleNamespace(
                add_scalar=lambda key, value, step: self.measured({key: value}, step),
                close=lambda: self.calls.append(("end",)),
            )
        return made

    def measured(self, values: Mapping[str, float], step: int) -> None:
        self.calls += [("measured", step, key, value) for key, value in values.items()]


MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


@pytest.mark.parametrize("name", registry.names(registry.TRACKERS))
def test_each_tracker_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, MODULES[name], service.module(name))
    trackers = Trackers([name], tmp_path, "net-1", {"seed": 3}, pytest.fail)
    trackers.measured(0, {"sparsity": 0.5})
    trackers.measured(25, {"train/loss": 0.25, "train/lr": 0.1})
    trackers.close()
    told = [call for call in service.calls if call[0] in ("measured", "end")]
    assert told == [
        ("measured", 0, "sparsity", 0.5),
        ("measured", 25, "train/loss", 0.25),
        ("measured", 25, "train/lr", 0.1),
        ("end",),
    ]
    if name != "tensorboard":
        assert service.calls[:2] == [("start", "net-1"), ("settings", "3")]


@pytest.mark.parametrize("name", registry.names(registry.TRACKERS))
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(UsageError, match=rf"track={name} needs a package(.|\n)*pip install .{name}>="):
        Trackers([name], tmp_path, "net-1", {"seed": 3}, pytest.fail)


@pytest.mark.parametrize("failure", [ConnectionError("the server is away"), SystemExit("the server is away")])
@pytest.mark.parametrize("when", ["open", "measured", "close"])
def test_a_tracker_that_fails_is_named_once_and_asked_no_more(
    when: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, notes = Service(), []
    module = service.module("mlflow")

    def fail(*_: object, **__: object) -> None:
        raise failure

    setattr(module, {"open": "start_run", "measured": "log_metrics", "close": "end_run"}[when], fail)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    trackers = Trackers(["mlflow"], tmp_path, "net-1", {"seed": 3}, notes.append)
    trackers.measured(1, {"a": 1.0})
    trackers.measured(2, {"a": 2.0})
    trackers.close()
    assert notes == [f"track mlflow: {type(failure).__name__}: the server is away; the run continues without it"]
    assert ("measured", 2, "a", 2.0) in service.calls or when != "close"


def test_an_unknown_tracker_is_refused() -> None:
    assert from_values({"track": ["mlflow"]}).config.track == ["mlflow"]
    with pytest.raises(PruneTaylorError, match=r"'tensorbord' is not known.*tensorboard"):
        from_values({"track": ["tensorbord"]})


def test_tensorboard_itself(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an extra")
    trackers = Trackers(["tensorboard"], tmp_path, "net-1", {}, pytest.fail)
    trackers.measured(1, {"train/loss": 0.5})
    trackers.close()
    [events] = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
