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
from prunetaylor.core.config.paths import rooted
from prunetaylor.core.config.resolve import Resolved, from_values, override
from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Logged, Progress, Silent
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.core.results.scores import Scores
from prunetaylor.data.load import from_python, split_spec
from prunetaylor.data.samples import Samples
from prunetaylor.network.checkpoint.load import load
from prunetaylor.network.state import copy_module, unwrapped
from prunetaylor.pipeline import run
from prunetaylor.pipeline import score as scoring
from prunetaylor.pipeline.checks.settings import check_from_python
from prunetaylor.pipeline.files.outputs import write_page, write_run
from prunetaylor.pipeline.files.run_folder import MODEL_FILE, RunFolder
from prunetaylor.pipeline.job import Job, make_job, open_job
from prunetaylor.pipeline.planning.method import choose_device
from prunetaylor.report.json_report import to_json
from prunetaylor.report.summary import notebook, outcome_lines
from prunetaylor.report.terminal.progress_bar import Bar, in_notebook
from prunetaylor.taylor.outputs import clear_output_form

__all__ = ["Result", "prune", "score"]


@dataclass(frozen=True, repr=False, kw_only=True)
class Result(PruneResult):
    """A finished run that shows itself, as a few lines or in a notebook, and can be saved as a run's folder."""

    resolved: Resolved  # the configuration
    metadata: dict[str, Any]  # of a written network: arch, args and data, as far as they are known
    extra: dict[str, Any]  # further metadata: the loss, and a nameless network's class
    events: list[dict[str, Any]] = field(default_factory=list)  # for log.jsonl
    saved: list[Path] = field(default_factory=list)  # the folders that ``save`` wrote

    def __repr__(self) -> str:
        status = f"saved in {self.saved[-1]}" if self.saved else "not saved; outcome.save(folder) writes a run folder"
        return "\n  ".join([*outcome_lines(self), status])

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
            folder: this is created; it must be new or empty.
            arch: torchvision:NAME, timm:NAME, hf:DIR, FILE.py:FACTORY or package.module:FACTORY. It is called
                once as a test.
            args: keyword arguments of the factory, as plain JSON values.
            data: the command line's --data, such as arrays:FILE.npz or FILE.py:FUNCTION.
            force: replace a run in ``folder``.

        Returns:
            The folder's absolute path.

        Raises:
            OutputError: the folder cannot be written, or is not empty.
            UsageError, CheckpointRefused: ``arch`` gives another network than this one. Nothing is written then.
        """
        metadata, resolved = self._name(arch, args, data)
        run_folder = RunFolder.create(Path(folder), "", force=force)
        with run_folder:
            for event in self.events:
                run_folder.log(**event)
            _, document = write_run(run_folder, resolved, self, metadata, self.extra)
            if arch is not None:
                load(run_folder.stage(MODEL_FILE), arch=arch, args=args)
            write_page(run_folder, document)
            run_folder.commit()
        self.saved.append(run_folder.path.resolve())
        return run_folder.path.resolve()

    def _name(
        self, arch: str | None, args: Mapping[str, Any] | None, data: str | None
    ) -> tuple[dict[str, Any], Resolved]:
        """Return the metadata and the configuration with these names of the network and the samples."""
        if args is not None and arch is None:
            raise UsageError("args need the name of a factory", "pass arch= too")
        metadata, settings = dict(self.metadata), dict[str, Any]()
        if arch is not None:
            metadata |= {"arch": rooted("model.arch", arch), "args": dict(args or {})}
            settings |= {"model.arch": metadata["arch"], "model.args": metadata["args"]}
        if data is not None:
            split_spec(data)
            metadata["data"] = {**metadata["data"], "source": rooted("data.source", data)}
            settings["data.source"] = metadata["data"]["source"]
        return metadata, override(self.resolved, {key: (value, "argument of save") for key, value in settings.items()})


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
        model: a network that takes a batch and returns (N, K) outputs; or the path of a checkpoint, which is
            opened as by the command line, with ``arch`` and ``data`` in place of ``train`` and ``test``.
        train: calibrates and fine-tunes: a map-style data set of (input, target), a DataLoader of one (its collate_fn
            is used), or a pair (x, y) of tensors or arrays, x (N, C, H, W) or (N, F), float or uint8 (pixels are scaled
            to [0, 1]), y (N,) class ids or (N, K) values. An input may be a tuple of positional arguments or a
            dictionary of keyword arguments, whose entry labels, label, target, targets, y, or the one that the setting
            ``data.target`` names, holds the target. Inputs alone suffice: the dense network's outputs then stand for
            the targets.
        test: measures the drop.  [default: the training samples]
        sparsity: fraction of the prunable weights to remove, in [0, 1).  [default: 0.5]
        method: how weights are scored: "exact_obs", "obs", "magnitude"...; `prunetaylor config prune.method` lists all.
            [default: "auto"]
        epochs: passes of fine-tuning over ``train``; 0 or another number gives the same run on every machine.
            [default: 3 on a CUDA GPU, 0 elsewhere]
        validation: chooses between epochs.  [default: a share of ``train``, which is then not trained on]
        normalize: "imagenet", "cifar10", "mnist", {"mean": [...], "std": [...]}, or None for normalized inputs.
        augment: random changes of images while fine-tuning: "none", "flip", "crop-flip", or torchvision transforms (one
            or a list; objects, or names as in ``data.augment``), applied to each image separately.
        arch, data: with a checkpoint's path: the command line's --arch and --data.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".  [default: the first available of cuda, mps, cpu]
        seed: random seed.  [default: 0]
        memory: maximum memory of the run: "3GiB", or bytes.  [default: the free memory]
        trust_code: with a checkpoint's path: import the Python code that the checkpoint names.
        settings: any other dotted key that `prunetaylor config` prints: ``{"finetune.lr": 0.02}``.
        progress: True shows a bar on stderr, False nothing; or an object with the methods of
            ``prunetaylor.core.progress.Progress``.  [default: a bar in a notebook, nothing elsewhere]

    Returns:
        The result: ``module``, ``masks`` (by parameter name, True = keep), ``drop`` (in pp, with its 95 % interval),
        ``dense`` and ``pruned`` (metrics, parameters, FLOPs with a multiply-add as 2, bytes), ``stages``,
        ``verdict`` and ``save(folder)``. ``unfinished`` is set where training diverged before the sparsity was reached.

    Raises:
        PruneTaylorError: the run failed; it has ``cause`` and ``remedy``, and its subclass is in ``core/errors.py``.
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
    logged = Logged(shown, log)
    if isinstance(model, nn.Module):
        if arch is not None or data is not None or trust_code:
            raise UsageError(
                "arch, data and trust_code belong to a checkpoint, but model is a network",
                "omit them; outcome.save(folder, arch=..., data=...) records the names",
            )
        resolved = from_values(values)
        check_from_python(values)
        job = _job(resolved, model, _samples(resolved, train, test, validation, normalize=normalize, augment=augment))
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
        job = open_job(resolved.config, trust=trust, progress=logged)
    with _closing(shown):
        outcome = run.run(job, logged)
    clear_output_form(outcome.module)
    values = {one.name: getattr(outcome, one.name) for one in fields(outcome)}
    return Result(**values, resolved=resolved, metadata=_metadata(job), extra=_extra(job), events=log.events)


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
        model: a network that takes a batch and returns (N, K) outputs.
        train: the samples that fit the Taylor model and measure its predictions: a map-style data set of (input,
            target), a DataLoader of one, or a pair (x, y), as for ``prune``.
        method: how weights are scored.  [default: "auto"]
        normalize: "imagenet", "cifar10", "mnist", {"mean": [...], "std": [...]}, or None for normalized inputs.
        device, seed, memory: as for ``prune``.
        settings: any other dotted key that `prunetaylor config` prints: ``{"calibration.samples": 500}``.
        progress: as for ``prune``.

    Returns:
        ``levels``: a row for each sparsity with the predicted and the measured change of the mean error on held-out
        samples; ``layers``: each layer's share; ``trusted_to``: the sparsity up to which prediction and measurement
        agree.

    Raises:
        PruneTaylorError: the run failed; it has ``cause`` and ``remedy``.
    """
    options = {"prune.method": method, "device": device, "seed": seed, "memory": memory}
    resolved = from_values(_settings(settings, options))
    job = _job(resolved, model, _samples(resolved, train, None, None, normalize=normalize, augment="none"))
    shown = _display(progress)
    with _closing(shown):
        return scoring.run(job, shown)


def _display(progress: Progress | bool | None) -> Progress:
    """Return the progress of a run: a bar if that is requested, or by default in a notebook."""
    if progress is None:
        progress = in_notebook()
    if isinstance(progress, bool):
        return Bar() if progress else Silent()
    return progress


@contextmanager
def _closing(shown: Progress) -> Iterator[None]:
    """Close the bar when a run ends, so that the next output starts on a new line."""
    try:
        yield
    finally:
        if isinstance(shown, Bar):
            shown.close()


def _settings(settings: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the arguments for some of them. UsageError where both are given and differ."""
    values = dict(settings or {})
    for key, given in options.items():
        if given is not None and not same(values.setdefault(key, given), given):
            name = key.rpartition(".")[2]
            raise UsageError(
                f"{name}={given} and settings' {key}={values[key]} contradict each other", "give one of them"
            )
    return values


def _samples(resolved: Resolved, train: Any, test: Any, validation: Any, **how: Any) -> Samples:
    data = resolved.config.data
    return from_python(train, test, validation, target=data.target, collate=data.collate, **how)


def _job(resolved: Resolved, model: nn.Module, samples: Any) -> Job:
    device, chosen = choose_device(resolved.config)
    return make_job(resolved.config, copy_module(unwrapped(model)), samples, device, choices=[chosen])


def _metadata(job: Job) -> dict[str, Any]:
    """Return the metadata of the job's network and samples that a file can hold."""
    metadata = job.describe_network()
    augment = metadata["data"].get("augment")
    if callable(augment) or isinstance(augment, list):
        try:
            json.dumps(augment)
        except TypeError:  # transforms of the user's own have no name
            metadata["data"].pop("augment")
    return metadata


def _extra(job: Job) -> dict[str, Any]:
    """Return further metadata; the class of a nameless network helps to find its factory."""
    kind = type(job.network.module)
    named = {} if job.arch is not None else {"class": f"{kind.__module__}.{kind.__qualname__}"}
    return {"loss": job.config.loss, **named}


class _Events:
    """Stores a run's events until it is saved."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def log(self, event: str, **values: Any) -> None:
        self.events.append({"time": round(time.time(), 3), "event": event, **values})
