"""Amounts of memory as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{'i' if base == 1024 else ''}B": base**power
    for base in (1000, 1024)
    for power, letter in enumerate("KMGT", 1)
}
_FORM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Return the bytes in ``3GiB`` (2^30 each), ``500MB`` (10^6 each) or a plain number, ignoring case.

    Raises ValueError for anything else, and for less than one byte.
    """
    match = _FORM.fullmatch(text.strip())
    units = {name.lower(): size for name, size in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text!r} is not an amount of memory, such as 3GiB, 500MB or a number of bytes")
    size = int(float(match[1]) * units[match[2].lower()])
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte; give an amount such as 3GiB or 500MB")
    return size


def show_size(size: float) -> str:
    """Return bytes with at least two significant digits: 1.2 GiB, 22 GiB, 340 MiB."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= 0.995 * scale:
            value = size / scale
            return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
    return f"{size:.0f} B"
