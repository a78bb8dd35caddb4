"""A checkpoint's network: named by the user or the file, or found among torchvision's; weights loaded strictly."""

from __future__ import annotations

import contextlib
import inspect
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from prunetaylor.core.config.code import NOBODY, Trust, is_code
from prunetaylor.core.config.paths import rooted
from prunetaylor.core.config.values import dump_value
from prunetaylor.core.errors import CheckpointRefused, PruneTaylorError, UsageError, close_match
from prunetaylor.core.requirements import install_hint
from prunetaylor.core.text import neutral
from prunetaylor.network.checkpoint.architecture.arguments import FETCHING, own_arguments
from prunetaylor.network.checkpoint.architecture.builtin import NETWORKS
from prunetaylor.network.checkpoint.architecture.size_limit import built_within
from prunetaylor.network.checkpoint.architecture.torchvision_match import match
from prunetaylor.network.checkpoint.architecture.weights import fit
from prunetaylor.network.checkpoint.read import Checkpoint
from prunetaylor.network.state import copied
from prunetaylor.runtime.torchvision_import import import_torchvision, repair_imports
from prunetaylor.runtime.user_code import load_object

_FORMS = "torchvision:NAME, timm:NAME, builtin:NAME, FILE.py:FACTORY or package.module:FACTORY"
_NAME_IT = f"name the network yourself: --arch with {_FORMS}"


class Resolved(NamedTuple):
    """A network with its weights, in eval mode on the CPU; ``args`` are those it was really built with."""

    module: nn.Module
    spec: str
    args: dict[str, Any]
    reason: str  # one line: why this network


def resolve(
    spec: str | None, args: Mapping[str, Any] | None, checkpoint: Checkpoint, *, trust: Trust = NOBODY
) -> Resolved:
    """The checkpoint's network, every tensor of the file in its place.

    ``spec`` is what the user names (None: what the file says of itself, else torchvision's networks by names and
    shapes); ``args`` go to the factory, over those that the file gives for this very factory. ``trust`` is the code
    that may be imported though only the file names it.

    Raises UsageError (an unknown network, arguments that the factory does not take, code that fails) and
    CheckpointRefused (untrusted code; tensors missing, unexpected or of another shape, named).
    """
    said, args = checkpoint.metadata, args or {}
    if spec is not None:
        return _as_asked(spec, args, checkpoint, trust)
    if said is None or said.arch is None:
        return _matched(args, checkpoint)
    if not known_network(said.arch):
        _require_trusted(said.arch, checkpoint, trust)
    own = own_arguments(checkpoint, args, trust)
    try:
        return _built(said.arch, {**own, **args}, checkpoint, f"{said.arch} (from the checkpoint)")
    except UsageError as error:
        if is_code(said.arch) or args:
            raise
        raise CheckpointRefused(f"the checkpoint's own network: {error.cause}", error.remedy) from error


def _as_asked(spec: str, args: Mapping[str, Any], checkpoint: Checkpoint, trust: Trust) -> Resolved:
    """The network that the user names, with the file's own arguments only where it names the same."""
    said = checkpoint.metadata
    if said is None or said.arch is None or rooted("model.arch", said.arch) == rooted("model.arch", spec):
        own = own_arguments(checkpoint, args, trust) if said and said.arch else {}
        return _built(spec, {**own, **args}, checkpoint, f"{spec} (as asked)")
    try:
        return _built(spec, dict(args), checkpoint, f"{spec} (as asked)")
    except (UsageError, CheckpointRefused) as error:
        left = {key: value for key, value in said.args.items() if key not in args}
        if not left:
            raise
        words = shlex.join(f"model.args.{key}={dump_value(value)}" for key, value in left.items())
        raise type(error)(
            error.cause, f"{error.remedy}\nthe file was made with {said.arch}; if that is the same network, add {words}"
        ) from error


def _require_trusted(arch: str, checkpoint: Checkpoint, trust: Trust) -> None:
    if not is_code(arch):
        raise CheckpointRefused(f"{checkpoint.path} names the network {arch!r}, which does not exist", _NAME_IT)
    if not trust.covers("model.arch", arch):
        raise CheckpointRefused(
            f"{checkpoint.path} needs the code {arch!r}, and loading it would run that",
            "if you trust it, pass --trust-code (in Python arch=... or trust_code=True), "
            f"or name it: --arch {shlex.quote(arch)}",
        )


def known_network(spec: str) -> bool:
    """Whether ``spec`` names a built-in, torchvision or timm network, which a file may name; all else is code."""
    return spec.partition(":")[0] in ("builtin", "torchvision", "timm")


def build(spec: str, args: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights. The caller has settled that ``spec`` is trusted. Global random state is kept."""
    scheme, _, name = spec.partition(":")
    factory: Any
    if scheme == "builtin":
        if name not in NETWORKS:
            raise UsageError(
                f"unknown built-in network {name!r}{close_match(name, NETWORKS)}", f"known: {', '.join(NETWORKS)}"
            )
        factory = NETWORKS[name]
    elif scheme == "torchvision":
        factory = _torchvision(name)
    elif scheme == "timm":
        factory = _timm(name)
    elif is_code(spec):
        factory = load_object(spec)
    else:
        hint = f"write {shlex.quote(f'{spec}:FACTORY')}" if spec.endswith(".py") else f"write {_FORMS}"
        raise UsageError(f"{spec!r} names no network", hint)
    if known_network(spec) and (fetching := sorted(FETCHING & set(args))):
        raise UsageError(f"{spec} cannot take {fetching[0]!r}: the weights are the checkpoint's", "leave it out")
    return _called(spec, factory, dict(args))


def _matched(args: Mapping[str, Any], checkpoint: Checkpoint) -> Resolved:
    found = match(checkpoint.state, checkpoint.named)
    if not found:
        own = checkpoint.metadata.extra.get("class") if checkpoint.metadata is not None else None
        kind = f"; its class was {neutral(own)}" if isinstance(own, str) else ""
        raise UsageError(
            f"{checkpoint.path} does not name its network, and no classifier of torchvision has its "
            f"{len(checkpoint.state)} tensors' names and shapes{kind}",
            "name it with --arch FILE.py:FACTORY (in Python arch=...), where FACTORY returns the network; other forms: "
            f"{_FORMS}",
        )
    if len(found) > 1:
        raise UsageError(
            f"several networks have exactly these names and shapes: {', '.join(m.spec for m in found)}",
            f"choose one: --arch {found[0].spec}",
        )
    spec, own = found[0]
    classes = f" with num_classes={own['num_classes']}" if "num_classes" in own else ""
    reason = f"{spec}{classes} (matches the checkpoint's names and shapes)"
    return _built(spec, {**own, **args}, checkpoint, reason)


def _built(spec: str, args: dict[str, Any], checkpoint: Checkpoint, reason: str) -> Resolved:
    if args:  # they come from a file, perhaps
        module = built_within(lambda: build(spec, args), checkpoint.state, spec, args, known=known_network(spec))
    else:
        module = build(spec, args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, checkpoint, spec=spec, head_argument=_head_argument(spec))
    module.eval()
    return Resolved(module, spec, args, reason)


def _called(spec: str, factory: Any, args: dict[str, Any]) -> nn.Module:
    if isinstance(factory, nn.Module):
        if args:
            raise UsageError(f"{spec!r} is a network, not a factory: it takes no arguments", "leave model.args out")
        return copied(factory)
    if not callable(factory):
        raise UsageError(
            f"{spec!r} is a {type(factory).__name__}, not a factory", "name a function returning the network"
        )
    _check_arguments(spec, factory, args)
    try:
        # The initial weights are thrown away: they draw nothing from the caller's random stream.
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            if known_network(spec):
                warnings.simplefilter("ignore")
            module = factory(**args)
    except PruneTaylorError:
        raise
    except Exception as error:
        shown = ", ".join(f"{k}={v!r}" for k, v in args.items())
        raise UsageError(
            f"{spec} called with ({shown}) raised {type(error).__name__}: {error}",
            "see model.args, and the factory itself",
        ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{spec!r} returned a {type(module).__name__}, not an nn.Module", "return the network itself")
    return module.cpu()


def _check_arguments(spec: str, factory: Callable[..., Any], args: Mapping[str, Any]) -> None:
    try:
        taken = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return  # a builtin without a signature: the call itself will tell
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        return
    names = [p.name for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in args:
        if name not in names:
            listed = f"it takes: {', '.join(names)}" if names else "it takes none"
            raise UsageError(f"{spec} has no argument {name!r}{close_match(name, names)}", listed)
    needed = [p.name for p in taken if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if missing := [n for n in needed if n not in args]:
        raise UsageError(f"{spec} needs the argument {missing[0]!r}", f"set model.args.{missing[0]}=VALUE")


def _torchvision(name: str) -> Callable[..., nn.Module]:
    models = import_torchvision().models
    known = models.list_models()
    if name not in known:
        raise UsageError(f"torchvision has no network {name!r}{close_match(name, known)}", "see torchvision.models")
    builder = models.get_model_builder(name)
    own: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        own["weights_backbone"] = None  # its default would download
    if name in ("googlenet", "inception_v3"):
        own["init_weights"] = False  # minutes of truncated normals, for weights that are replaced

    def factory(**args: Any) -> nn.Module:
        module: nn.Module = builder(**{**own, **args})
        return module

    return factory


def _timm(name: str) -> Callable[..., nn.Module]:
    repair_imports()  # timm imports torchvision
    try:
        import timm
    except ImportError as error:
        raise UsageError("timm is not installed", install_hint("timm")) from error
    if not timm.is_model(name):  # excludes "hf-hub:" and "local-dir:", which would fetch or open a configuration
        raise UsageError(
            f"timm has no network {name!r}{close_match(name, timm.list_models())}", "see timm.list_models()"
        )

    def factory(**args: Any) -> nn.Module:
        module: nn.Module = timm.create_model(name, pretrained=False, **args)
        return module

    return factory


def _head_argument(spec: str) -> str | None:
    """The argument that sets the number of outputs, if the factory has the usual one."""
    if known_network(spec):
        return "num_classes"
    with contextlib.suppress(TypeError, ValueError, UsageError):
        taken = inspect.signature(load_object(spec)).parameters
        return next((n for n in ("num_classes", "n_classes", "classes", "num_outputs") if n in taken), None)
    return None
