"""``prunetaylor prune``: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunetaylor.run import MODEL_FILE

from .options import (
    State,
    arch_option,
    config_option,
    data_option,
    device_option,
    json_option,
    memory_option,
    read_configuration,
    seed_option,
    trust_option,
    trusted,
    verbosity_options,
    words,
)

if TYPE_CHECKING:
    from prunetaylor.config.resolve import Resolved
    from prunetaylor.outcome import Outcome

# bytes for the report and the log; the network's size is known when it is open
_ROOM = 2**20

_EPILOG = """\b
Examples:
  prunetaylor prune model.pt --sparsity 80%
  prunetaylor prune net.pt --arch net.py:resnet20 --data arrays:cifar.npz
  prunetaylor prune model.pt --epochs 3 finetune.lr=0.02 prune.exclude=fc2
"""


@click.command(short_help="Prune, repair, fine-tune, measure and write a network.", epilog=_EPILOG)
@words("MODEL [KEY=VALUE]...")
@config_option
@arch_option
@data_option
@click.option(
    "--sparsity", metavar="S", help="Fraction of the prunable weights to remove: 0.8 or 80%, below 1.  [default: 0.5]"
)
@click.option(
    "--epochs",
    metavar="N",
    help="Passes of fine-tuning over the training set; 0: none.  [default: 3 on a GPU, 0 elsewhere]",
)
@click.option("-o", "--output", metavar="DIR", help="Folder of the run.  [default: runs/NAME-N]")
@device_option
@seed_option
@memory_option
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and write nothing.")
@json_option
@click.option("--force", is_flag=True, help="Replace the run in --output, once the new one is complete.")
@trust_option
@verbosity_options
@click.pass_obj
def prune(
    state: State,
    words: tuple[str, ...],
    file: Path | None,
    arch: str | None,
    data: str | None,
    sparsity: str | None,
    epochs: str | None,
    output: str | None,
    device: str | None,
    seed: str | None,
    memory: str | None,
    dry_run: bool,
    as_json: bool,
    force: bool,
    trust_code: bool,
) -> None:
    """Remove weights from a trained network, make up for them, and measure what it cost.

    MODEL is a checkpoint: a state_dict, a training dict, safetensors, or the folder of a run. KEY=VALUE sets any key
    that `prunetaylor config` prints; so do a YAML file (-c) and the environment (PRUNETAYLOR_PRUNE_SPARSITY=0.8).

    The run's folder gets model.safetensors, report.json, config.yaml and log.jsonl.
    """
    flags = {
        "model.arch": arch,
        "data.source": data,
        "prune.sparsity": sparsity,
        "finetune.epochs": epochs,
        "output": output,
        "device": device,
        "seed": seed,
        "memory": memory,
    }
    resolved = read_configuration(words, file, flags)
    trust = trusted(resolved, trust_code)
    if dry_run:
        _dry_run(state, resolved, trust, as_json)
        return
    outcome, document, notes = _run(state, resolved, trust, force)
    if as_json:
        click.echo(json.dumps(document, allow_nan=False))
    elif state.verbosity < 0:
        click.echo(document["files"]["folder"])
    else:
        from prunetaylor.report.terminal import print_outcome

        from .screen import console

        print_outcome(console(), outcome, _relative(document["files"]), verbose=state.verbosity > 0, said=notes)


def _run(
    state: State, resolved: Resolved, trust: dict[str, bool], force: bool
) -> tuple[Outcome, dict[str, Any], list[str]]:
    """The job from its folder to its written result: the outcome, the report, the notes that were shown."""
    from prunetaylor.run import RunFolder

    from .progress import Logged, reporter

    config = resolved.config
    folder = RunFolder.create(
        Path(config.output) if config.output else None, _name(config.model.checkpoint), force=force
    )
    with folder, reporter(state.verbosity) as shown:
        # torch is imported only now, when the folder is known to be good
        from prunetaylor.job import open_job
        from prunetaylor.pipeline import run
        from prunetaylor.report.run_files import write_run

        progress = Logged(shown, folder)
        job = open_job(config, **trust, progress=progress)
        folder.require(_ROOM + sum(t.nbytes for t in job.network.module.state_dict().values()))
        outcome = run(job, progress)
        progress.phase("write")
        outcome, document = write_run(folder, resolved, job, outcome)
        folder.commit()
    return outcome, document, progress.notes


def _dry_run(state: State, resolved: Resolved, trust: dict[str, bool], as_json: bool) -> None:
    """Open everything as the run would, and print what it would do."""
    from dataclasses import asdict

    from prunetaylor.job import open_job
    from prunetaylor.planning import make_plan

    from .progress import Logged, reporter

    with reporter(state.verbosity) as shown:
        job = open_job(resolved.config, **trust, progress=Logged(shown, None))
        memory = make_plan(job)
    plan = [*job.plan(), f"memory     {memory.describe().removeprefix('memory ')}"]
    if as_json:
        document = {
            "schema_version": 1,
            "dry_run": True,
            "plan": plan,
            "memory": asdict(memory.report),
            "configuration": resolved.config.model_dump(),
        }
        click.echo(json.dumps(document, allow_nan=False))
    else:
        click.echo("\n".join(plan))


def _name(checkpoint: str | None) -> str:
    """What a run is called after: its checkpoint's file, or the run that is pruned further."""
    path = Path(checkpoint or "")
    return path.parent.resolve().name if path.name == MODEL_FILE else path.stem if path.suffix else path.name


def _relative(files: dict[str, str]) -> dict[str, str]:
    """Paths beneath the working directory as one would type them."""
    here = Path.cwd()
    return {
        what: str(Path(file).relative_to(here)) if Path(file).is_relative_to(here) else file
        for what, file in files.items()
        if what != "folder"
    }
