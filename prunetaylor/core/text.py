"""Text from files is made safe to show: names, paths, values and the messages of exceptions."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 500
_LINE = 300
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories: controls, formats (bidirectional overrides, zero widths), surrogates, line separators."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that are called letters, marks or symbols, and show nothing."""
_COMMANDS = re.compile(r"#(?=#\w*\[)|:(?=:[\w-]+(?:\s[^:\n]*)?::)")
"""How lines begin that CI systems obey wherever they read them: ``::error::``, ``##[command]``, ``##vso[...]``."""


def neutral(text: object, limit: int = LONGEST) -> str:
    """Return ``text`` as one line of at most ``limit`` characters that a terminal shows and does not obey.

    Controls, bidirectional overrides, characters without a width, line ends and surrogates become visible escapes
    (``\\x1b``, ``\\u202e``), and so does the first character of text that a CI system takes for a command
    (``::error::``). Dots mark a text that was cut.
    """
    return _cut(_without_commands("".join(map(_visible, _text(text)[: limit + 1]))), limit)


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's message, or its class: messages from C++ have a stack below it."""
    lines = _text(error).strip().splitlines()
    return lines[0][:_LINE] if lines else type(error).__name__


def one_line(text: object) -> str:
    """Return ``text`` in one line: line ends and runs of blanks become single spaces."""
    return " ".join(_text(text).split())


def error_line(error: BaseException, limit: int = 300) -> str:
    """Return an error's class and its message in one line of at most ``limit`` characters, besides the class."""
    return f"{type(error).__name__}: {one_line(error)[:limit]}"


def duration(seconds: float) -> str:
    """Return rounded seconds, minutes or hours: 12 s, 3 min, 1.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def neutral_lines(text: object) -> str:
    """Return ``text`` made safe in the same way, with its line ends and tabs, and without a limit."""
    given = _text(text)
    plain = given if given.isascii() and given.isprintable() else "".join(map(_visible_in_lines, given))
    return _without_commands(plain)


def _text(text: object) -> str:
    try:
        return str(text)
    except Exception:  # an exception of somebody's own may fail to describe itself in any way
        return type(text).__name__


def _without_commands(text: str) -> str:
    return _COMMANDS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _visible(char: str) -> str:
    if unicodedata.category(char) not in _HIDDEN and char not in _BLANK:
        return char
    number = ord(char)
    if char in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _visible_in_lines(char: str) -> str:
    return char if char in "\n\t" else _visible(char)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: max(0, limit - 3)]}..."[:limit]
