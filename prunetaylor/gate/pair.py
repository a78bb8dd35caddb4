"""The two networks of a gate are opened together: weights, architecture and samples are checked for consistency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunetaylor.core.config.code import Trust, settings_of
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.core.json_file import read_json
from prunetaylor.core.results.inspection import CheckpointMetadata
from prunetaylor.core.text import neutral
from prunetaylor.data.load import load_samples
from prunetaylor.network.checkpoint.architecture.build import BuiltNetwork, build_network
from prunetaylor.network.checkpoint.huggingface.pretrained import tokenizer_folder
from prunetaylor.network.checkpoint.read import Checkpoint, read
from prunetaylor.pipeline.files.run_folder import REPORT
from prunetaylor.pipeline.job import Job, make_job
from prunetaylor.pipeline.planning.method import choose_device
from prunetaylor.pipeline.planning.task import with_recorded_loss


@dataclass(frozen=True)
class Pair:
    """Two networks on one device with the same samples, and notes on the choices made for them."""

    dense: Job
    pruned: Job
    notes: list[str]


def open_pair(config: Config, *, trust: Trust) -> Pair:
    """Open the network in ``config.model.checkpoint`` and its baseline.

    A file that names no network gets the other file's. The configuration names the samples, else the pruned file does,
    else the dense one. ``trust`` covers the code that may be imported although only a file names it.

    Raises UsageError (no baseline, an unknown network), CheckpointRefused and DataError as opening a job does.
    """
    assert config.model.checkpoint is not None  # the command line requires it
    trust.require(settings_of(config.model_dump()), "the configuration")
    pruned = read(config.model.checkpoint)
    dense, notes = _baseline(pruned, config.gate.baseline)
    device, chosen = choose_device(config)
    of_files = [f"{one.path.name}: {note}" for one in (dense, pruned) for note in one.notes]
    metadata = [one.metadata for one in (pruned, dense) if one.metadata is not None]
    recorded = next((one.data for one in metadata if one.data), None)
    networks = _networks(config, dense, pruned, trust)
    tokenizer = tokenizer_folder(networks[0][1].spec)
    samples = load_samples(config.data, recorded=recorded, tokenizer=tokenizer, trust=trust, seed=config.seed)
    config, jobs = with_recorded_loss(config, [pruned, dense]), {}
    for file, network in networks:
        jobs[file.path] = make_job(
            config, network.module, samples, device, checkpoint=file, arch=network.spec, args=network.args
        )
    pair = Pair(jobs[dense.path], jobs[pruned.path], [*notes, *of_files, f"device {device}: {chosen.reason}"])
    if pair.dense.task != pair.pruned.task:
        raise DataError("the two networks have different tasks", "compare networks of the same task")
    return pair


def _networks(
    config: Config, dense: Checkpoint, pruned: Checkpoint, trust: Trust
) -> list[tuple[Checkpoint, BuiltNetwork]]:
    """Return both files with their networks. A file that names its network comes first, and may name the other's."""
    networks: list[tuple[Checkpoint, BuiltNetwork]] = []
    for file in sorted((pruned, dense), key=lambda one: one.metadata is None or one.metadata.arch is None):
        source = file
        nameless = file.metadata is None or file.metadata.arch is None
        if nameless and config.model.arch is None and networks and networks[0][0].metadata is not None:
            source = replace(file, metadata=CheckpointMetadata(arch=networks[0][1].spec, args=networks[0][1].args))
        networks.append((file, build_network(config.model.arch, config.model.args, source, trust=trust)))
    return networks


def _baseline(pruned: Checkpoint, named: str | None) -> tuple[Checkpoint, list[str]]:
    """Return the dense file: the one that is named, else the one that the run pruned, by its report."""
    report = run_report(pruned.path.parent)
    digest = _text(report, "hashes", "checkpoint")
    if named is not None:
        dense = read(named)
        other = digest is not None and dense.sha256 != digest
        return dense, ["the baseline is not the file that this run pruned: their hashes differ"] if other else []
    source = _text(report, "configuration", "model", "checkpoint")
    if source is None:
        raise UsageError(f"{pruned.path} does not name its dense network", "name it with --baseline FILE")
    try:
        dense = read(source)
    except UsageError as error:
        raise UsageError(
            f"{neutral(source)}, from which {pruned.path.parent} was pruned, cannot be opened",
            "name it with --baseline FILE",
        ) from error
    if dense.sha256 != digest:
        raise UsageError(
            f"{source} has changed since {pruned.path.parent} was pruned from it: the hashes differ",
            "name the dense network with --baseline FILE",
        )
    return dense, [f"baseline {source}: what the run pruned"]


def run_report(folder: Path) -> Mapping[str, Any]:
    """Return a run's report.json; an empty mapping where it cannot be read."""
    try:
        report = read_json(folder / REPORT)
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _text(report: Any, *keys: str) -> str | None:
    for key in keys:
        report = report.get(key) if isinstance(report, dict) else None
    return report if isinstance(report, str) else None
