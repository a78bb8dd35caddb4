"""The command ``prunetaylor score``: it predicts how far a network can be pruned."""

from __future__ import annotations

from .support.network_command import Request, network_command
from .support.options import State, memory_option, method_option
from .terminal.console import say, say_json


@network_command(
    "score",
    summary="Predict what pruning would cost at every sparsity.",
    example=(
        "prunetaylor score model.pt",
        "prunetaylor score net.pt --arch net.py:resnet20 --data arrays:cifar.npz",
    ),
    options=(method_option, memory_option),
)
def score(state: State, request: Request) -> None:
    """Show how far a network can be pruned: the error's predicted change at every sparsity, and each layer's share.

    The Taylor model is fitted once, to the samples that `prunetaylor prune` would draw, and cached for it. Each
    sparsity is one step from the dense weights, predicted and measured on samples that the fit did not see; wrong
    predictions are marked. Pruning in stages with repair costs less than such a step. The command writes nothing but
    the cache of fits (cache.dir).

    MODEL is a checkpoint or the folder of a run; KEY=VALUE sets any key that `prunetaylor config` prints. With -q it
    prints only the sparsity up to which predictions hold.
    """
    from prunetaylor.core.progress import Logged
    from prunetaylor.pipeline.job import open_job
    from prunetaylor.pipeline.score import run

    from .terminal.progress import reporter

    config = request.resolved.config
    with reporter(state) as shown:
        progress = Logged(shown, None)
        job = open_job(config, trust=request.trust, progress=progress)
        scores = run(job, progress)
    if not state.main:
        return
    if request.as_json:
        from prunetaylor.report.json_report import scores_to_json

        say_json(scores_to_json(scores, config.model_dump()))
        return
    from .terminal.console import console

    if state.verbosity < 0:
        say("none" if scores.trusted_to is None else f"{100 * scores.trusted_to:g}%")
        return
    from prunetaylor.report.terminal.scores import print_scores

    print_scores(console(), scores, verbose=state.verbosity > 0, known_choices=progress.notes)
