"""hf-data:DIR: what datasets wrote to disk."""

import numpy as np
import pytest
import torch

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data.load import load_samples
from prunetaylor.runtime.torchvision_import import repair_imports
from support.huggingface import bert_folder

repair_imports()
datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")


def read(folder, tokenizer=None, **settings):
    return load_samples(DataSection(source=f"hf-data:{folder}", **settings), tokenizer=tokenizer, seed=0)


def test_splits_of_features(tmp_path):
    table = datasets.Dataset.from_dict({"x": [[i, 1.0] for i in range(10)], "label": [i % 3 for i in range(10)]})
    datasets.DatasetDict(train=table, validation=table.select(range(3)), test=table.select(range(4))).save_to_disk(
        tmp_path / "d"
    )
    samples = read(tmp_path / "d")
    assert [len(split) for split in (samples.train, samples.test, samples.validation)] == [10, 4, 3]
    inputs, targets = samples.train.fetch([2, 4])
    assert (inputs.tensor.tolist(), targets.tolist()) == ([[2.0, 1.0], [4.0, 1.0]], [2, 1])
    table.save_to_disk(tmp_path / "one")
    one = read(tmp_path / "one")
    assert (len(one.train), len(one.test)) == (8, 2)


def test_images_with_named_classes(tmp_path):
    pictures = [np.full((6, 6, 3), i, dtype=np.uint8) for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": pictures, "label": [0, 1] * 3}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    samples = read(tmp_path / "d", size=4)
    inputs, targets = samples.test.fetch([0])
    assert (inputs.tensor.shape, inputs.tensor.dtype, samples.classes) == ((1, 3, 4, 4), torch.uint8, 2)
    assert int(inputs.tensor[0, 0, 0, 0]) % 2 == int(targets[0])


def test_texts_and_tokens(tmp_path):
    folder = str(bert_folder(tmp_path / "bert"))
    texts = ["the cat sat", "the dog ran on a mat", "it was far", "the road"]
    datasets.Dataset.from_dict({"text": texts, "label": [0, 1, 0, 1]}).save_to_disk(tmp_path / "texts")
    inputs, _ = read(tmp_path / "texts", folder).train.fetch(range(3))
    assert inputs.tree["attention_mask"].sum(1).max() == inputs.tree["input_ids"].shape[1]
    tokens = {"input_ids": [[2, 4, 3], [2, 4, 5, 6, 3]] * 2, "attention_mask": [[1] * 3, [1] * 5] * 2}
    labels = [[-100, 1, 2], [0, 1, 2, 3, 0]] * 2
    datasets.Dataset.from_dict({**tokens, "labels": labels}).save_to_disk(tmp_path / "tokens")
    inputs, targets = read(tmp_path / "tokens", folder).train.fetch([0, 1])
    assert inputs.tree["input_ids"].shape == targets.shape == (2, 5)
    assert -100 in targets


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        read(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "empty")
    datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]}).save_to_disk(tmp_path / "mixed")
    with pytest.raises(DataError, match="text") as caught:
        read(tmp_path / "mixed")
    assert "data.columns" in caught.value.remedy
    with pytest.raises(UsageError, match="no column 'm'"):
        read(tmp_path / "mixed", target="m")
