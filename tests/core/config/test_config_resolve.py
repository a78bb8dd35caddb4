"""Defaults < file < environment < command line, and every way to get it wrong."""

import os
import threading
from pathlib import Path

import pytest

from prunetaylor.core.config.keys import env_name, leaves
from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import UsageError


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


def test_nothing_said_is_the_defaults() -> None:
    resolved = resolve(None, {}, [], {})
    assert resolved.config == Config()
    assert set(resolved.origins.values()) == {"default"}
    assert set(resolved.origins) == {key for key, _ in leaves()}


def test_later_sources_win_key_by_key(write) -> None:
    file = write("seed: 1\nmetric: loss\nprune:\n  sparsity: 0.1\n  damping: 1e-3\n")
    environ = {"PRUNETAYLOR_SEED": "2", "PRUNETAYLOR_PRUNE_SPARSITY": "20%", "UNRELATED": "x"}
    resolved = resolve(file, environ, ["seed=3"], {"prune.sparsity": None})
    assert resolved.config.seed == 3
    assert resolved.config.prune.sparsity == 0.2
    assert resolved.config.prune.damping == 1e-3
    assert resolved.config.metric == "loss"
    assert resolved.origins["seed"] == "command line"
    assert resolved.origins["prune.sparsity"] == "environment PRUNETAYLOR_PRUNE_SPARSITY"
    assert resolved.origins["prune.damping"] == f"{file}:5"
    assert resolved.origins["metric"] == f"{file}:2"
    assert resolved.origins["device"] == "default"
    assert resolved.is_set("prune.sparsity")
    assert not resolved.is_set("device")


def test_every_key_has_its_own_name_in_the_environment() -> None:
    names = [env_name(key) for key, _ in leaves()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["PRUNETAYLOR_DATA_BATCH_SIZE", "PRUNETAYLOR_DATA__BATCH_SIZE"])
def test_both_spellings_of_the_environment(name: str) -> None:
    assert resolve(None, {name: "7"}, [], {}).config.data.batch_size == 7


def test_an_empty_variable_sets_nothing() -> None:
    assert resolve(None, {"PRUNETAYLOR_SEED": ""}, [], {}).origins["seed"] == "default"


def test_arguments_of_the_network_are_merged(write) -> None:
    file = write("model:\n  args: {depth: 20, width: 1}\n")
    resolved = resolve(file, {"PRUNETAYLOR_MODEL_ARGS_NUM_CLASSES": "100"}, ["model.args.width=2.5"], {})
    assert resolved.config.model.args == {"depth": 20, "width": 2.5, "num_classes": 100}
    assert resolved.origins["model.args.width"] == "command line"
    assert resolved.origins["model.args"] == f"{file}:2"
    assert resolve(file, {}, ["model.args={a: 1}"], {}).config.model.args == {"a": 1}


def test_normalisation_in_one_value_or_key_by_key() -> None:
    whole = resolve(None, {}, ["data.normalize={mean: [0.1], std: [1]}"], {})
    parts = resolve(None, {}, ["data.normalize.mean=[.1]", "data.normalize.std=[1]"], {})
    assert whole.config == parts.config
    assert whole.config.data.normalize.mean == [0.1]


def test_dotted_keys_and_empty_sections_in_a_file(write) -> None:
    resolved = resolve(write("prune.sparsity: 0.7\nfinetune:\ndata:\n  # nothing\n"), {}, [], {})
    assert resolved.config.prune.sparsity == 0.7
    assert resolved.config.finetune == Config().finetune


def test_text_stays_text_where_text_is_wanted() -> None:
    resolved = resolve(None, {"PRUNETAYLOR_DEVICE": "0"}, ["output=2024"], {"data.source": "none", "model.arch": "007"})
    config = resolved.config
    assert (config.output, config.device, config.data.source, config.model.arch) == ("2024", "0", "none", "007")


def test_one_pattern_is_a_list_of_one() -> None:
    assert resolve(None, {}, ["prune.exclude=*fc"], {}).config.prune.exclude == ["*fc"]


@pytest.mark.parametrize("text", ["0.8", "80%", "80 %", ".8", "8e-1"])
def test_ways_to_write_a_sparsity(text: str) -> None:
    assert resolve(None, {}, [], {"prune.sparsity": text}).config.prune.sparsity == 0.8


@pytest.mark.parametrize(
    "text", ["1", "1.0", "100%", "-0.1", "-5%", "80", "nan", ".nan", ".inf", "true", "much", "[0.5]"]
)
def test_a_sparsity_outside_its_range_is_explained(text: str) -> None:
    with pytest.raises(UsageError, match=r"the fraction removed, in \[0, 1\): 0.8 or 80%"):
        resolve(None, {}, [], {"prune.sparsity": text})


def test_eighty_means_eighty_percent() -> None:
    with pytest.raises(UsageError, match="did you mean 80%"):
        resolve(None, {}, [], {"prune.sparsity": "80"})


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("prune.sparcity=0.8", "unknown key 'prune.sparcity' .command line.; did you mean 'prune.sparsity'"),
        ("sparsity=0.8", "did you mean 'prune.sparsity'"),
        ("sparcity=0.8", "did you mean 'prune.sparsity'"),
        ("prune={sparcity: 0.8}", "did you mean 'prune.sparsity'"),
        ("prune=3", "prune .command line. is a section"),
        ("seed.x=3", "unknown key 'seed.x'"),
        ("=3", "is not KEY=VALUE"),
        ("seed", "is not KEY=VALUE"),
        ("seed=1.5", "seed is 1.5 .command line., but should be a whole number"),
        ("seed=-1", "seed is -1 .*greater than or equal to 0"),
        ("seed=true", "seed is True .*a whole number"),
        ("seed=", "seed is None .*a whole number"),
        ("seed=99999999999999999999", "less than 9223372036854775808"),
        ("finetune.epochs=few", "a whole number or 'auto'"),
        ("finetune.lr=.inf", "which is not a number"),
        ("finetune.lr=0", "greater than 0"),
        ("data.download=yes", "true or false"),
        ("data.normalize=imagnet", "'imagenet'.*or a mapping with mean and std"),
        ("data.normalize={mean: [0.5]}", "a mapping with std"),
        ("data.normalize={mean: [0.5], std: [0]}", "greater than 0"),
        ("model.args=3", "model.args is 3 .*a mapping"),
        ("prune.include=3", "a list"),
        ("prune.method=obz", "'obz' is not known; did you mean 'ob"),
        ("metric=top11", "'top11' is not known; did you mean 'top1'"),
        ("seed=[1", "seed: the value is not YAML"),
    ],
)
def test_settings_that_cannot_be_meant(pair: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve(None, {}, [pair], {})
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune:\n  sparcity: 0.8\n", r"'prune.sparcity' \(.*c.yaml:2\); did you mean 'prune.sparsity'"),
        ("prune:\n  sparsity: 80\n", r"prune.sparsity is 80 \(.*c.yaml:2\)"),
        ("prune: 5\n", r"prune \(.*c.yaml:1\) is a section"),
        ("prune:\n  sparsity: 0.8\nprune.sparsity: 0.9\n", r"prune.sparsity is set at .*c.yaml:2 and at .*c.yaml:3"),
        ("output: 5\n", r"output is 5 \(.*c.yaml:1\), but should be text"),
    ],
)
def test_errors_name_the_line_of_the_file(write, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(write(text), {}, [], {})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the configuration .*No such file"):
        resolve(tmp_path / "none.yaml", {}, [], {})
    with pytest.raises(UsageError, match=r"cannot read the configuration .*directory"):
        resolve(tmp_path, {}, [], {})
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04\xff\xfe\x80")
    with pytest.raises(UsageError, match="not a text file"):
        resolve(tmp_path / "model.pt", {}, [], {})
    with pytest.raises(UsageError, match="longer than"):
        resolve(Path("/dev/zero"), {}, [], {})


def test_the_shells_pipes_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["seed: 7\n"])
    writer.start()
    assert resolve(tmp_path / "pipe", {}, [], {}).config.seed == 7
    writer.join()


def test_an_unknown_variable_of_ours_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"PRUNETAYLOR_SED in the environment.*did you mean PRUNETAYLOR_SEED"):
        resolve(None, {"PRUNETAYLOR_SED": "1"}, [], {})


def test_an_option_and_a_pair_that_disagree() -> None:
    with pytest.raises(UsageError, match="set twice on the command line"):
        resolve(None, {}, ["prune.sparsity=0.1"], {"prune.sparsity": "0.2"})
    with pytest.raises(UsageError, match="set to nothing"):
        resolve(None, {}, [], {"output": ""})
