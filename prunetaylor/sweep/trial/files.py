"""The files of a trial beside those of a run, and the files that remain of a trial that failed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunetaylor.core.errors import OutputError
from prunetaylor.core.files import own_folder, refuse_link, write_bytes, write_text
from prunetaylor.core.json_file import read_json
from prunetaylor.core.results.outcome import Alert
from prunetaylor.core.text import neutral_lines
from prunetaylor.pipeline.files.run_folder import LOG, STAGING, STATE

TRIALS = "trials"
TRIAL = "trial.json"
ERROR = "error.txt"
SAMPLES = "samples.json"
"""A file in the sweep's folder: the samples that rank, as the first trial chose them."""


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial, in the folder of its sweep."""
    return folder / TRIALS / f"{number:04d}"


def make_folder(path: Path) -> Path:
    """Create a trial's folder where it is missing. OutputError where a link stands in its place."""
    own_folder(path.parent)
    return own_folder(path)


def remove_leftovers(path: Path) -> None:
    """Remove the files that a failed attempt left in a trial's folder."""
    for name in (ERROR, LOG):
        (path / name).unlink(missing_ok=True)


def write_error(path: Path, cause: str, detail: str) -> None:
    """Write the cause of a failure into the trial's folder, with its traceback and the last lines of its output."""
    with contextlib.suppress(OSError, OutputError):  # the disk may be full; the study has the cause as well
        make_folder(path)
        unfinished = path / STAGING
        if unfinished.is_dir():
            copy_log(path)
            if not (unfinished / STATE).is_file():  # else the next attempt continues from it
                shutil.rmtree(unfinished, ignore_errors=True)
        write_text(path / ERROR, neutral_lines(f"{cause}\n\n{detail.rstrip()}\n"))


def copy_log(path: Path) -> None:
    """Copy the log of an unfinished attempt into the trial's folder."""
    with contextlib.suppress(OSError, OutputError):
        log = path / STAGING / LOG
        for own in (path.parent, path, log.parent, log):
            refuse_link(own)
        if log.is_file():
            write_bytes(path / LOG, log.read_bytes())


def current_phase(folder: Path, number: int) -> str:
    """Return the last phase in a trial's log; an empty text where there is none."""
    name = ""
    with contextlib.suppress(Exception):  # a log may hold anything, and may be half written
        log = trial_folder(folder, number) / STAGING / LOG
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            event = json.loads(line)
            name = event["name"] if event.get("event") == "phase" else name
    return name


def read_description(folder: Path) -> str:
    """Return which samples rank and which report, as the first trial described it; empty before there was one."""
    return str(_read_samples(folder).get("said", ""))


def read_alerts(folder: Path) -> list[Alert]:
    """Return the warnings about the dense network, as the first trial raised them; none before there was one."""
    try:
        return [Alert(str(one["key"]), str(one["text"])) for one in _read_samples(folder).get("warnings", [])]
    except (KeyError, TypeError, AttributeError):
        return []


def write_description(folder: Path, text: str, warnings: Sequence[Alert] = ()) -> None:
    """Write what ``read_description`` and ``read_alerts`` read."""
    before = _read_samples(folder)
    after = {**before, "said": text, "warnings": [asdict(alert) for alert in warnings]}
    if after != before:
        write_text(folder / SAMPLES, json.dumps(after) + "\n")


def _read_samples(folder: Path) -> dict[str, Any]:
    """Return the content of the sweep's file; empty where it is missing, or holds what no sweep wrote."""
    try:
        content = read_json(folder / SAMPLES)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
