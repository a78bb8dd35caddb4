"""How a package that is missing is installed, by what this package requires of it."""

from __future__ import annotations

import importlib.metadata
import re
import shlex


def install_hint(package: str) -> str:
    """The command that installs ``package`` (the name of its distribution) beside this one.

    The package itself is named, with the version that the extra of this package asks for, and not the extra: pip looks
    for ``prunetaylor[ray]`` on an index, where it need not be, as it does not look at what is installed.
    """
    try:
        required = importlib.metadata.requires("prunetaylor") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        required = []
    plain = [line.partition(";")[0].strip() for line in required]
    found = [line for line in plain if _name(line) == _name(package)]
    return f"pip install {shlex.quote(found[0] if found else package)}"


def _name(requirement: str) -> str:
    """A distribution's name in its normal form."""
    name = re.match(r"[\w.-]*", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""
