"""lines:FILE: sentences become tokens, padded by the tokenizer's rule; a seeded share tests."""

import pytest
import torch

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import CheckpointRefused, DataError, UsageError
from prunetaylor.data.load import load_samples, settings_to_record
from prunetaylor.data.text.padding import Padding
from support.huggingface import bert_folder, edit_config, write_json

ENDS = ("sat", "ran", "was", "on a mat", "was far")
SENTENCES = [f"the {start} {end}" for start in ("cat", "dog", "mat", "road") for end in ENDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("lines") / "bert")


@pytest.fixture
def sentences(tmp_path):
    file = tmp_path / "sentences.txt"
    file.write_text("\n\n".join([*SENTENCES, SENTENCES[0]]) + "\n")
    return file


def read(file, folder, *, seed=0, **settings):
    return load_samples(DataSection(source=f"lines:{file}", **settings), tokenizer=str(folder), seed=seed)


def test_sentences_are_shared_out_alike_for_every_seed(sentences, folder):
    samples, other = read(sentences, folder), read(sentences, folder, seed=7)
    assert (len(samples.train), len(samples.test), samples.validation) == (16, 4, None)
    assert samples.fingerprint == other.fingerprint
    assert len(read(sentences, folder, validation=0.5).test) == 10
    assert not samples.train.labelled
    assert not samples.train.lazy  # no processes are started to read a list
    assert samples.augment == "none"


def test_batches_are_padded_to_their_longest(sentences, folder):
    inputs, _ = read(sentences, folder).train.fetch(range(5))
    batch = inputs.tree
    assert batch.keys() >= {"input_ids", "attention_mask"}
    mask = batch["attention_mask"]
    assert torch.equal(mask, (batch["input_ids"] != 0).long())
    assert (mask.shape, int(mask.sum(1).max())) == ((5, 7), 7)  # five words, and a token before and after them


@pytest.mark.parametrize(("settings", "longest"), [({"max_length": 4}, 4), ({}, 6)])
def test_sentences_are_cut_where_the_folder_says(tmp_path, folder, settings, longest):
    (tmp_path / "long.txt").write_text("the cat sat on a mat then the dog ran\nthe dog was on a road and far too old\n")
    own = bert_folder(tmp_path / "bert")
    edit_config(own, max_position_embeddings=8)
    write_json(own / "sentence_bert_config.json", {"max_seq_length": 6})
    assert read(tmp_path / "long.txt", own, **settings).train.fetch([0])[0].tree["input_ids"].shape == (1, longest)


def test_padding_on_the_left_and_of_labels():
    samples = [
        {"input_ids": [1, 2, 3], "labels": [4, 5, 6], "score": 0.5},
        {"input_ids": [7], "labels": [8], "score": 1},
    ]
    batch = Padding({"input_ids": 9}, "left")(samples)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 7]]
    assert batch["labels"].tolist() == [[4, 5, 6], [-100, -100, 8]]
    assert batch["score"].tolist() == [0.5, 1]


def test_a_tokenizer_is_named_or_missing(sentences, folder):
    with pytest.raises(UsageError, match="no tokenizer") as caught:
        load_samples(DataSection(source=f"lines:{sentences}"), seed=0)
    assert "data.tokenizer=DIR" in caught.value.remedy
    assert len(load_samples(DataSection(source=f"lines:{sentences}", tokenizer=str(folder)), seed=0).test) == 4
    with pytest.raises(UsageError, match="no folder"):
        read(sentences, "google/bert")


def test_what_a_run_records_finds_the_same_samples(sentences, folder):
    section = DataSection(source=f"lines:{sentences}", validation=0.25, tokenizer=str(folder), max_length=5)
    recorded = {"source": section.source, **settings_to_record(section, {})}
    assert recorded.keys() == {"source", "validation", "tokenizer", "max_length"}
    first, again = (load_samples(s, recorded=recorded, seed=0) for s in (section, DataSection()))
    assert (len(again.test), again.fingerprint) == (5, first.fingerprint)
    with pytest.raises(CheckpointRefused, match="not on this machine"):
        load_samples(DataSection(), recorded={**recorded, "tokenizer": "//server/share"}, seed=0)


def test_a_tokenizers_own_code_is_never_run(sentences, tmp_path):
    own = bert_folder(tmp_path / "bert")
    write_json(own / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}})
    (own / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CheckpointRefused, match="auto_map"):
        read(sentences, own)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "cause"), [(b"", "two samples"), (b"one\n", "two samples"), (b"\xff\n", "UTF-8")])
def test_a_file_without_sentences(tmp_path, folder, content, cause):
    (tmp_path / "s.txt").write_bytes(content)
    with pytest.raises(DataError, match=cause):
        read(tmp_path / "s.txt", folder)
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "missing.txt", folder)
