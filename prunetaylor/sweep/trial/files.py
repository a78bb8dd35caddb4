"""The files of a trial beside those of a run, and what is left of one that failed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from prunetaylor.core.errors import OutputError
from prunetaylor.core.files import own_folder, refuse_link, write_bytes, write_text
from prunetaylor.core.json_file import read_json
from prunetaylor.core.results.outcome import Alert
from prunetaylor.core.text import neutral_lines
from prunetaylor.pipeline.files.run_folder import LOG, STAGING, STATE

TRIALS = "trials"
TRIAL = "trial.json"
ERROR = "error.txt"
CHOICE = "samples.json"
"""In the sweep's folder: which samples rank, as the first trial chose them."""


def trial_folder(folder: Path, number: int) -> Path:
    return folder / TRIALS / f"{number:04d}"


def make_folder(path: Path) -> Path:
    """A trial's folder, made where it is missing. OutputError where a link stands in its place."""
    own_folder(path.parent)
    return own_folder(path)


def clear(path: Path) -> None:
    """Take away what a failed attempt left in a trial's folder."""
    for name in (ERROR, LOG):
        (path / name).unlink(missing_ok=True)


def write_error(path: Path, cause: str, detail: str) -> None:
    """Keep the cause of a failure in the trial's folder, with where it came from and what the log said last."""
    with contextlib.suppress(OSError, OutputError):  # a full disk; the cause is in the study as well
        make_folder(path)
        killed = path / STAGING
        if killed.is_dir():
            keep_log(path)
            if not (killed / STATE).is_file():  # else the next attempt goes on from it
                shutil.rmtree(killed, ignore_errors=True)
        write_text(path / ERROR, neutral_lines(f"{cause}\n\n{detail.rstrip()}\n"))


def keep_log(path: Path) -> None:
    """The log of an attempt that did not end, beside its error."""
    with contextlib.suppress(OSError, OutputError):
        log = path / STAGING / LOG
        for own in (path.parent, path, log.parent, log):
            refuse_link(own)
        if log.is_file():
            write_bytes(path / LOG, log.read_bytes())


def phase(folder: Path, number: int) -> str:
    """What a trial is at, by the last phase in its log; empty where nothing is known."""
    found = ""
    with contextlib.suppress(Exception):  # a log may hold anything, and is being written
        log = trial_folder(folder, number) / STAGING / LOG
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            event = json.loads(line)
            found = event["name"] if event.get("event") == "phase" else found
    return found


def described(folder: Path) -> str:
    """Which samples rank and which report, as the first trial said it; empty before there was one."""
    try:
        found = read_json(folder / CHOICE)
    except (OSError, ValueError):
        return ""
    return str(found.get("said", "")) if isinstance(found, dict) else ""


def alerts(folder: Path) -> list[Alert]:
    """What is doubtful of the dense network, as the first trial found it; empty before there was one."""
    try:
        found = read_json(folder / CHOICE)
        return [Alert(str(one["key"]), str(one["text"])) for one in found.get("warnings", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def describe(folder: Path, said: str, warnings: Sequence[Alert] = ()) -> None:
    """Keep what ``described`` and ``alerts`` tell."""
    path = folder / CHOICE
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):  # it is not there yet, or holds what no sweep wrote
        found = {}
    found = found if isinstance(found, dict) else {}
    told = {"said": said, "warnings": [asdict(alert) for alert in warnings]}
    if {**found, **told} != found:
        write_text(path, json.dumps({**found, **told}) + "\n")
