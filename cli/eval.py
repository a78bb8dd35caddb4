"""The command ``prunetaylor eval``: it measures one network."""

from __future__ import annotations

import time

from .support.network_command import Request, network_command
from .support.options import State
from .terminal.console import say_json


@network_command(
    "eval",
    summary="Measure a network on its test samples.",
    example=(
        "prunetaylor eval model.pt",
        "prunetaylor eval net.pt --arch net.py:resnet20 --data arrays:cifar.npz",
        "prunetaylor eval runs/model-1 --json",
    ),
)
def evaluate(state: State, request: Request) -> None:
    """Measure a network on its test samples: top-1 in percent, loss, parameters, FLOPs (a multiply-add is 2), bytes.

    MODEL is a checkpoint or the folder of a run; KEY=VALUE sets any key that `prunetaylor config` prints.
    """
    from prunetaylor.core.progress import Logged
    from prunetaylor.pipeline.job import open_job
    from prunetaylor.pipeline.measurement import measure

    from .terminal.progress import reporter

    config = request.resolved.config
    start = time.monotonic()
    with reporter(state) as shown:
        progress = Logged(shown, None)
        job = open_job(config, trust=request.trust, progress=progress)
        measured = measure(job, progress)
    if not state.main:
        return
    if request.as_json:
        from prunetaylor.report.json_report import side_to_json

        seconds = time.monotonic() - start
        say_json(side_to_json(measured.stats, job.metric.description, seconds, str(job.device), measured.alerts))
        return
    from prunetaylor.report.terminal.run import print_side

    from .terminal.console import console

    print_side(console(), measured.stats)  # stderr has the warnings already
