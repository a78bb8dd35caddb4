"""The Python interface: ``prune`` and ``score``, with the command line's options as arguments of the same names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.contradictions import same
from prunetaylor.core.config.resolve import Resolved, from_values, override
from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Logged, Progress, Silent
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.core.results.scores import Scores
from prunetaylor.data.load import from_python, split_spec
from prunetaylor.network.checkpoint.load import load
from prunetaylor.network.state import copied
from prunetaylor.pipeline import run
from prunetaylor.pipeline import score as scoring
from prunetaylor.pipeline.files.outputs import write_page, write_run
from prunetaylor.pipeline.files.run_folder import MODEL_FILE, RunFolder
from prunetaylor.pipeline.job import Job, absolute, make_job, open_job
from prunetaylor.pipeline.validation import check_from_python
from prunetaylor.report.json_report import to_json
from prunetaylor.report.summary import notebook, outcome_lines
from prunetaylor.report.terminal.progress_bar import Bar, in_notebook
from prunetaylor.runtime.device import pick_device

__all__ = ["Result", "prune", "score"]


@dataclass(frozen=True, repr=False, kw_only=True)
class Result(PruneResult):
    """A finished run that shows itself, as a few lines or in a notebook, and can be saved as a run's folder."""

    resolved: Resolved  # the configuration
    identity: dict[str, Any]  # what a written network says of itself: arch, args and data, as far as they are known
    extra: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)  # what log.jsonl gets
    saved: list[Path] = field(default_factory=list)  # the folders that ``save`` wrote

    def __repr__(self) -> str:
        where = f"saved in {self.saved[-1]}" if self.saved else "not saved; outcome.save(folder) writes a run folder"
        return "\n  ".join([*outcome_lines(self), where])

    def _repr_html_(self) -> str:
        return notebook(to_json(self, {}, self.resolved.config.model_dump()))

    def save(
        self,
        folder: str | Path,
        *,
        arch: str | None = None,
        args: Mapping[str, Any] | None = None,
        data: str | None = None,
        force: bool = False,
    ) -> Path:
        """Write a run's folder, as the command line does: model.safetensors, report.json, report.html and so on.

        A network that was passed as a module has no name that a file could hold. Name its factory with ``arch``, and
        ``prunetaylor.load(folder)`` and every command build it again; without it they need ``arch=`` or ``--arch``
        (networks of torchvision are recognised by their tensors). The same holds for the samples and ``data``.

        Args:
            folder: is made; it must be new or empty.
            arch: torchvision:NAME, timm:NAME, FILE.py:FACTORY or package.module:FACTORY. It is tried out at once.
            args: keyword arguments of the factory; plain values, as JSON knows them.
            data: the command line's --data, such as arrays:FILE.npz or FILE.py:FUNCTION.
            force: replace a run that is in ``folder`` already.

        Returns:
            The folder, in full.

        Raises:
            OutputError: the folder cannot be written, or holds something else.
            UsageError, CheckpointRefused: ``arch`` gives another network than this one. Nothing is written then.
        """
        identity, resolved = self._named(arch, args, data)
        run_folder = RunFolder.create(Path(folder), "", force=force)
        with run_folder:
            for event in self.events:
                run_folder.log(**event)
            _, document = write_run(run_folder, resolved, self, identity, self.extra)
            if arch is not None:
                load(run_folder.stage(MODEL_FILE), arch=arch, args=args)
            write_page(run_folder, document)
            run_folder.commit()
        self.saved.append(run_folder.path.resolve())
        return run_folder.path.resolve()

    def _named(
        self, arch: str | None, args: Mapping[str, Any] | None, data: str | None
    ) -> tuple[dict[str, Any], Resolved]:
        """The network's and the samples' names, and the configuration that has them too."""
        if args is not None and arch is None:
            raise UsageError("args are those of a factory, and none is named", "pass arch= too")
        identity, said = dict(self.identity), dict[str, Any]()
        if arch is not None:
            identity |= {"arch": absolute(arch), "args": dict(args or {})}
            said |= {"model.arch": identity["arch"], "model.args": identity["args"]}
        if data is not None:
            split_spec(data)
            identity["data"] = {**identity["data"], "source": absolute(data)}
            said["data.source"] = identity["data"]["source"]
        return identity, override(self.resolved, {key: (value, "argument of save") for key, value in said.items()})


def prune(
    model: nn.Module | str | Path,
    train: Any = None,
    test: Any = None,
    *,
    sparsity: float | None = None,
    method: str | None = None,
    epochs: int | None = None,
    validation: Any = None,
    normalize: str | Mapping[str, Any] | None = None,
    augment: str | Sequence[Any] | Callable[[Tensor], Tensor] = "none",
    arch: str | None = None,
    data: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    memory: str | int | None = None,
    trust_code: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
) -> Result:
    """Prune a trained network, repair it, fine-tune it if asked, and measure it, as ``prunetaylor prune`` does.

    ``model`` stays as it is; the pruned copy is ``outcome.module``, with zeros in place of what was removed::

        outcome = prunetaylor.prune(net, (x_train, y_train), (x_test, y_test), sparsity=0.8, epochs=0)
        outcome                               # a few lines: verdict, accuracy before and after, sparsity
        outcome.drop.value                    # accuracy lost, in percentage points
        outcome.save("runs/mine", arch="net.py:make")

    Args:
        model: a network that takes a batch (N, ...) and returns (N, K) outputs; or the path of a checkpoint, which is
            opened as by the command line, with ``arch`` and ``data`` in place of ``train`` and ``test``.
        train: calibrates and fine-tunes: a map-style data set of (input, target), a DataLoader of one, or a pair (x, y)
            of tensors or arrays, x (N, C, H, W) or (N, F), float or uint8 (scaled to [0, 1]), y (N,) class ids or
            (N, K) values. Inputs alone will do: the dense network then answers for them.
        test: measures the drop; the training samples where it is not given.
        sparsity: fraction of the prunable weights to remove, in [0, 1).  [default: 0.5]
        method: how weights are scored: "exact_obs", "obs", "magnitude"...; `prunetaylor config prune.method` lists all.
            [default: "auto"]
        epochs: passes of fine-tuning over ``train``; 0 or another number gives the same run on every machine.
            [default: 3 on a CUDA GPU, 0 elsewhere]
        validation: chooses between epochs; else a share of ``train`` is kept out for that.
        normalize: "imagenet", "cifar10", "mnist", {"mean": [...], "std": [...]}, or None for inputs that are ready.
        augment: random changes of images while fine-tuning: "none", "flip", "crop-flip", or torchvision transforms, by
            name as in ``data.augment`` or themselves, one or a list, applied to each image by itself.
        arch, data: with a checkpoint's path: the command line's --arch and --data.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".  [default: the first that is available of cuda, mps, cpu]
        seed: random seed.  [default: 0]
        memory: the most memory that the run may use: "3GiB", or bytes.  [default: what is free]
        trust_code: with a checkpoint's path: import the Python code that the checkpoint names.
        settings: any other key that `prunetaylor config` prints, dotted: ``{"finetune.lr": 0.02}``.
        progress: True shows a bar on stderr, False nothing; or what is told what the run does, see
            ``prunetaylor.core.progress.Progress``.  [default: a bar in a notebook, nothing elsewhere]

    Returns:
        What was found, with units at each field: ``module``, ``masks`` (by parameter name, True = keep), ``drop``
        (percentage points, with its 95 % interval), ``dense`` and ``pruned`` (metrics, parameters, FLOPs with a
        multiply-add as 2, bytes), ``stages``, ``verdict``, ``save(folder)``. Where training diverged before the
        sparsity was reached, ``unfinished`` says so.

    Raises:
        PruneTaylorError: with ``cause`` and ``remedy``; its subclasses in ``core/errors.py`` tell what went wrong.
    """
    values = _settings(
        settings,
        {
            "prune.sparsity": sparsity,
            "prune.method": method,
            "finetune.epochs": epochs,
            "device": device,
            "seed": seed,
            "memory": memory,
        },
    )
    log = _Events()
    shown = _display(progress)
    told = Logged(shown, log)
    if isinstance(model, nn.Module):
        if arch is not None or data is not None or trust_code:
            raise UsageError(
                "arch, data and trust_code belong to a checkpoint, and model is a network already",
                "leave them out; outcome.save(folder, arch=..., data=...) records the names",
            )
        resolved = from_values(values)
        check_from_python(values)
        job = _job(resolved, model, from_python(train, test, validation, normalize=normalize, augment=augment))
    else:
        if any(given is not None for given in (train, test, validation, normalize)) or augment != "none":
            raise UsageError(
                "with a checkpoint's path, samples are named by data=, as on the command line",
                "pass data=SPEC; or pass the network itself, prunetaylor.load(path), with samples of your own",
            )
        named = {"model.checkpoint": str(model), "model.arch": arch, "data.source": data}
        check_from_python(values, named=True)
        resolved = from_values(_settings(values, named))
        trust = Trust.of(resolved.config.model_dump(), everything=trust_code)
        job = open_job(resolved.config, trust=trust, progress=told)
    with _ended(shown):
        outcome = run.run(job, told)
    found = {one.name: getattr(outcome, one.name) for one in fields(outcome)}
    return Result(**found, resolved=resolved, identity=_identity(job), extra=_extra(job), events=log.events)


def score(
    model: nn.Module,
    train: Any,
    *,
    method: str | None = None,
    normalize: str | Mapping[str, Any] | None = None,
    device: str | None = None,
    seed: int | None = None,
    memory: str | int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
) -> Scores:
    """Predict what pruning would cost at each sparsity, as ``prunetaylor score`` does; ``model`` stays as it is.

    Args:
        model: a network that takes a batch (N, ...) and returns (N, K) outputs.
        train: what the Taylor model is fitted to, and measured on: a map-style data set of (input, target), a
            DataLoader of one, or a pair (x, y), as for ``prune``.
        method: how weights are scored.  [default: "auto"]
        normalize: "imagenet", "cifar10", "mnist", {"mean": [...], "std": [...]}, or None for inputs that are ready.
        device, seed, memory: as for ``prune``.
        settings: any other key that `prunetaylor config` prints, dotted: ``{"calibration.samples": 500}``.
        progress: as for ``prune``.

    Returns:
        ``levels``: a row for each sparsity with the predicted and the measured change of the mean error on held-out
        samples; ``layers``: each layer's share; ``trusted_to``: the sparsity up to which prediction and measurement
        agree.

    Raises:
        PruneTaylorError: with ``cause`` and ``remedy``.
    """
    options = {"prune.method": method, "device": device, "seed": seed, "memory": memory}
    resolved = from_values(_settings(settings, options))
    job = _job(resolved, model, from_python(train, None, None, normalize=normalize, augment="none"))
    shown = _display(progress)
    with _ended(shown):
        return scoring.run(job, shown)


def _display(progress: Progress | bool | None) -> Progress:
    """Whoever shows a run: a bar where that is asked for, or nobody said and a notebook runs this."""
    if progress is None:
        progress = in_notebook()
    if isinstance(progress, bool):
        return Bar() if progress else Silent()
    return progress


@contextmanager
def _ended(shown: Progress) -> Iterator[None]:
    """However a run ends, what is printed next starts on a line of its own."""
    try:
        yield
    finally:
        if isinstance(shown, Bar):
            shown.close()


def _settings(settings: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the arguments that stand for some of them. UsageError where both are given and differ."""
    values = dict(settings or {})
    for key, given in options.items():
        if given is not None and not same(values.setdefault(key, given), given):
            name = key.rpartition(".")[2]
            raise UsageError(
                f"{name}={given} and settings' {key}={values[key]} contradict each other", "give one of them"
            )
    return values


def _job(resolved: Resolved, model: nn.Module, samples: Any) -> Job:
    device, reason = pick_device(resolved.config.device)
    return make_job(resolved.config, copied(model), samples, device, choices=[f"device: {device} ({reason})"])


def _identity(job: Job) -> dict[str, Any]:
    """Return what a file can hold of the job's network and samples."""
    found = job.identity()
    if callable(found["data"].get("augment")) or isinstance(found["data"].get("augment"), list):
        try:
            json.dumps(found["data"]["augment"])
        except TypeError:  # transforms of the user's own, which have no name
            found["data"].pop("augment")
    return found


def _extra(job: Job) -> dict[str, Any]:
    """Return what a file keeps besides; a nameless network's class helps whoever looks for its factory."""
    kind = type(job.network.module)
    named = {} if job.arch is not None else {"class": f"{kind.__module__}.{kind.__qualname__}"}
    return {"loss": job.config.loss, **named}


class _Events:
    """Keeps a run's events until it is saved."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def log(self, event: str, **values: Any) -> None:
        self.events.append({"time": round(time.time(), 3), "event": event, **values})
