"""The command ``prunetaylor check``: it judges a pruned network, with an exit code for CI."""

from __future__ import annotations

from pathlib import Path

import click

from .support.network_command import Request, network_command
from .support.options import State, setting_option
from .support.verdict_output import write_for_github, write_reports
from .terminal.console import say_json


@network_command(
    "check",
    summary="Judge a pruned network by limits, for CI.",
    example=(
        "prunetaylor check runs/model-1 --max-drop 0.5pp --min-sparsity 80%",
        "prunetaylor check small.pt --baseline model.pt --max-size 2MB --junit g.xml",
        "prunetaylor check runs/net-1 --arch net.py:resnet20 --max-drop 1pp",
    ),
    model="PRUNED",
    before_examples="Exit codes: 0 passed, 3 failed, 4 inconclusive (see --on-inconclusive).",
    options=(
        setting_option(
            "--baseline",
            key="gate.baseline",
            metavar="DENSE",
            help="The dense checkpoint.  [default: the one that the run pruned]",
        ),
        setting_option(
            "--max-drop", key="gate.max_drop", metavar="PP", help="Maximum drop of the metric: 0.5pp or 0.5."
        ),
        setting_option(
            "--max-class-drop", key="gate.max_class_drop", metavar="PP", help="Maximum drop of any class: 3pp."
        ),
        setting_option(
            "--min-sparsity", key="gate.min_sparsity", metavar="S", help="Minimum fraction removed: 0.8 or 80%."
        ),
        setting_option("--max-size", key="gate.max_size", metavar="SIZE", help="Maximum file size: 2MB, 500KiB."),
        setting_option("--max-flops", key="gate.max_flops", metavar="F", help="Maximum share of the dense FLOPs: 50%."),
        setting_option(
            "--max-latency-ratio",
            key="gate.max_latency_ratio",
            metavar="R",
            help="Maximum ratio of pruned to dense latency: 0.9.",
        ),
        setting_option(
            "--on-inconclusive",
            key="gate.on_inconclusive",
            metavar="HOW",
            help="How to treat too few samples to judge: pass, fail or warn.  [default: exit code 4]",
        ),
        click.option(
            "--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write the verdict as JUnit XML."
        ),
        click.option(
            "--markdown", metavar="FILE", type=click.Path(path_type=Path), help="Write the verdict as Markdown."
        ),
    ),
    processes=False,
)
def check(state: State, request: Request, junit: Path | None, markdown: Path | None) -> int:
    """Judge a pruned network by limits, on test samples that pruning did not use.

    PRUNED is the folder of a run or a checkpoint. Both networks are measured on the same samples. A limit passes where
    the drop's upper one-sided 95 % limit is within it, fails where the lower one exceeds it, and is inconclusive in
    between. Limits may also stand in a gate: block of the configuration (gate.max_drop and so on).

    With GITHUB_STEP_SUMMARY, GITHUB_OUTPUT and GITHUB_ACTIONS in the environment, GitHub gets the verdict as well.
    """
    _require_folders(junit, markdown)
    from prunetaylor.core.progress import Logged
    from prunetaylor.gate.check import check as check_network
    from prunetaylor.gate.check import require_limits

    from .terminal.progress import reporter

    config = request.resolved.config
    require_limits(config)
    with reporter(state) as shown:
        verdict = check_network(config, trust=request.trust, progress=Logged(shown, None))
    errors = [*write_reports(verdict, junit=junit, markdown=markdown), *write_for_github(verdict)]
    if request.as_json:
        from prunetaylor.report.json_report import verdict_to_json

        say_json(verdict_to_json(verdict, config.model_dump()))
    else:
        from prunetaylor.report.terminal.verdict import print_verdict

        from .terminal.console import console

        print_verdict(console(), verdict)
    if errors:
        raise errors[0]
    return verdict.exit_code


def _require_folders(*files: Path | None) -> None:
    """Raise OutputPlaceError where a file cannot be written, before the networks are measured rather than after."""
    from prunetaylor.core.errors import OutputPlaceError

    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            problem = "is a folder" if file.is_dir() else f"cannot be written: there is no folder {file.parent}"
            raise OutputPlaceError(f"{file} {problem}", "name a file in a folder that exists")
