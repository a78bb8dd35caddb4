"""The configuration as text that can be read again."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from prunetaylor.core import registry
from prunetaylor.core.config.describe import defaults, dump, explain, json_schema
from prunetaylor.core.config.keys import choices, leaves, registered
from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import UsageError
from prunetaylor.pruning.interfaces import load_criterion

METHODS = registry.names(registry.CRITERIA)


def test_the_defaults_read_back_as_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(defaults())
    resolved = resolve(path, {}, [], {})
    assert resolved.config == Config()
    assert "default" not in resolved.origins.values()


def test_every_key_has_a_description() -> None:
    for key, info in leaves():
        assert info.description, key
    assert "# Fraction of the prunable weights removed, in [0, 1): 0.8 or 80%.\n  sparsity: 0.5\n" in defaults()


def test_a_resolved_configuration_reads_back_and_says_its_origins(tmp_path: Path) -> None:
    pairs = ["model.args.name=a: b # c", "model.args.size=[1, 2]", "data.normalize.mean=[.1]", "data.normalize.std=[1]"]
    resolved = resolve(None, {"PRUNETAYLOR_PRUNE_EXCLUDE": "*fc"}, pairs, {"prune.sparsity": "80%", "output": "1e3"})
    text = dump(resolved)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert resolve(path, {}, [], {}).config == resolved.config
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "sparsity: 0.8 # command line" in lines
    assert 'exclude: ["*fc"] # environment PRUNETAYLOR_PRUNE_EXCLUDE' in lines
    assert "size: [1, 2] # command line" in lines
    assert "seed: 0 # default" in lines


def test_the_json_schema_knows_every_key_and_bounds_its_numbers() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    sparsity = schema["$defs"]["PruneSection"]["properties"]["sparsity"]
    assert sparsity["anyOf"][0] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert sparsity["default"] == 0.5
    text = json.dumps(schema)
    assert not [word for word in ("gt", "ge", "lt", "le") if f'"{word}"' in text]
    share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    assert schema["$defs"]["DataSection"]["properties"]["validation"]["anyOf"][1]["anyOf"][0] == share


@pytest.mark.parametrize("key", [key for key, info in leaves() if choices(info)])
def test_the_schema_and_the_check_of_a_key_take_the_same_words(key: str) -> None:
    """Of every key that names something; no method is missing in an editor, and none is offered that is refused."""
    info = dict(leaves())[key]
    listed, schema = str(info.annotation).startswith("list"), Draft202012Validator(json_schema())

    def both(word: object) -> tuple[bool, bool]:
        value: object = [word] if listed else word
        document: object = value
        for part in reversed(key.split(".")):
            document = {part: document}
        try:
            Config.model_validate(document)
        except ValueError:
            return False, schema.is_valid(document)
        return True, schema.is_valid(document)

    for word in choices(info):
        assert both({"true": True, "false": False}.get(word, word)) == (True, True), word
    assert both("no-such-word") == (False, False)


def test_every_method_has_its_cost_and_use_wherever_people_look() -> None:
    shown = explain("prune.method")
    for name in METHODS:
        facts = registry.describe_method(registry.CRITERIA, name)
        for text in (facts.summary, facts.cost, facts.use):
            assert text, name
            assert text[0].islower() or text.startswith("Optimal Brain"), f"{name}: half a sentence"
            assert " ".join(text.split()) in " ".join(shown.split()), name
        assert f"#   {name} " in defaults()


def test_facts_read_from_the_source_are_those_of_the_criterion() -> None:
    for name in METHODS:
        facts = registry.describe_method(registry.CRITERIA, name)
        assert {key: getattr(load_criterion(name), key) for key in vars(facts)} == vars(facts)


KINDS = [one for one in vars(registry).values() if isinstance(one, registry.Registry)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_method_has_a_summary(kind: registry.Registry) -> None:
    assert registry.names(kind)
    for name in registry.names(kind):
        assert registry.describe_method(kind, name).summary


def test_one_key_or_a_section_is_explained() -> None:
    assert "default: 0.5" in explain("prune.sparsity")
    assert "finetune.optimizer" in explain("finetune")
    assert registered(dict(leaves())["track"]) is not None
    with pytest.raises(UsageError, match=r"did you mean 'prune\.method'"):
        explain("prune.metod")


def test_one_tracker_needs_no_brackets() -> None:
    assert resolve(None, {}, ["track=wandb"], {}).config.track == ["wandb"]
