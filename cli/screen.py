"""Stdout as rich sees it: colours on a terminal only, none with NO_COLOR, nothing in a text taken for markup."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)
