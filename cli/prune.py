"""The command ``prunetaylor prune``: it removes weights, repairs, fine-tunes, measures and writes a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from prunetaylor.core.errors import NumericsError, UsageError

from .support.network_command import Request, network_command
from .support.options import State, memory_option, method_option, setting_option
from .support.prune_run import FinishedRun, open_checked, run_follower, run_main
from .terminal.console import console, say, say_json, say_path

if TYPE_CHECKING:
    from prunetaylor.core.config.schema import Config
    from prunetaylor.core.results.outcome import PruneResult
    from prunetaylor.core.results.verdict import Verdict


@network_command(
    "prune",
    summary="Prune, repair, fine-tune, measure and write a network.",
    example=(
        "prunetaylor prune model.pt --sparsity 80%",
        "prunetaylor prune net.pt --arch net.py:resnet20 --data arrays:cifar.npz",
        "prunetaylor prune model.pt --epochs 3 finetune.lr=0.02 prune.exclude=fc2",
    ),
    options=(
        setting_option(
            "--sparsity",
            key="prune.sparsity",
            metavar="S",
            help="Fraction of the prunable weights to remove: 0.8 or 80%, below 1.  [default: 0.5]",
        ),
        setting_option(
            "--epochs",
            key="finetune.epochs",
            metavar="N",
            help="Passes of fine-tuning over the training set. Use --epochs 0 (or N) for the same run on every "
            "machine.  [default: 3 on a CUDA GPU, 0 elsewhere]",
        ),
        setting_option(
            "-o", "--output", key="output", metavar="DIR", help="Folder of the run.  [default: runs/NAME-N]"
        ),
        method_option,
        memory_option,
        click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, and write nothing."),
        click.option("--force", is_flag=True, help="Replace the run in --output, once the new one is complete."),
        click.option(
            "--resume",
            is_flag=True,
            help="Continue the interrupted run in --output; settings, checkpoint and data must be the same.",
        ),
    ),
)
def prune(state: State, request: Request, dry_run: bool, force: bool, resume: bool) -> int:
    """Remove weights from a trained network, adjust the others, and measure the loss of accuracy.

    MODEL is a checkpoint: a state_dict, a training dict, safetensors, or the folder of a run. KEY=VALUE sets any key
    that `prunetaylor config` prints; so do a YAML file (-c) and the environment (PRUNETAYLOR_PRUNE_SPARSITY=0.8).

    The run's folder gets model.safetensors, report.json, report.html, config.yaml and log.jsonl. A running job
    saves its state there every checkpoint.every seconds; the same command with --resume continues it.

    Limits such as gate.max_drop=0.5pp judge the finished run: exit code 3 if one is exceeded, 4 if there are too few
    test samples to judge.
    """
    if force and resume:
        raise UsageError("--force starts over and --resume continues", "give one of them")
    if dry_run:
        _dry_run(state, request)
        return 0
    if not state.main:
        run_follower(state, request)
        return 0
    finished = run_main(state, request, force=force, resume=resume)
    _print(state, finished, as_json=request.as_json)
    # a run that was finished before ends with its exit code of then
    code = int((finished.document.get("gate") or {}).get("exit_code", 0))
    if finished.verdict is not None:
        code = _announce(state, finished.verdict, request.as_json)
    if finished.result is not None and not request.as_json and state.verbosity >= 0:
        _print_next_steps(request.resolved.config, finished.result, finished.document["files"]["folder"])
    if shortfall := finished.document.get("unfinished"):
        raise NumericsError(shortfall["cause"], shortfall["remedy"])
    return code


def _print(state: State, finished: FinishedRun, *, as_json: bool) -> None:
    files = finished.document["files"]
    if as_json:
        say_json(finished.document)
    elif state.verbosity < 0:
        say_path(files["folder"])
    elif finished.result is None:
        say(f"{files['folder']} is already finished; nothing was changed")
    else:
        from prunetaylor.report.terminal.run import print_outcome

        verbose = state.verbosity > 0
        print_outcome(console(), finished.result, _relative(files), verbose=verbose, known_choices=finished.notes)


def _print_next_steps(config: Config, result: PruneResult, folder: str) -> None:
    """Print next steps as commands that can be pasted."""
    from .terminal.next_steps import lines, relative, steps

    say("")
    for line in lines(steps(click.get_current_context(), config, result, relative(folder))):
        say(line)


def _announce(state: State, verdict: Verdict, as_json: bool) -> int:
    """Show the verdict to the user and to GitHub, and return its exit code."""
    from prunetaylor.report.terminal.verdict import print_verdict
    from prunetaylor.report.verdict_text import conclusion

    from .support.verdict_output import write_for_github

    errors = write_for_github(verdict)
    if as_json or state.verbosity < 0:
        say(conclusion(verdict), err=True)
    else:
        say("")
        print_verdict(console(), verdict)
    if errors:
        raise errors[0]
    return verdict.exit_code


def _dry_run(state: State, request: Request) -> None:
    """Open everything as the run would, and print what it would do."""
    from dataclasses import asdict

    from prunetaylor.core.progress import Logged
    from prunetaylor.gate.check import limits_set
    from prunetaylor.pipeline.run import rehearse
    from prunetaylor.report.json_report import plan_to_json

    from .terminal.progress import reporter

    config = request.resolved.config
    with reporter(state) as shown:
        progress = Logged(shown, None)
        job = open_checked(config, request.trust, progress)
        rehearsal = rehearse(job, progress)
    prepared, time = rehearsal.prepared, rehearsal.time
    plan, memory = prepared.plan, prepared.memory
    if not state.main:
        return
    if request.as_json:
        document = {
            "schema_version": 1,
            "dry_run": True,
            "summary": job.describe(),
            "plan": plan_to_json(plan.choices),
            "warnings": [asdict(alert) for alert in rehearsal.alerts],
            "memory": asdict(memory.report),
            "time": asdict(time),
            "configuration": config.model_dump(),
        }
        say_json(document)
        return
    for line in (*job.describe(), *(f"note       {note}" for note in prepared.probe.notes)):
        say(line)
    width = max(len(one.key) for one in plan.choices)
    for one in plan.choices:
        say(f"{one.key:{width}}  {_shown(one.value)} ({one.reason})")
    say(f"memory     {memory.describe().removeprefix('memory: ')}")
    say(f"time       {time.describe().removeprefix('time: ')}")
    if limits := limits_set(config.gate):
        say("gate       " + ", ".join(f"{name} {getattr(config.gate, name):g}" for name in limits))


def _shown(value: object) -> str:
    """A setting's value, as one would read it."""
    if isinstance(value, list):
        return ", ".join(f"{one:.3g}" for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _relative(files: dict[str, str]) -> dict[str, str]:
    """Return the paths of files beneath the working directory as one would type them."""
    from .terminal.next_steps import relative

    return {role: relative(file) for role, file in files.items() if role != "folder"}
