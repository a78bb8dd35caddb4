"""A folder with config.json is a network; none of its code runs, and nothing that it names is fetched or opened."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import prunetaylor
from prunetaylor.core.errors import CheckpointRefused, UsageError
from prunetaylor.network.checkpoint.architecture.build import build_network
from prunetaylor.network.checkpoint.huggingface.config import read_config
from prunetaylor.network.checkpoint.inspect import inspect_file
from prunetaylor.network.checkpoint.read import read
from prunetaylor.network.checkpoint.write import write_model
from support.huggingface import bert_folder, edit_config, transformers, with_pooling, write_json

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 5, 3, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("made") / "bert")


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "bert")
    return tmp_path / "bert"


def hidden(folder: Path) -> torch.Tensor:
    """The last hidden states that transformers itself computes."""
    with torch.no_grad():
        return transformers().BertModel.from_pretrained(folder).eval()(**BATCH).last_hidden_state


def outputs(module) -> torch.Tensor:
    with torch.no_grad():
        result = module(**BATCH)
    return result if isinstance(result, torch.Tensor) else result[0]


def test_a_folder_is_the_network_of_its_config(folder):
    built = build_network(None, None, read(folder))
    assert type(built.module).__name__ == "BertModel"
    assert not built.module.training
    assert built.spec == f"hf:{folder}"
    torch.testing.assert_close(outputs(built.module), hidden(folder))


@pytest.mark.parametrize("form", ["shards", "pickle", "pickled shards"])
def test_weights_in_every_form(made, tmp_path, form):
    whole = {k: v.contiguous() for k, v in read(made).state.items()}
    if form == "shards":
        folder = bert_folder(tmp_path / "sharded", max_shard_size="10KB")
        assert not (folder / "model.safetensors").exists()
    else:
        folder = tmp_path / "pickled"
        shutil.copytree(made, folder)
        (folder / "model.safetensors").unlink()
        parts = {"pytorch_model.bin": list(whole)}
        if form == "pickled shards":
            parts = {f"pytorch_model-{n}.bin": list(whole)[n::2] for n in (0, 1)}
            mapping = {name: file for file, names in parts.items() for name in names}
            write_json(folder / "pytorch_model.bin.index.json", {"weight_map": mapping})
        for file, names in parts.items():
            torch.save({name: whole[name] for name in names}, folder / file)
    checkpoint = read(folder)
    assert checkpoint.state.keys() == whole.keys()
    torch.testing.assert_close(outputs(build_network(None, None, checkpoint).module), hidden(made))
    assert inspect_file(folder).elements == sum(t.numel() for t in whole.values())


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "missing.safetensors", ""])
def test_an_index_names_files_of_its_folder_only(folder, shard):
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": shard}})
    with pytest.raises(CheckpointRefused, match="names"):
        read(folder)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalized", [True, False])
def test_the_pooling_of_sentence_transformers(folder, mode, normalized):
    with_pooling(folder, mode, normalized=normalized)
    states, mask = hidden(folder), BATCH["attention_mask"][..., None]
    expected = {
        "mean": (states * mask).sum(1) / mask.sum(1),
        "cls": states[:, 0],
        "max": torch.stack([states[0].amax(0), states[1, :3].amax(0)]),
    }[mode]
    built = build_network(None, None, read(folder))
    torch.testing.assert_close(outputs(built.module), normalize(expected) if normalized else expected)
    assert mode in built.reason


def test_a_head_is_left_out_where_sentences_are_pooled(tmp_path):
    folder = with_pooling(bert_folder(tmp_path / "bert", "BertForMaskedLM"))
    built = build_network(None, None, read(folder))
    assert type(built.module).__name__ == "BertModel"
    assert "without the file's 'cls." in built.reason
    assert outputs(built.module).shape == (2, 16)


def test_an_unknown_module_of_sentence_transformers_is_refused(folder):
    with_pooling(folder)
    write_json(folder / "modules.json", [{"type": "sentence_transformers.models.Dense\x1b[2J", "path": "2_Dense"}])
    with pytest.raises(CheckpointRefused, match=r"Dense\\x1b") as caught:
        build_network(None, None, read(folder))
    assert "FILE.py:FACTORY" in caught.value.remedy


def test_a_network_named_for_bare_weights(folder, tmp_path):
    torch.save(read(folder).state, tmp_path / "weights.pt")
    built = build_network(f"hf:{folder}", None, read(tmp_path / "weights.pt"))
    torch.testing.assert_close(outputs(built.module), hidden(folder))
    with pytest.raises(UsageError, match="no setting 'depth'"):
        build_network(f"hf:{folder}", {"depth": 3}, read(tmp_path / "weights.pt"))
    with pytest.raises(CheckpointRefused, match=r"layer\.1"):
        build_network(f"hf:{folder}", {"num_hidden_layers": 1}, read(tmp_path / "weights.pt"))


def test_what_is_written_is_loaded_again(folder, tmp_path):
    with_pooling(folder)
    module = prunetaylor.load(folder)
    assert "encoder.layer.0.attention.self.query.weight" in module.state_dict()
    write_model(tmp_path / "model.safetensors", module, arch=f"hf:{folder}", args={}, data={})
    assert torch.equal(outputs(prunetaylor.load(tmp_path / "model.safetensors")), outputs(module))


def test_the_callers_random_stream_is_untouched(folder):
    before = torch.get_rng_state()
    prunetaylor.load(folder)
    assert torch.equal(before, torch.get_rng_state())


CODE = {"AutoModel": "modeling_own.OwnModel"}


@pytest.mark.parametrize(
    ("entries", "cause", "remedy"),
    [
        ({"auto_map": CODE}, "auto_map", "FILE.py:FACTORY"),
        ({"text_config": {"auto_map": CODE}}, "auto_map", "FILE.py:FACTORY"),
        ({"sub": [{"auto_map": CODE}]}, "auto_map", "FILE.py:FACTORY"),
        ({"quantization_config": {"bits": 4}}, "quantised", "before"),
        ({"model_type": "../bert"}, "model_type", "transformers"),
        ({"architectures": ["os.system"]}, "architectures", "transformers"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers", "again"),
        ({"vocab_size": 10**8}, "larger|fit", ""),
        ({"model_type": "gpt2"}, "gpt2", "again"),
    ],
)
def test_what_a_config_may_not_say(folder, entries, cause, remedy):
    edit_config(folder, **entries)
    (folder / "modeling_own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass OwnModel: pass\n")
    with pytest.raises(CheckpointRefused, match=cause) as caught:
        build_network(None, None, read(folder))
    assert remedy in caught.value.remedy
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["Trainer", "AutoModel", "NoSuchModel", "torch", "pipeline"])
def test_only_networks_of_transformers_are_built(folder, name):
    edit_config(folder, architectures=[name])
    with pytest.raises(UsageError, match=f"no network {name}"):
        build_network(None, None, read(folder))


def test_what_a_config_may_not_decide_is_dropped(folder):
    edit_config(
        folder,
        _attn_implementation="someone/kernel",
        attn_implementation="someone/kernel",
        use_kernels=True,
        use_pretrained_backbone=True,
        backbone="/tmp/backbone",
        id2label={"0": "a\x1b[2J", "1": "https://example.org"},
        note="https://example.org/\x1b[2J",
    )
    values = read_config(folder).values
    assert not any("kernel" in str(value) or "\x1b" in str(value) for value in values.values())
    assert {"attn_implementation", "backbone", "note", "use_kernels"}.isdisjoint(values)
    assert (values["use_pretrained_backbone"], values["num_labels"]) == (False, 2)
    assert build_network(None, None, read(folder)).module.config._attn_implementation == "eager"


@pytest.mark.parametrize("path", ["https://example.org/x", "//server/x", "/proc/self", "google/bert", "no\0where"])
def test_a_file_cannot_name_a_network_elsewhere(made, tmp_path, path):
    write_model(tmp_path / "m.safetensors", prunetaylor.load(made), arch=f"hf:{path}", args={}, data={})
    with pytest.raises(CheckpointRefused, match="no folder"):
        prunetaylor.load(tmp_path / "m.safetensors")


def test_without_transformers_its_installation_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match="needs transformers") as caught:
        build_network(None, None, read(folder))
    assert "pip install" in caught.value.remedy


def test_a_folder_without_weights_for_torch(folder):
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(UsageError, match=r"tf_model\.h5"):
        read(folder)
