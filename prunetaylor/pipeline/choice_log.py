"""The choices of a run that its report lists."""

from __future__ import annotations

from collections.abc import Iterable

from prunetaylor.core.progress import Progress


class ChoiceLog:
    """Collects choices, each line once, and tells ``progress`` of every new one."""

    def __init__(self, progress: Progress) -> None:
        self.lines: list[str] = []
        self._progress = progress

    def __call__(self, text: str) -> None:
        """Add a line, unless the log has it already."""
        if text not in self.lines:
            self.lines.append(text)
            self._progress.note(text)

    def record(self, text: str) -> None:
        """Add a line that the user is told of by a warning."""
        self.lines.append(text)

    def state_dict(self) -> list[str]:
        return list(map(str, self.lines))

    def load_state_dict(self, lines: Iterable[str]) -> None:
        """Replace the lines by those of a saved state, without telling ``progress`` again."""
        self.lines = list(lines)
