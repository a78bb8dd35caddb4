"""The files of a finished run, as a command or a sweep's trial leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prunetaylor.core.config.describe import dump
from prunetaylor.network.checkpoint.read import MODEL_HASH, sha256
from prunetaylor.network.checkpoint.write import write_model
from prunetaylor.pipeline.files.run_folder import CONFIG_FILE, HTML_FILE, LOG, MODEL_FILE, REPORT
from prunetaylor.report.html.run_page import run_page
from prunetaylor.report.json_report import to_json

if TYPE_CHECKING:
    from prunetaylor.core.config.resolve import Resolved
    from prunetaylor.core.results.outcome import PruneResult
    from prunetaylor.pipeline.files.run_folder import RunFolder


def write_run(
    folder: RunFolder,
    resolved: Resolved,
    outcome: PruneResult,
    description: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> tuple[PruneResult, dict[str, Any]]:
    """Stage the run's files. Return the outcome with the size of the file that was written, and the report.

    ``description`` (arch, args, data) goes into the network's file, to rebuild it by, and ``extra`` beside it.
    """
    extra = {"seed": outcome.seed, **extra}
    written = write_model(
        folder.stage(MODEL_FILE), outcome.module, **description, masks=outcome.masks, extra=extra, named=False
    )
    hashes = {**outcome.hashes, MODEL_HASH: sha256(folder.stage(MODEL_FILE))}
    outcome = replace(outcome, pruned=replace(outcome.pruned, bytes=written), hashes=hashes)
    home = folder.path.resolve()
    names = {"model": MODEL_FILE, "report": REPORT, "html": HTML_FILE, "config": CONFIG_FILE, "log": LOG}
    files = {"folder": str(home), **{what: str(home / name) for what, name in names.items()}}
    document = to_json(outcome, files, resolved.config.model_dump())
    folder.write_text(CONFIG_FILE, dump(resolved))
    folder.write_text(REPORT, json.dumps(document, indent=2, allow_nan=False) + "\n")
    folder.log("done", drop_pp=document["drop_pp"], sparsity=document["sparsity"], seconds=document["seconds"])
    return outcome, document


def write_page(folder: RunFolder, document: dict[str, Any]) -> None:
    """Stage the page of a run whose report is complete."""
    folder.write_text(HTML_FILE, run_page(document, folder.path.resolve().name))
