"""The installation commands for optional packages, with the versions that this package requires."""

from __future__ import annotations

import importlib.metadata
import re
import shlex


def install_hint(package: str) -> str:
    """Return the pip command that installs the distribution ``package`` beside this one.

    It names the package itself, with the version that our extra requires, not the extra: pip would look for
    ``prunetaylor[ray]`` on an index, where it need not be, even if prunetaylor is installed.
    """
    try:
        required = importlib.metadata.requires("prunetaylor") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        required = []
    plain = [line.partition(";")[0].strip() for line in required]
    matching = [line for line in plain if _name(line) == _name(package)]
    return f"pip install {shlex.quote(matching[0] if matching else package)}"


def _name(requirement: str) -> str:
    """Return a distribution's name in its normal form."""
    name = re.match(r"[\w.-]*", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""
