"""MLflow: a run of the experiment that MLFLOW_EXPERIMENT_NAME names, on the server of MLFLOW_TRACKING_URI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "mlflow"


class _Run:
    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.start_run(run_name=name)
        mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def open(folder: Path, run: str, settings: Mapping[str, Any]) -> _Run:
    """Start a run of this name, with the settings as its parameters."""
    return _Run(run, settings)
