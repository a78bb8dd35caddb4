"""Code that a configuration may name, and how much of it the user has named in person.

A file from somebody else may name code too: a checkpoint its network and its data, a sweep's folder anything. Such code
is imported only if the user named the very same code, or trusts everything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prunetaylor.core.config.paths import PATH_SCHEMES, rooted
from prunetaylor.core.errors import CheckpointRefused

KEYS = {
    "model.arch": "--arch",
    "data.source": "--data",
    "data.collate": "data.collate",
    "loss": "loss",
    "metric": "metric",
    "gate.metric": "gate.metric",
}
"""The settings whose value may be code, each with the option or setting that names it."""

# What stands before the colon of specs that are no code.
SCHEMES = frozenset({*PATH_SCHEMES, "builtin", "timm", "torchmetrics", "torchvision"})
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_code(spec: str) -> bool:
    """Return whether ``spec`` has the form of code: ``FILE.py:NAME`` or ``package.module:NAME``."""
    head, colon, name = spec.rpartition(":")
    if not (colon and _MODULE.fullmatch(name)) or spec.partition(":")[0] in SCHEMES:
        return False
    return head.endswith(".py") or _MODULE.fullmatch(head) is not None


def code_in(values: Iterable[tuple[str, Any]]) -> set[tuple[str, str]]:
    """Return the code among settings, (key, value), with paths in full."""
    return {(key, rooted(key, value)) for key, value in values if _names_code(key, value)}


@dataclass(frozen=True)
class Trust:
    """The code that may be imported: ``named`` has (key, spec) with paths in full; ``everything`` trusts all code."""

    named: frozenset[tuple[str, str]] = frozenset()
    everything: bool = False

    def covers(self, key: str, spec: str) -> bool:
        """Return whether the user has named this very code for this very purpose, or trusts everything."""
        return self.everything or (key, rooted(key, spec)) in self.named

    @classmethod
    def of(cls, config: Mapping[str, Any], *, everything: bool) -> Trust:
        """Return the trust of the user whose own configuration, ``Config.model_dump()``, this is."""
        return cls(frozenset(code_in(settings_of(config))), everything)

    def plain(self) -> dict[str, Any]:
        """Return the trust as JSON values, for another process."""
        return {"named": sorted(map(list, self.named)), "everything": self.everything}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Trust:
        """Return the trust that ``plain`` turned into a mapping."""
        return cls(frozenset((key, spec) for key, spec in plain["named"]), plain["everything"])

    def require(self, values: Iterable[tuple[str, Any]], where: str) -> None:
        """Raise CheckpointRefused if the settings written in ``where`` name code that is not trusted."""
        for key, spec in sorted(code_in(values)):
            if not self.covers(key, spec):
                raise CheckpointRefused(
                    f"{where} needs code: {spec!r} ({key}); using it would run that code",
                    f"if you trust the code, pass --trust-code, or name it yourself: {shlex.quote(f'{key}={spec}')}",
                )


NOBODY = Trust()


def again(code: Iterable[tuple[str, str]]) -> str:
    """Return command-line words that name ``code`` again; an empty string if there is none."""
    specs = sorted(code)
    if len({key for key, _ in specs}) < len(specs):  # a setting stands once on a command line
        return " --trust-code"
    return "".join(f" {shlex.quote(f'{key}={spec}')}" for key, spec in specs)


def settings_of(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the settings of a configuration, ``Config.model_dump()``, whose value may be code."""
    settings = []
    for key in KEYS:
        value: Any = config
        for part in key.split("."):
            value = value[part]
        settings.append((key, value))
    return settings


def _names_code(key: str, value: Any) -> bool:
    return key in KEYS and isinstance(value, str) and is_code(value.removeprefix("code:"))
