"""csv:FILE: columns are features or texts, one of them the targets."""

import pytest
import torch

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data.load import load_samples
from support.huggingface import bert_folder

ROWS = [(i, i / 2, ("red", "blue")[i % 2], i % 3) for i in range(10)]


def read(tmp_path, header, rows, *, delimiter=",", tokenizer=None, **settings):
    lines = [delimiter.join(map(str, row)) for row in (header, *rows)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    section = DataSection(source=f"csv:{tmp_path / 'table.csv'}", **settings)
    return load_samples(section, tokenizer=tokenizer, seed=0)


def everything(samples):
    """All samples in the order of the first feature."""
    parts = [split.fetch(range(len(split))) for split in (samples.train, samples.test)]
    inputs, targets = torch.cat([x.tensor for x, _ in parts]), torch.cat([y for _, y in parts])
    order = inputs[:, 0].argsort()
    return inputs[order], targets[order]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_features_and_classes(tmp_path, delimiter):
    rows = [(a, b, y) for a, b, _, y in ROWS]
    samples = read(tmp_path, ["a", "b", "label"], rows, delimiter=delimiter)
    inputs, targets = everything(samples)
    assert inputs.tolist() == [[a, b] for a, b, _, _ in ROWS]
    assert (targets.tolist(), targets.dtype, samples.classes) == ([y for *_, y in ROWS], torch.int64, 3)
    assert (len(samples.train), len(samples.test)) == (8, 2)


def test_targets_by_name_and_of_each_kind(tmp_path):
    header = ["a", "b", "colour", "y"]
    samples = read(tmp_path, header, ROWS, target="colour")
    inputs, targets = everything(samples)
    assert (inputs.shape, samples.classes) == ((10, 3), 2)
    assert targets.tolist() == [1, 0] * 5  # in the sorted order of the names
    inputs, targets = everything(read(tmp_path, header, ROWS, target="b", columns=["a", "y"]))
    assert (inputs.shape, targets.dtype) == ((10, 2), torch.float32)
    assert targets.tolist() == [b for _, b, *_ in ROWS]
    assert not read(tmp_path, ["a", "b", "c"], [(a, b, y) for a, b, _, y in ROWS]).train.labelled


def test_texts_are_tokenised(tmp_path):
    folder = bert_folder(tmp_path / "bert")
    rows = [(f"the {word} sat", "on a mat", i % 2) for i, word in enumerate(("cat", "dog", "road", "mat", "old"))]
    one = read(tmp_path, ["text", "other", "label"], rows, tokenizer=str(folder), columns=["text"])
    inputs, targets = one.train.fetch(range(4))
    assert inputs.tree["input_ids"].shape == (4, 5)
    assert sorted(targets.tolist() + one.test.fetch([0])[1].tolist()) == [0, 0, 0, 1, 1]
    assert "labels" not in inputs.tree
    pair = read(tmp_path, ["text", "other", "label"], rows, tokenizer=str(folder))
    assert pair.train.fetch([0])[0].tree["input_ids"].shape[1] > 5


@pytest.mark.parametrize(
    ("header", "rows", "settings", "error", "cause"),
    [
        (["a", "b"], [(1, 2), (3,)], {}, DataError, "row 2"),
        (["a", "a"], [(1, 2)], {}, DataError, "distinct"),
        (["a", "y"], [], {}, DataError, "rows below"),
        (["a", "y"], [(1, 0)], {}, DataError, "two samples"),
        (["y"], [(1,), (2,)], {}, DataError, "besides the targets"),
        (["a", "c", "y"], [(1, "red", 0), (2, "blue", 1)], {}, DataError, "c of .* is not numeric: 'red'"),
        (["a", "y"], [("nan", 0), (1, 1)], {}, DataError, "nan in row 1"),
        (["size", "y"], [(1, 0), (2, 1)], {"target": "sizes"}, UsageError, "did you mean 'size'"),
        (["a", "y"], [(1, 0), (2, 1)], {"columns": ["b"]}, UsageError, "no column 'b'"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, header, rows, settings, error, cause):
    with pytest.raises(error, match=cause):
        read(tmp_path, header, rows, **settings)
