"""arrays:FILE.npz."""

import numpy as np
import pytest
import torch

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data.load import load_samples
from prunetaylor.data.samples import Inputs
from prunetaylor.data.sources import arrays
from support.samples import fetch


def _arrays(shape=(3, 8, 8), dtype=np.uint8, n=6, **changed):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", n), ("test", 4)):
        x = rng.integers(0, 256, (count, *shape))
        arrays[f"x_{part}"] = x.astype(dtype)
        arrays[f"y_{part}"] = np.arange(count) % 3
    arrays.update(changed)
    return {name: value for name, value in arrays.items() if value is not None}


def _load(tmp_path, arrays, **options):
    np.savez(tmp_path / "data.npz", **arrays)
    return load_samples(DataSection(source=f"arrays:{tmp_path / 'data.npz'}", **options), seed=0)


def test_channels_first(tmp_path):
    arrays = _arrays()
    samples = _load(tmp_path, arrays)
    inputs, targets = fetch(samples.train, range(6))
    np.testing.assert_array_equal(inputs.numpy(), arrays["x_train"])
    assert targets.dtype == torch.int64
    assert samples.classes == 3
    assert samples.validation is None
    assert samples.preprocess.mean is None


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 8, 9), (3, 8, 9)),
        ((8, 9, 3), (3, 8, 9)),
        ((8, 9, 1), (1, 8, 9)),
        ((8, 8), (1, 8, 8)),
        ((12,), (12,)),
        ((16, 5, 5), (16, 5, 5)),  # feature maps
        ((4, 4, 3), (3, 4, 4)),  # square one way only
        ((3, 4, 4), (3, 4, 4)),
        ((1, 5, 1), (1, 5, 1)),  # ambiguous: channels first
        ((3, 7), (1, 3, 7)),
    ],
)
def test_layout(tmp_path, shape, expected):
    samples = _load(tmp_path, _arrays(shape))
    assert samples.train.fetch([0])[0].tensor.shape[1:] == expected
    assert samples.test.fetch([0])[0].tensor.shape[1:] == expected


def test_channels_last_are_moved_not_reshaped(tmp_path):
    arrays = _arrays((8, 9, 3))
    inputs, _ = fetch(_load(tmp_path, arrays).train, [2])
    np.testing.assert_array_equal(inputs[0].numpy(), arrays["x_train"][2].transpose(2, 0, 1))


def test_floats_are_left_alone(tmp_path):
    arrays = _arrays(dtype=np.float64)
    samples = _load(tmp_path, arrays)
    inputs, _ = fetch(samples.train, [0])
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(
        samples.preprocess(Inputs.of(inputs)).tensor[0].double(), torch.from_numpy(arrays["x_train"][0])
    )


def test_big_endian_arrays_are_read(tmp_path):
    arrays = _arrays(dtype=">f4")
    inputs, _ = fetch(_load(tmp_path, arrays).train, [1])
    np.testing.assert_array_equal(inputs[0].numpy(), arrays["x_train"][1].astype(np.float32))


def test_validation_and_column_targets(tmp_path):
    arrays = _arrays(x_val=np.zeros((2, 3, 8, 8), np.uint8), y_val=np.array([[0], [7]], np.uint8))
    samples = _load(tmp_path, arrays)
    assert samples.validation.targets().tolist() == [0, 7]
    assert samples.classes == 8


def test_training_samples_need_no_labels(tmp_path):
    samples = _load(tmp_path, _arrays(y_train=None))
    assert not samples.train.labelled
    assert samples.test.labelled
    assert len(samples.train) == 6
    assert samples.classes == int(samples.test.targets().max()) + 1


def test_regression_targets_pass_through(tmp_path):
    samples = _load(tmp_path, _arrays(y_train=np.zeros((6, 2)), y_test=np.zeros((4, 2))))
    assert samples.classes is None
    assert samples.train.targets().dtype == torch.float32
    assert samples.train.targets().shape == (6, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, "has no array y_test"),
        ({"x_test": None, "x_tests": np.zeros(2)}, "no array x_test; did you mean 'x_tests'"),
        ({"x_val": np.zeros((2, 3, 8, 8), np.uint8)}, "has no array y_val"),
        ({"y_train": None, "ytrain": np.zeros(6)}, "no array y_train; did you mean 'ytrain'"),
        ({"y_train": np.arange(5)}, "x_train has 6 samples, y_train has 5"),
        ({"x_train": np.zeros((0, 3, 8, 8), np.uint8)}, "x_train of .* is empty"),
        ({"x_train": np.array([None] * 6)}, "array of Python objects, which is never unpickled"),
        ({"x_train": np.zeros((6, 3, 8, 8), np.int64)}, "x_train has the type int64"),
        ({"x_train": np.array(["a"] * 6)}, "x_train has the type <U1"),
        ({"x_train": np.zeros(6, np.float32)}, "samples without features"),
        ({"x_test": np.zeros((4, 3, 8, 7), np.uint8)}, r"x_test is uint8 \(4, 3, 8, 7\) where x_train is"),
        ({"x_test": np.zeros((4, 3, 8, 8), np.float32)}, "x_test is float32"),
        ({"y_train": np.array([0, 1, 2, 0, -5, 1])}, "y_train contains class -5 at index 4"),
        ({"y_train": np.array(["cat"] * 6)}, "y_train has the type <U3, not numbers"),
        ({"y_train": np.array([0, 1, np.nan, 0, 0, 1])}, r"y_train contains nan at index \(2,\)"),
    ],
)
def test_bad_arrays_are_named(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        _load(tmp_path, _arrays(**changed))


def test_infinite_inputs_are_named_with_their_place(tmp_path):
    x = np.zeros((6, 3, 8, 8), np.float32)
    x[5, 1, 2, 3] = np.inf
    with pytest.raises(DataError, match=r"x_train contains inf at index \(5, 1, 2, 3\)"):
        _load(tmp_path, _arrays(dtype=np.float32, x_train=x))


def test_files_that_are_no_archive(tmp_path):
    def read(path):
        return load_samples(DataSection(source=f"arrays:{path}"), seed=0)

    with pytest.raises(DataError, match="is not a file"):
        read(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="one array"):
        read(tmp_path / "one.npy")
    np.savez(tmp_path / "whole.npz", **_arrays())
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "flipped.npz").write_bytes(content[:300] + bytes(100) + content[400:])
    for name in ("text.npz", "cut.npz", "flipped.npz"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as \.npz"):
            read(tmp_path / name)


def test_size_does_not_apply(tmp_path):
    with pytest.raises(UsageError, match=r"data\.size does not apply"):
        _load(tmp_path, _arrays(), size=16)


def test_arrays_that_claim_far_more_than_the_file_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_LITTLE", 1 << 20)
    file = tmp_path / "a.npz"
    np.savez_compressed(file, x_train=np.zeros((10, 1 << 20), np.uint8), x_test=np.zeros((1, 1 << 20)), y_test=[0])
    with pytest.raises(DataError, match="claim") as caught:
        load_samples(DataSection(source=f"arrays:{file}"), seed=0)
    assert caught.value.exit_code == 2
