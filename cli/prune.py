"""``prunetaylor prune``: the main job."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunetaylor.core.errors import NumericsError, UsageError
from prunetaylor.pipeline.files.run_folder import MODEL_FILE
from prunetaylor.pipeline.files.signals import stop_at_checkpoints

from .support.multiprocess import nproc_option, together
from .support.options import (
    State,
    arch_option,
    config_option,
    data_option,
    device_option,
    examples,
    json_option,
    memory_option,
    method_option,
    read_configuration,
    seed_option,
    trust_option,
    trusted,
    verbosity_options,
    words,
)
from .terminal.console import console, say, say_json, say_path

if TYPE_CHECKING:
    from prunetaylor.core.config.code import Trust
    from prunetaylor.core.config.resolve import Resolved
    from prunetaylor.core.config.schema import Config
    from prunetaylor.core.progress import Progress
    from prunetaylor.core.results.outcome import PruneResult
    from prunetaylor.core.results.verdict import Verdict
    from prunetaylor.pipeline.files.run_folder import RunFolder

# bytes for the report and the log; the network's size is known when it is open
_ROOM = 2**20
# what the main process tells the others in place of the state that there is to go on from
_FINISHED = "finished"


@click.command(
    short_help="Prune, repair, fine-tune, measure and write a network.",
    epilog=examples(
        "prunetaylor prune model.pt --sparsity 80%",
        "prunetaylor prune net.pt --arch net.py:resnet20 --data arrays:cifar.npz",
        "prunetaylor prune model.pt --epochs 3 finetune.lr=0.02 prune.exclude=fc2",
    ),
)
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
    help="Passes of fine-tuning over the training set. Use --epochs 0 (or N) for the same run on every machine.  "
    "[default: 3 on a CUDA GPU, 0 elsewhere]",
)
@click.option("-o", "--output", metavar="DIR", help="Folder of the run.  [default: runs/NAME-N]")
@method_option
@device_option
@seed_option
@memory_option
@click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, and write nothing.")
@json_option
@click.option("--force", is_flag=True, help="Replace the run in --output, once the new one is complete.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the interrupted run in --output; settings, checkpoint and data must be the same.",
)
@trust_option
@verbosity_options
@nproc_option
@click.pass_obj
@together
def prune(
    state: State,
    words: tuple[str, ...],
    file: Path | None,
    arch: str | None,
    data: str | None,
    sparsity: str | None,
    epochs: str | None,
    output: str | None,
    method: str | None,
    device: str | None,
    seed: str | None,
    memory: str | None,
    dry_run: bool,
    as_json: bool,
    force: bool,
    resume: bool,
    trust_code: bool,
) -> int:
    """Remove weights from a trained network, adjust the others, and measure the loss of accuracy.

    MODEL is a checkpoint: a state_dict, a training dict, safetensors, or the folder of a run. KEY=VALUE sets any key
    that `prunetaylor config` prints; so do a YAML file (-c) and the environment (PRUNETAYLOR_PRUNE_SPARSITY=0.8).

    The run's folder gets model.safetensors, report.json, report.html, config.yaml and log.jsonl. A running job
    saves its state there every checkpoint.every seconds; the same command with --resume continues it.

    Limits such as gate.max_drop=0.5pp judge the finished run: exit code 3 if one is exceeded, 4 if there are too few
    test samples to judge.
    """
    flags = {
        "model.arch": arch,
        "data.source": data,
        "prune.sparsity": sparsity,
        "finetune.epochs": epochs,
        "output": output,
        "prune.method": method,
        "device": device,
        "seed": seed,
        "memory": memory,
    }
    if force and resume:
        raise UsageError("--force starts over and --resume continues", "give one of them")
    resolved = read_configuration(words, file, flags)
    trust = trusted(resolved, trust_code)
    if dry_run:
        _dry_run(state, resolved, trust, as_json)
        return 0
    if not state.main:
        _follow(state, resolved, trust)
        return 0
    outcome, document, notes, verdict = _run(state, resolved, trust, force, resume)
    if as_json:
        say_json(document)
    elif state.verbosity < 0:
        say_path(document["files"]["folder"])
    elif outcome is None:
        say(f"{document['files']['folder']} is already finished; nothing was changed")
    else:
        from prunetaylor.report.terminal.run import print_outcome

        print_outcome(
            console(), outcome, _relative(document["files"]), verbose=state.verbosity > 0, known_choices=notes
        )
    # a run that was finished before ends as it ended then
    code = int((document.get("gate") or {}).get("exit_code", 0))
    if verdict is not None:
        code = _announce(state, verdict, as_json)
    if outcome is not None and not as_json and state.verbosity >= 0:
        _say_next(resolved.config, outcome, document["files"]["folder"])
    if short := document.get("unfinished"):
        raise NumericsError(short["cause"], short["remedy"])
    return code


def _say_next(config: Config, outcome: PruneResult, folder: str) -> None:
    """Print what to do next, as commands that can be pasted."""
    from .terminal.next_steps import lines, relative, steps

    say("")
    for line in lines(steps(click.get_current_context(), config, outcome, relative(folder))):
        say(line)


def _announce(state: State, verdict: Verdict, as_json: bool) -> int:
    """Show the verdict where people and GitHub look; its exit code."""
    from prunetaylor.report.terminal.verdict import print_verdict
    from prunetaylor.report.verdict_text import conclusion

    from .check import announce

    failed = announce(verdict)
    if as_json or state.verbosity < 0:
        say(conclusion(verdict), err=True)
    else:
        say("")
        print_verdict(console(), verdict)
    if failed:
        raise failed[0]
    return verdict.exit_code


def _run(
    state: State, resolved: Resolved, trust: Trust, force: bool, resume: bool
) -> tuple[PruneResult | None, dict[str, Any], list[str], Verdict | None]:
    """The job from its folder to its written result: the outcome, the report, the notes shown, the verdict.

    No outcome and no new verdict where the run was finished before.
    """
    from prunetaylor.pipeline.files.run_folder import RunFolder

    from .terminal.progress import Logged, reporter

    config = resolved.config
    folder = RunFolder.create(
        Path(config.output) if config.output else None, _name(config.model.checkpoint), force=force, resume=resume
    )
    try:
        with folder, reporter(state) as shown:
            # torch is imported only now, when the folder is known to be good
            from prunetaylor.gate.check import asked, require_limits, require_reachable
            from prunetaylor.pipeline.files.input_hashes import input_hashes
            from prunetaylor.pipeline.files.outputs import write_page, write_run
            from prunetaylor.pipeline.files.resume import FolderStateStore, identity, identity_of_report, refuse_changes
            from prunetaylor.pipeline.job import open_job
            from prunetaylor.pipeline.run import run
            from prunetaylor.report.json_report import versions
            from prunetaylor.report.trackers._trackers import Trackers
            from prunetaylor.runtime.processes.exchange import from_main
            from prunetaylor.runtime.processes.group import world

            if asked(config.gate):
                require_limits(config)
            progress = Logged(shown, None if folder.finished else folder)
            job = open_job(config, trust=trust, progress=progress)
            require_reachable(job)
            same = identity(config, str(job.device), input_hashes(job))
            if folder.finished:
                refuse_changes(identity_of_report(folder.report()), same)
                from_main(_FINISHED)
                return None, folder.report(), progress.notes, None
            folder.require(_ROOM + sum(t.nbytes for t in job.network.module.state_dict().values()))
            # a run that is finished is the same whatever it ran on; one that goes on needs the same shares of the work
            # and, to end with the same bits, the same arithmetic
            ran_on = {f"version of {name}": number for name, number in versions().items() if name != "python"}
            store = FolderStateStore(folder, config.checkpoint.every, {**same, "processes": world(), **ran_on})
            from_main(None if folder.state is None else str(folder.state.resolve()))
            trackers = Trackers(config.track, folder.stage(""), folder.path.name, same, progress.note)
            with stop_at_checkpoints(store), closing(trackers):
                progress.trackers = trackers
                outcome = run(job, progress, store)
            progress.phase("write")
            outcome, document = write_run(folder, resolved, outcome, job.identity(), {"loss": job.config.loss})
            try:
                verdict = _gate(folder, config, trust, document, progress) if asked(config.gate) else None
                write_page(folder, document)
            finally:
                folder.commit()  # a finished run is kept, whatever becomes of its verdict
            if store.stop is not None:  # it came after the last moment to stop at: there was nothing left to break off
                raise store.stop
    except BaseException as err:
        state.remedy = _way_on(err, folder)
        raise
    return outcome, document, progress.notes, verdict


def _way_on(err: BaseException, folder: RunFolder) -> str:
    """What to do with the state of a run that ``err`` ended; nothing to say where there is none, or it is no use."""
    if folder.state is None:
        return ""
    from prunetaylor.pipeline.files.resume import OtherRun, UnreadableState

    if isinstance(err, UnreadableState | OtherRun):
        return ""
    if isinstance(err, NumericsError):  # the same command would end here again
        return f"other settings start the run anew: with --force, or in another folder than {folder.path}"
    return f"its state is saved; continue with the same command and --resume -o {shlex.quote(str(folder.path))}"


def _gate(folder: RunFolder, config: Config, trust: Trust, document: dict[str, Any], progress: Progress) -> Verdict:
    """Judge the file that was written beside the one that was pruned; the verdict goes into the report."""
    from prunetaylor.pipeline.files.run_folder import REPORT
    from prunetaylor.report.json_report import verdict_to_json

    # no larger batches than the run itself was planned to hold
    batch = min(config.data.batch_size, (document["memory"] or {}).get("batch", config.data.batch_size))
    verdict = _judged(config, (str(folder.stage(MODEL_FILE)), batch), trust, progress)
    verdict = replace(verdict, files={**verdict.files, "pruned": document["files"]["model"]})
    document["gate"] = verdict_to_json(verdict)
    folder.write_text(REPORT, json.dumps(document, indent=2, allow_nan=False) + "\n")
    folder.log("gate", verdict=verdict.status, exit_code=verdict.exit_code)
    return verdict


def _judged(config: Config, written: tuple[str, int], trust: Trust, progress: Progress) -> Verdict:
    """The verdict on what the main process has ``written``, its file and the samples in a batch.

    Every process has its share of the samples, and comes to the same verdict.
    """
    from prunetaylor.gate.check import check
    from prunetaylor.runtime.processes.exchange import from_main

    file, batch = from_main(written)
    sections = {
        "model": config.model.model_copy(update={"checkpoint": file}),
        "data": config.data.model_copy(update={"batch_size": batch}),
        "gate": config.gate.model_copy(update={"baseline": config.gate.baseline or config.model.checkpoint}),
    }
    return check(config.model_copy(update=sections), trust=trust, progress=progress)


def _follow(state: State, resolved: Resolved, trust: Trust) -> None:
    """The job in a process that has its share of the work, and neither prints nor writes."""
    from prunetaylor.gate.check import asked
    from prunetaylor.pipeline.files.resume import FollowerStateStore
    from prunetaylor.pipeline.job import open_job
    from prunetaylor.pipeline.run import run
    from prunetaylor.runtime.processes.exchange import from_main

    from .terminal.progress import Logged, reporter

    with reporter(state) as shown:
        progress = Logged(shown, None)
        job = open_job(resolved.config, trust=trust, progress=progress)
        begun: str | None = from_main(None)
        if begun != _FINISHED:
            store = FollowerStateStore(None if begun is None else Path(begun))
            with stop_at_checkpoints(store):
                run(job, progress, store)
            if asked(resolved.config.gate):
                _judged(resolved.config, ("", 0), trust, progress)


def _dry_run(state: State, resolved: Resolved, trust: Trust, as_json: bool) -> None:
    """Open everything as the run would, and print what it would do."""
    from dataclasses import asdict

    from prunetaylor.gate.check import asked, require_limits, require_reachable
    from prunetaylor.pipeline.job import open_job
    from prunetaylor.pipeline.run import rehearse
    from prunetaylor.pipeline.time_estimate import estimate

    from .terminal.progress import Logged, reporter

    if limits := asked(resolved.config.gate):
        require_limits(resolved.config)
    with reporter(state) as shown:
        progress = Logged(shown, None)
        job = open_job(resolved.config, trust=trust, progress=progress)
        require_reachable(job)
        memory, time = rehearse(job, progress), estimate(job)
    plan = [
        *job.plan(),
        f"memory     {memory.describe().removeprefix('memory: ')}",
        f"time       {time.describe().removeprefix('time: ')}",
    ]
    if limits:
        plan.append("gate       " + ", ".join(f"{name} {getattr(resolved.config.gate, name):g}" for name in limits))
    if not state.main:
        return
    if as_json:
        document = {
            "schema_version": 1,
            "dry_run": True,
            "plan": plan,
            "warnings": [asdict(alert) for alert in job.warnings],
            "memory": asdict(memory.report),
            "time": asdict(time),
            "configuration": resolved.config.model_dump(),
        }
        say_json(document)
    else:
        for line in plan:
            say(line)


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
