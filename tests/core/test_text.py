"""Text from files is shown, never obeyed."""

import unicodedata

import pytest

from prunetaylor.core.text import LONGEST, first_line, neutral, neutral_lines

ALL_CONTROLS = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def test_no_control_is_left_in_a_line() -> None:
    shown = neutral("".join(ALL_CONTROLS), limit=10**6)
    assert not set(shown) & set(ALL_CONTROLS)
    assert len(ALL_CONTROLS) > 2000
    assert shown.encode("utf-8")


def test_escapes_are_those_that_python_writes() -> None:
    assert neutral("\x1b[2J\x07\x9b\x7f") == r"\x1b[2J\x07\x9b\x7f"
    assert neutral("a\nb\tc\r") == r"a\nb\tc\r"
    assert neutral("\u202eabc\u2066\u200b\ud800\U000e0041") == r"\u202eabc\u2066\u200b\ud800\U000e0041"


@pytest.mark.parametrize("text", ["features.0.weight", "Größe 网络 модель 🙂", "[red]x[/red]", r"a\b", ""])
def test_what_can_be_read_stays(text: str) -> None:
    assert neutral(text) == text == neutral_lines(text)


def test_lines_stay_lines() -> None:
    assert neutral_lines("a\tb\nc\x1b\r\n") == "a\tb\nc\\x1b\\r\n"


def test_length_is_bounded_even_where_every_character_grows() -> None:
    assert len(neutral("x" * 10_000_000)) == LONGEST
    assert len(neutral("\x1b" * 1000)) == LONGEST
    assert neutral("x" * LONGEST) == "x" * LONGEST
    assert neutral("abcdef", limit=5) == "ab..."


def test_an_exception_that_cannot_say_itself_has_its_class() -> None:
    class Evil(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert neutral(Evil()) == "Evil"


def test_the_first_line_of_an_error_is_never_nothing() -> None:
    assert first_line(ValueError("\n a: b\nstack")) == "a: b"
    assert first_line(ValueError()) == first_line(ValueError(" \n")) == "ValueError"
    assert first_line("of a text") == "of a text"
    assert len(first_line(ValueError("x" * 10_000))) == 300
