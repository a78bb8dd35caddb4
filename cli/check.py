"""``prunetaylor check``: judge a pruned network, with an exit code for CI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .support.options import (
    State,
    arch_option,
    config_option,
    data_option,
    device_option,
    examples,
    json_option,
    read_configuration,
    seed_option,
    trust_option,
    trusted,
    verbosity_options,
    words,
)
from .terminal.console import say_json

if TYPE_CHECKING:
    from prunetaylor.core.errors import OutputError
    from prunetaylor.core.results.verdict import Verdict


@click.command(
    short_help="Judge a pruned network by limits, for CI.",
    epilog=examples(
        "prunetaylor check runs/model-1 --max-drop 0.5pp --min-sparsity 80%",
        "prunetaylor check small.pt --baseline model.pt --max-size 2MB --junit g.xml",
        "prunetaylor check runs/net-1 --arch net.py:resnet20 --max-drop 1pp",
        before="Exit codes: 0 passed, 3 failed, 4 inconclusive (see --on-inconclusive).",
    ),
)
@words("PRUNED [KEY=VALUE]...")
@click.option("--baseline", metavar="DENSE", help="The dense checkpoint.  [default: the one that the run pruned]")
@click.option("--max-drop", metavar="PP", help="Maximum drop of the metric: 0.5pp or 0.5.")
@click.option("--max-class-drop", metavar="PP", help="Maximum drop of any class: 3pp.")
@click.option("--min-sparsity", metavar="S", help="Minimum fraction removed: 0.8 or 80%.")
@click.option("--max-size", metavar="SIZE", help="Maximum file size: 2MB, 500KiB.")
@click.option("--max-flops", metavar="F", help="Maximum share of the dense FLOPs: 50%.")
@click.option("--max-latency-ratio", metavar="R", help="Maximum ratio of pruned to dense latency: 0.9.")
@click.option(
    "--on-inconclusive",
    metavar="HOW",
    help="How to treat too few samples to judge: pass, fail or warn.  [default: exit code 4]",
)
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write the verdict as JUnit XML.")
@click.option("--markdown", metavar="FILE", type=click.Path(path_type=Path), help="Write it as Markdown.")
@config_option
@arch_option
@data_option
@device_option
@seed_option
@json_option
@trust_option
@verbosity_options
@click.pass_obj
def check(
    state: State,
    words: tuple[str, ...],
    baseline: str | None,
    max_drop: str | None,
    max_class_drop: str | None,
    min_sparsity: str | None,
    max_size: str | None,
    max_flops: str | None,
    max_latency_ratio: str | None,
    on_inconclusive: str | None,
    junit: Path | None,
    markdown: Path | None,
    file: Path | None,
    arch: str | None,
    data: str | None,
    device: str | None,
    seed: str | None,
    as_json: bool,
    trust_code: bool,
) -> int:
    """Judge a pruned network by limits, on test samples that pruning did not use.

    PRUNED is the folder of a run or a checkpoint. Both networks answer the same samples; a limit passes where the
    drop's upper one-sided 95 % limit is within it, fails where the lower one is beyond, and is inconclusive between.
    Limits may stand in a gate: block of the configuration (gate.max_drop and so on).

    With GITHUB_STEP_SUMMARY, GITHUB_OUTPUT and GITHUB_ACTIONS in the environment it writes there too.
    """
    flags = {
        "gate.baseline": baseline,
        "gate.max_drop": max_drop,
        "gate.max_class_drop": max_class_drop,
        "gate.min_sparsity": min_sparsity,
        "gate.max_size": max_size,
        "gate.max_flops": max_flops,
        "gate.max_latency_ratio": max_latency_ratio,
        "gate.on_inconclusive": on_inconclusive,
        "model.arch": arch,
        "data.source": data,
        "device": device,
        "seed": seed,
    }
    resolved = read_configuration(words, file, flags)
    _require_folders(junit, markdown)
    from prunetaylor.gate.check import check as judge
    from prunetaylor.gate.check import require_limits

    from .terminal.progress import Logged, reporter

    require_limits(resolved.config)
    with reporter(state) as shown:
        verdict = judge(resolved.config, trust=trusted(resolved, trust_code), progress=Logged(shown, None))
    failed = [*_write(verdict, junit, markdown), *announce(verdict)]
    if as_json:
        from prunetaylor.report.json_report import verdict_to_json

        say_json(verdict_to_json(verdict, resolved.config.model_dump()))
    else:
        from prunetaylor.report.terminal.verdict import print_verdict

        from .terminal.console import console

        print_verdict(console(), verdict)
    if failed:
        raise failed[0]
    return verdict.exit_code


def announce(verdict: Verdict) -> list[OutputError]:
    """What GitHub's environment asks for; annotations go to stderr, which its runner reads as well.

    What cannot be written comes back, to be raised when the rest is written and the verdict shown.
    """
    from prunetaylor.core.errors import OutputError
    from prunetaylor.report.ci.github import annotate, write_outputs, write_summary

    failed = []
    for write in (write_summary, write_outputs):
        try:
            write(verdict, os.environ)
        except OutputError as err:
            failed.append(err)
    for line in annotate(verdict, os.environ):
        click.echo(line, err=True)
    return failed


def _require_folders(*files: Path | None) -> None:
    """OutputPlaceError where a file cannot be written: before the networks are measured, not after."""
    from prunetaylor.core.errors import OutputPlaceError

    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            what = "is a folder" if file.is_dir() else f"cannot be written: there is no folder {file.parent}"
            raise OutputPlaceError(f"{file} {what}", "name a file in a folder that exists")


def _write(verdict: Verdict, junit: Path | None, markdown: Path | None) -> list[OutputError]:
    """Write the files that were asked for; what cannot be written comes back as errors, when all others are."""
    from prunetaylor.core.errors import OutputError
    from prunetaylor.core.files import write_text
    from prunetaylor.report.ci.junit import to_junit
    from prunetaylor.report.ci.markdown import to_markdown

    failed = []
    for file, render in ((junit, to_junit), (markdown, to_markdown)):
        if file is None:
            continue
        try:
            write_text(file, render(verdict), named=True)
        except OutputError as err:
            failed.append(err)
    return failed
