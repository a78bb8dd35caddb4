"""Network factories by name: built-in networks, torchvision, timm, and functions of the user's code."""

from __future__ import annotations

import contextlib
import inspect
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from prunetaylor.core.config.code import is_code
from prunetaylor.core.errors import PruneTaylorError, UsageError, close_match
from prunetaylor.core.requirements import install_hint
from prunetaylor.network.checkpoint.architecture.arguments import FETCHING
from prunetaylor.network.checkpoint.architecture.builtin import NETWORKS
from prunetaylor.network.state import copy_module
from prunetaylor.runtime.torchvision_import import import_torchvision, repair_imports
from prunetaylor.runtime.user_code import load_object

FORMS = "torchvision:NAME, timm:NAME, builtin:NAME, hf:DIR, FILE.py:FACTORY or package.module:FACTORY"


def known_network(spec: str) -> bool:
    """Return whether ``spec`` names a network that a file may name, because none of the file's code is run for it."""
    return spec.partition(":")[0] in ("builtin", "torchvision", "timm", "hf")


def build(spec: str, args: Mapping[str, Any]) -> nn.Module:
    """Return a network with fresh weights, without touching the global random state.

    The caller has made sure that ``spec`` is trusted.
    """
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
        hint = f"write {shlex.quote(f'{spec}:FACTORY')}" if spec.endswith(".py") else f"write {FORMS}"
        raise UsageError(f"{spec!r} names no network", hint)
    if known_network(spec) and (fetching := sorted(FETCHING & set(args))):
        raise UsageError(f"{spec} cannot take {fetching[0]!r}: the weights are the checkpoint's", "leave it out")
    return _called(spec, factory, dict(args))


def _called(spec: str, factory: Any, args: dict[str, Any]) -> nn.Module:
    if isinstance(factory, nn.Module):
        if args:
            raise UsageError(f"{spec!r} is a network, not a factory: it takes no arguments", "leave model.args out")
        return copy_module(factory)
    if not callable(factory):
        raise UsageError(
            f"{spec!r} is a {type(factory).__name__}, not a factory", "name a function returning the network"
        )
    _check_arguments(spec, factory, args)
    try:
        # The initial weights are replaced, so they must not draw from the caller's random stream.
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


def head_argument(spec: str) -> str | None:
    """Return the name of the factory's argument for the number of outputs, if it has a usual one."""
    if known_network(spec):
        return "num_classes"
    with contextlib.suppress(TypeError, ValueError, UsageError):
        taken = inspect.signature(load_object(spec)).parameters
        return next((n for n in ("num_classes", "n_classes", "classes", "num_outputs") if n in taken), None)
    return None
