"""YAML by version 1.2's core rules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunetaylor.core.config.values import dump_value, parse_value, read_document
from prunetaylor.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),  # 124 by YAML 1.1's base 60
        ("1e-4", 1e-4),  # a string by YAML 1.1
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),  # 8 by YAML 1.1
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("80%", "80%"),
        ("*conv1", "*conv1"),
        ("layer[12].*", "layer[12].*"),
        ("a # b", "a # b"),
        ("a: b", "a: b"),
        ("[1, 2:4, 1e-3, no]", [1, "2:4", 0.001, "no"]),
        ("{mean: [.1], std: [1]}", {"mean": [0.1], "std": [1]}),
        ("'5'", "5"),
        ('"a\\tb"', "a\tb"),
    ],
)
def test_values_follow_the_core_schema(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_non_finite_numbers_are_numbers() -> None:
    assert parse_value(".inf") == math.inf
    assert parse_value("-.INF") == -math.inf
    assert math.isnan(parse_value(".nan"))
    assert parse_value("nan") == "nan"


@pytest.mark.parametrize("text", ["[1", "{a: 1", '"open', "[a, *conv1]", "[&x a]", "[!!python/name:os.system x]"])
def test_values_that_cannot_be_meant_are_errors(text: str) -> None:
    with pytest.raises(UsageError, match="the value"):
        parse_value(text)


def test_an_alias_is_explained_as_a_pattern_without_quotes() -> None:
    with pytest.raises(UsageError, match=r"f\.yaml:2 has \*conv1 without quotes(.|\n)*quote it: \"\*conv1\""):
        read_document("prune:\n  include: [*conv1]\n", "f.yaml")


def test_a_file_gives_values_and_lines() -> None:
    found = read_document("# head\nprune:\n  structure: 2:4\n  damping: 1e-3\nseed: 3\n", "f.yaml")
    assert found.values == {"prune": {"structure": "2:4", "damping": 1e-3}, "seed": 3}
    assert found.lines[("prune", "damping")] == 4
    assert found.lines[("seed",)] == 5


def test_an_empty_file_sets_nothing() -> None:
    assert read_document("# only a comment\n", "f.yaml").values == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "f.yaml:2 sets 'seed' twice"),
        ("prune:\n  sparsity: .1\n  sparsity: .2\n", "f.yaml:3 sets 'sparsity' twice"),
        ("- a\n- b\n", "f.yaml contains no settings"),
        ("just text\n", "f.yaml contains no settings"),
        ("a: [1\nb: 2\n", "f.yaml:2 is not YAML"),
        ("a:\n\t- 1\n", "f.yaml:2 is not YAML"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2 is not YAML"),
        ("a: \x07\n", "f.yaml is not"),
        ("a: " + "[" * 5000, "f.yaml"),
        ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
    ],
)
def test_files_that_cannot_be_meant_are_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_document(text, "f.yaml")


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(_PLAIN)
def test_what_is_written_reads_back_as_the_same_value(value: object) -> None:
    text = dump_value(value)
    assert "\n" not in text
    assert read_document(f"key: {text}\n", "f.yaml").values == {"key": value}


def test_anchors_aliases_and_merges_are_read() -> None:
    text = "finetune: &f\n  epochs: 2\n  lr: 1e-3\nprune: {exclude: &e [a, b]}\n"
    found = read_document(f"{text}again: *e\nmore:\n  <<: *f\n  lr: 5\nboth: {{<<: [{{x: 1}}, *f]}}\n", "f.yaml")
    assert found.values["again"] == ["a", "b"]
    assert found.values["more"] == {"epochs": 2, "lr": 5}
    assert found.values["both"] == {"x": 1, "epochs": 2, "lr": 1e-3}
    assert found.lines[("more", "epochs")] == 2
    assert found.lines[("more", "lr")] == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, *a]\n", "refers to itself"),
        ("a: &a {b: *a}\n", "refers to itself"),
        ("a: &a\n  <<: *a\n", "refers to itself"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12)),
            "100,000",
        ),
        ("a: {<<: 3}\n", "<< takes a mapping"),
        ("a: *b\n", "no anchor has that name"),
    ],
)
def test_aliases_are_bounded(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_document(text, "f.yaml")
