"""JSON of others is read whole and plain, or refused in one line."""

import os

import pytest

from prunetaylor.core.json_file import read_json


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1e999]", "[NaN]", "[" * 100_000 + "]" * 100_000, "[" * 60 + "]" * 60, "9" * 5000, str(1 << 70), "\xff"],
)
def test_what_is_no_plain_json_is_a_value_error_in_one_line(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"^it [^\n]+$"):
        read_json(tmp_path / "a.json")


def test_plain_json_is_read_and_pipes_are_not(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, -2.5, null, "x"]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, -2.5, None, "x"]}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="regular"):
        read_json(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")
