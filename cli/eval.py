"""``prunetaylor eval``: measure one network."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .support.multiprocess import nproc_option, together
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


@click.command(
    "eval",
    short_help="Measure a network on its test samples.",
    epilog=examples(
        "prunetaylor eval model.pt",
        "prunetaylor eval net.pt --arch net.py:resnet20 --data arrays:cifar.npz",
        "prunetaylor eval runs/model-1 --json",
    ),
)
@words("MODEL [KEY=VALUE]...")
@config_option
@arch_option
@data_option
@device_option
@seed_option
@json_option
@trust_option
@verbosity_options
@nproc_option
@click.pass_obj
@together
def evaluate(
    state: State,
    words: tuple[str, ...],
    file: Path | None,
    arch: str | None,
    data: str | None,
    device: str | None,
    seed: str | None,
    as_json: bool,
    trust_code: bool,
) -> None:
    """Measure a network on its test samples: top-1 in percent, loss, parameters, FLOPs (a multiply-add is 2), bytes.

    MODEL is a checkpoint or the folder of a run; KEY=VALUE sets any key that `prunetaylor config` prints.
    """
    flags = {"model.arch": arch, "data.source": data, "device": device, "seed": seed}
    resolved = read_configuration(words, file, flags)
    from prunetaylor.pipeline.job import open_job
    from prunetaylor.pipeline.measurement import measure

    from .terminal.progress import Logged, reporter

    start = time.monotonic()
    with reporter(state) as shown:
        progress = Logged(shown, None)
        job = open_job(resolved.config, trust=trusted(resolved, trust_code), progress=progress)
        side = measure(job, progress)
    if not state.main:
        return
    if as_json:
        from prunetaylor.report.json_report import side_to_json

        found = side_to_json(side, resolved.config.metric, time.monotonic() - start, str(job.device), job.warnings)
        say_json(found)
        return
    from prunetaylor.report.terminal.run import print_side

    from .terminal.console import console

    print_side(console(), side, job.warnings)
