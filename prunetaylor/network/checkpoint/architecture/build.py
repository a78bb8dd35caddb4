"""A checkpoint's network: named by the user or the file, or matched among torchvision's, with its weights loaded."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from prunetaylor.core.config.code import NOBODY, Trust, is_code
from prunetaylor.core.config.paths import rooted
from prunetaylor.core.config.values import dump_value
from prunetaylor.core.errors import CheckpointRefused, UsageError
from prunetaylor.core.text import neutral
from prunetaylor.network.checkpoint.architecture.arguments import own_arguments
from prunetaylor.network.checkpoint.architecture.factory import FORMS, build, head_argument, known_network
from prunetaylor.network.checkpoint.architecture.size_limit import build_bounded
from prunetaylor.network.checkpoint.architecture.torchvision_match import match
from prunetaylor.network.checkpoint.architecture.weights import load_weights
from prunetaylor.network.checkpoint.huggingface.pretrained import SCHEME, load_pretrained
from prunetaylor.network.checkpoint.read import Checkpoint

_NAME_IT = f"name the network yourself: --arch with {FORMS}"


class BuiltNetwork(NamedTuple):
    """A network with its weights, in eval mode on the CPU; ``args`` are those it was built with."""

    module: nn.Module
    spec: str
    args: dict[str, Any]
    reason: str  # one line: why this network


def build_network(
    spec: str | None, args: Mapping[str, Any] | None, checkpoint: Checkpoint, *, trust: Trust = NOBODY
) -> BuiltNetwork:
    """Return the checkpoint's network with every tensor of the file in its place.

    ``spec`` is the network that the user names (None: the one in the file's metadata, else the one that the file's
    folder describes, else torchvision's match by names and shapes). ``args`` go to the factory and override those that
    the file gives for the same factory. ``trust`` is the code that may be imported although only the file names it.

    Raises UsageError (an unknown network, arguments that the factory does not accept, code that fails) and
    CheckpointRefused (untrusted code; tensors missing, unexpected or of another shape, which it names).
    """
    metadata, args = checkpoint.metadata, args or {}
    if spec is not None:
        return _as_named(spec, args, checkpoint, trust)
    if metadata is None or metadata.arch is None:
        if checkpoint.folder is not None:
            return _build_and_fill(f"{SCHEME}:{checkpoint.folder}", dict(args), checkpoint, "the folder's own")
        return _matched(args, checkpoint)
    if not known_network(metadata.arch):
        _require_trusted(metadata.arch, checkpoint, trust)
    own = own_arguments(checkpoint, args, trust)
    try:
        return _build_and_fill(metadata.arch, {**own, **args}, checkpoint, f"{metadata.arch} (from the checkpoint)")
    except UsageError as error:
        if is_code(metadata.arch) or args:
            raise
        raise CheckpointRefused(f"the checkpoint's own network: {error.cause}", error.remedy) from error


def _as_named(spec: str, args: Mapping[str, Any], checkpoint: Checkpoint, trust: Trust) -> BuiltNetwork:
    """Build the network that the user names, with the file's own arguments only if it names the same network."""
    metadata = checkpoint.metadata
    if metadata is None or metadata.arch is None or rooted("model.arch", metadata.arch) == rooted("model.arch", spec):
        own = own_arguments(checkpoint, args, trust) if metadata and metadata.arch else {}
        return _build_and_fill(spec, {**own, **args}, checkpoint, f"{spec} (as asked)")
    try:
        return _build_and_fill(spec, dict(args), checkpoint, f"{spec} (as asked)")
    except (UsageError, CheckpointRefused) as error:
        omitted = {key: value for key, value in metadata.args.items() if key not in args}
        if not omitted:
            raise
        words = shlex.join(f"model.args.{key}={dump_value(value)}" for key, value in omitted.items())
        raise type(error)(
            error.cause,
            f"{error.remedy}\nthe file was made with {metadata.arch}; if that is the same network, add {words}",
        ) from error


def _require_trusted(arch: str, checkpoint: Checkpoint, trust: Trust) -> None:
    if not is_code(arch):
        raise CheckpointRefused(f"{checkpoint.path} names the network {arch!r}, which does not exist", _NAME_IT)
    if not trust.covers("model.arch", arch):
        raise CheckpointRefused(
            f"{checkpoint.path} needs code: {arch!r}; loading it would run that",
            "if you trust the code, pass --trust-code (in Python arch=... or trust_code=True), "
            f"or name it: --arch {shlex.quote(arch)}",
        )


def _matched(args: Mapping[str, Any], checkpoint: Checkpoint) -> BuiltNetwork:
    matches = match(checkpoint.state, checkpoint.named)
    if not matches:
        own = checkpoint.metadata.extra.get("class") if checkpoint.metadata is not None else None
        kind = f"; its class was {neutral(own)}" if isinstance(own, str) else ""
        raise UsageError(
            f"{checkpoint.path} does not name its network, and no classifier of torchvision has its "
            f"{len(checkpoint.state)} tensors' names and shapes{kind}",
            "name it with --arch FILE.py:FACTORY (in Python arch=...), where FACTORY returns the network; other forms: "
            f"{FORMS}",
        )
    if len(matches) > 1:
        raise UsageError(
            f"several networks have exactly these names and shapes: {', '.join(m.spec for m in matches)}",
            f"choose one: --arch {matches[0].spec}",
        )
    spec, own = matches[0]
    classes = f" with num_classes={own['num_classes']}" if "num_classes" in own else ""
    reason = f"{spec}{classes} (matches the checkpoint's names and shapes)"
    return _build_and_fill(spec, {**own, **args}, checkpoint, reason)


def _build_and_fill(spec: str, args: dict[str, Any], checkpoint: Checkpoint, reason: str) -> BuiltNetwork:
    if spec.partition(":")[0] == SCHEME:
        module, text = load_pretrained(spec, args, checkpoint.state)
        return BuiltNetwork(module, spec, args, f"{text} ({reason})")
    if args:  # they come from a file, perhaps
        module = build_bounded(lambda: build(spec, args), checkpoint.state, spec, args, known=known_network(spec))
    else:
        module = build(spec, args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_weights(module, checkpoint, spec=spec, head_argument=head_argument(spec))
    module.eval()
    return BuiltNetwork(module, spec, args, reason)
