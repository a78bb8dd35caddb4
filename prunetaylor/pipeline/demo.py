"""The demo: a small convolutional network is trained on the digits in seconds and written to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import OutputPlaceError, PruneTaylorError
from prunetaylor.core.progress import Progress
from prunetaylor.data.batches import Batches
from prunetaylor.data.load import load_samples
from prunetaylor.data.samples import Samples
from prunetaylor.measure.evaluate import evaluate
from prunetaylor.measure.metrics import load_metric
from prunetaylor.network.checkpoint.architecture.factory import build
from prunetaylor.network.checkpoint.read import open_file
from prunetaylor.network.checkpoint.write import write_pt
from prunetaylor.network.state import channels_last
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.pruning.training.train import train

ARCH = "builtin:digits"
EPOCHS = 15
_BATCH = 64
_MADE_BY = "prunetaylor demo"


@dataclass(frozen=True)
class Demo:
    """``top1`` in percent on ``tested`` test samples."""

    parameters: int
    top1: float
    tested: int


def make(path: Path, *, seed: int, force: bool, progress: Progress) -> Demo:
    """Train ``builtin:digits`` on the CPU and write it to ``path``, with its network and data in the metadata.

    OutputPlaceError where ``path`` is somebody else's file and ``force`` is not set, OutputError where it cannot be
    written.
    """
    check_path(path, force=force)
    samples = load_samples(DataSection(source="digits"), seed=seed)
    assert samples is not None  # the source is named
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(ARCH, {})
    _train(module, samples, generator, progress)
    top1 = _top1(module, samples)
    data = {"source": "digits", "normalize": "none", "augment": "none", "classes": samples.classes}
    write_pt(path, module, arch=ARCH, args={}, data=data, extra={"made_by": _MADE_BY, "seed": seed, "top1": top1})
    return Demo(sum(p.numel() for p in module.parameters()), top1, len(samples.test))


def check_path(path: Path, *, force: bool) -> None:
    """Raise OutputPlaceError where ``make`` would refuse to write."""
    if path.is_dir():
        raise OutputPlaceError(f"{path} is a folder", "name the file to write with -o/--output")
    if not path.parent.is_dir():
        raise OutputPlaceError(f"{path.parent} is not a folder", "make it, or name another file with -o/--output")
    if not path.exists() or force:
        return
    try:
        metadata = open_file(path).metadata
    except PruneTaylorError:
        metadata = None
    if metadata is None or metadata.extra.get("made_by") != _MADE_BY:
        raise OutputPlaceError(
            f"{path} exists, and was not made by `prunetaylor demo`",
            "name another file with -o/--output, or replace it with --force",
        )


def _train(module: nn.Module, samples: Samples, generator: torch.Generator, progress: Progress) -> None:
    batches = Batches(
        samples.train,
        samples.preprocess,
        batch_size=_BATCH,
        device="cpu",
        generator=generator,
        shuffle=True,
        drop_last=True,
    )
    options = TrainingSettings(lr=0.1, weight_decay=5e-4)
    progress.phase(f"train {ARCH} for {EPOCHS} epochs", EPOCHS * len(batches))
    states = train(
        module,
        {},
        batches,
        options=options,
        epochs=EPOCHS,
        loss=nn.functional.cross_entropy,
        device=torch.device("cpu"),
        generator=generator,
    )
    with channels_last(module):
        for state in states:
            progress.step(f"loss {state.loss:.3f}")


def _top1(module: nn.Module, samples: Samples) -> float:
    """Return the accuracy on the test samples in percent."""
    batches = Batches(samples.test, samples.preprocess, batch_size=512, device="cpu")
    return evaluate(module, batches, "classification", load_metric("top1")).metrics["top1"]
