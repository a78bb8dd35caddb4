"""Samples are fitted to the network: the type of their numbers, bytes as pixels or ids, an image's channels and size.

The network itself shows what it takes: one sample is passed through it, as it comes and then in the ways that users
convert images, and the first that works is chosen. What fits as it comes is never changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.results.choice import Choice
from prunetaylor.data.datasets import TARGET_NAMES
from prunetaylor.data.preprocess import Preprocess
from prunetaylor.data.samples import Inputs, Samples, WithTargetArgument
from prunetaylor.network.precision import compute_in_float32, convert
from prunetaylor.network.state import evaluating
from prunetaylor.taylor.passes import InputHook, compute_outputs, hooked

SIDES = (28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 299, 320, 384, 512)
"""The sides that networks for images are usually built for."""
CHANNELS = (3, 1)
"""The channels that networks for images usually have: colours, or shades of grey."""


@dataclass(frozen=True)
class FittedInputs:
    """The samples with the preprocessing that fits the network, and the types that its numbers had."""

    samples: Samples
    types: dict[str, torch.dtype]
    choices: tuple[Choice[object], ...] = ()


def fit_inputs(cfg: DataSection, module: nn.Module, samples: Samples, device: torch.device) -> FittedInputs:
    """Find the preprocessing that fits the network, which is converted to float32 where it computes in 16 bits.

    Nothing is converted for a network that takes no such samples in any way: whoever runs it says why.
    """
    raw = samples.test.fetch([0])[0].to(device)
    preprocess = replace(samples.preprocess, dtype=_computed_type(module))
    types = _widen(module, raw, preprocess)
    choices: list[Choice[object]] = []
    if types:
        names = " and ".join(sorted({str(one).removeprefix("torch.") for one in types.values()}))
        reason = f"the weights are {names}, and are given back so"
        choices.append(Choice("precision", "float32", reason, f"precision: float32; {reason}"))
    if _are_ids(module, raw, preprocess):
        preprocess = replace(preprocess, pixels=False)
        reason = "the network takes whole numbers"
        choices.append(Choice("data.pixels", False, reason, f"inputs: bytes are not scaled, as {reason}"))
    preprocess, converted = _convert_images(cfg, module, raw, preprocess)
    samples = replace(samples, preprocess=preprocess)
    if (name := _target_argument(cfg, module, raw, samples, device)) is not None:
        samples = _with_target_argument(samples, name)
        reason = "the network does not run without them"
        choices.append(Choice("data.target", name, reason, f"targets: {name} is an argument too, as {reason}"))
    return FittedInputs(samples, types, (*choices, *converted))


def _target_argument(
    cfg: DataSection, module: nn.Module, raw: Inputs, samples: Samples, device: torch.device
) -> str | None:
    """Return the keyword argument that takes the targets, where a network does not run without, as T5 in training."""
    labelled = all(split.labelled for split in samples.splits)
    if not isinstance(raw.tree, dict) or not labelled or _runs(module, raw, samples.preprocess):
        return None
    taken = inspect.signature(module.forward).parameters
    for name in TARGET_NAMES if cfg.target is None else (cfg.target,):
        if name in taken and name not in raw.tree:
            sample = WithTargetArgument(samples.test, name).fetch([0])[0].to(device)
            return name if _runs(module, sample, samples.preprocess) else None
    return None


def _with_target_argument(samples: Samples, name: str) -> Samples:
    validation = None if samples.validation is None else WithTargetArgument(samples.validation, name)
    return replace(
        samples,
        train=WithTargetArgument(samples.train, name),
        test=WithTargetArgument(samples.test, name),
        validation=validation,
    )


def _computed_type(module: nn.Module) -> torch.dtype:
    """Return the type of floating-point inputs: float64 where all weights are, else float32."""
    types = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return torch.float64 if types == {torch.float64} else torch.float32


def _widen(module: nn.Module, raw: Inputs, preprocess: Preprocess) -> dict[str, torch.dtype]:
    """Convert 16-bit weights to float32; not where the network itself converts its numbers, and so needs them."""
    runs_unchanged = _runs(module, raw, preprocess)
    types = compute_in_float32(module)
    if types and runs_unchanged and not _runs(module, raw, preprocess):
        convert(module, types)
        return {}
    return types


def _are_ids(module: nn.Module, raw: Inputs, preprocess: Preprocess) -> bool:
    """Return whether bytes are ids: the network takes them as they are, and looks them up if they have an image's form.

    Bytes of pixels fail there, as no convolution or linear layer multiplies whole numbers.
    """
    if raw.tensor is None or raw.tensor.dtype != torch.uint8 or preprocess.mean is not None:
        return False
    looked_up: list[bool] = []

    def see(_: nn.Module, x: object) -> None:
        looked_up.append(isinstance(x, Tensor) and not x.is_floating_point())

    embeddings: dict[nn.Module, InputHook] = {
        one: see for one in module.modules() if isinstance(one, nn.Embedding | nn.EmbeddingBag)
    }
    with hooked({}, embeddings):
        runs = _runs(module, raw, replace(preprocess, pixels=False))
    return runs and (raw.tensor.dim() != 4 or any(looked_up))


def _convert_images(
    cfg: DataSection, module: nn.Module, raw: Inputs, preprocess: Preprocess
) -> tuple[Preprocess, list[Choice[object]]]:
    """Return the preprocessing that gives images the channels and the size that the network takes."""
    channels = asked(cfg.channels)
    if channels is not None:
        preprocess = replace(preprocess, channels=channels)
    choices = [] if channels is None else [Choice[object]("data.channels", channels, AS_ASKED)]
    if raw.tensor is None or raw.tensor.dim() != 4 or _runs(module, raw, preprocess):
        return preprocess, choices
    _, had, height, width = raw.tensor.shape
    for attempt in _attempts(preprocess, had, min(height, width), free=channels is None):
        if _runs(module, raw, attempt):
            if attempt.channels != preprocess.channels:
                reason = f"the network takes {attempt.channels}, and the images have {had}"
                line = f"channels: images of {had} are converted to {attempt.channels}, which the network takes"
                choices.append(Choice("data.channels", attempt.channels, reason, line))
            if attempt.size is not None:
                reason = f"the network does not take images of {height} x {width}"
                line = f"size: images are resized and cropped to {attempt.size} x {attempt.size}, as {reason}"
                choices.append(Choice("data.size", attempt.size, reason, line))
            return attempt, choices
    return preprocess, choices


def _attempts(preprocess: Preprocess, channels: int, side: int, *, free: bool) -> Iterator[Preprocess]:
    """Yield conversions in the order in which they are tried: channels, then sizes from the nearest on, then both."""
    others = [replace(preprocess, channels=one) for one in CHANNELS if one != channels] if free else []
    yield from others
    nearest = sorted(SIDES, key=lambda other: max(other / side, side / other))
    for attempt in (preprocess, *others):
        yield from (replace(attempt, size=one) for one in nearest)


def _runs(module: nn.Module, raw: Inputs, preprocess: Preprocess) -> bool:
    """Return whether the network runs; its code may raise anything where it does not."""
    try:
        with evaluating(module), torch.no_grad():
            compute_outputs(module, preprocess(raw))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        return False
    return True
