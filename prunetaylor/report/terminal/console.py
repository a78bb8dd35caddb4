"""The one console: text is shown as it is, never read as markup, and never obeyed by the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from prunetaylor.core.text import neutral_lines


class PlainConsole(Console):
    """A console that shows tables, bars and text without the control characters that names from files may contain."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render text without its control characters."""
        return super().render_str(neutral_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        # texts before they are laid out, so that an escape has its room; all else as it comes
        """Render anything without its control characters."""
        shown = _clean(renderable) if isinstance(renderable, Text) else renderable
        for segment in super().render(shown, options):
            text = segment.text if segment.control else neutral_lines(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style, segment.control)


def _clean(text: Text) -> Text:
    plain = neutral_lines(text.plain)
    if plain == text.plain:
        return text
    cleaned = text.copy()
    cleaned.plain = plain
    return cleaned
