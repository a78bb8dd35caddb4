"""``prunetaylor score``: how far a network can be pruned, before anything is."""

from __future__ import annotations

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
    memory_option,
    method_option,
    read_configuration,
    seed_option,
    trust_option,
    trusted,
    verbosity_options,
    words,
)
from .terminal.console import say, say_json


@click.command(
    short_help="Predict what pruning would cost at every sparsity.",
    epilog=examples(
        "prunetaylor score model.pt",
        "prunetaylor score net.pt --arch net.py:resnet20 --data arrays:cifar.npz",
    ),
)
@words("MODEL [KEY=VALUE]...")
@config_option
@arch_option
@data_option
@method_option
@device_option
@seed_option
@memory_option
@json_option
@trust_option
@verbosity_options
@nproc_option
@click.pass_obj
@together
def score(
    state: State,
    words: tuple[str, ...],
    file: Path | None,
    arch: str | None,
    data: str | None,
    method: str | None,
    device: str | None,
    seed: str | None,
    memory: str | None,
    as_json: bool,
    trust_code: bool,
) -> None:
    """Show how far a network can be pruned: the error's predicted change at every sparsity, and each layer's share.

    The Taylor model is fitted once, to the samples that `prunetaylor prune` would draw, and cached for it. Each
    sparsity is one step from the dense weights, predicted and measured on samples that were not fitted; predictions
    that are off are marked. Pruning in stages with repair costs less than such a step. Nothing is pruned or written but
    the cache of fits (cache.dir).

    MODEL is a checkpoint or the folder of a run; KEY=VALUE sets any key that `prunetaylor config` prints. With -q it
    prints the sparsity up to which predictions hold, and nothing else.
    """
    flags = {
        "model.arch": arch,
        "data.source": data,
        "prune.method": method,
        "device": device,
        "seed": seed,
        "memory": memory,
    }
    resolved = read_configuration(words, file, flags)
    from prunetaylor.pipeline.job import open_job
    from prunetaylor.pipeline.score import run

    from .terminal.progress import Logged, reporter

    with reporter(state) as shown:
        progress = Logged(shown, None)
        job = open_job(resolved.config, trust=trusted(resolved, trust_code), progress=progress)
        scores = run(job, progress)
    if not state.main:
        return
    if as_json:
        from prunetaylor.report.json_report import scores_to_json

        say_json(scores_to_json(scores, resolved.config.model_dump()))
        return
    from .terminal.console import console

    if state.verbosity < 0:
        say("none" if scores.trusted_to is None else f"{100 * scores.trusted_to:g}%")
        return
    from prunetaylor.report.terminal.scores import print_scores

    print_scores(console(), scores, verbose=state.verbosity > 0, known_choices=progress.notes)
