"""The configuration as text that can be read again."""

import json
from pathlib import Path

from prunetaylor.config.describe import defaults, dump, json_schema
from prunetaylor.config.keys import leaves
from prunetaylor.config.resolve import resolve
from prunetaylor.config.schema import Config


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
