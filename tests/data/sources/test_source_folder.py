"""folder:DIR, and the decoding behind it."""

import numpy as np
import pytest
import torch
from PIL import Image

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data import images
from prunetaylor.data.load import load_samples
from prunetaylor.data.samples import Batches, Preprocess
from support.samples import fetch, tensors


def _image(path, value=0, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    array = (np.arange(np.prod(shape)).reshape(shape) % 7 + value).astype(np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(array * 256 if mode == "I;16" else array).save(path)
    return array


def _tree(root, parts=("train", "test"), classes=("cat", "dog"), each=3, **options):
    for part in parts:
        for number, name in enumerate(classes):
            for index in range(each):
                _image(root / part / name / f"{index}.png", value=40 * number + index, **options)
    return root


def _load(root, **options):
    return load_samples(DataSection(source=f"folder:{root}", **options), seed=0)


def test_images_of_equal_size_are_kept_and_classes_are_numbered_by_name(tmp_path):
    expected = _image(_tree(tmp_path) / "train" / "dog" / "1.png", value=99)
    samples = _load(tmp_path)
    assert (len(samples.train), len(samples.test), samples.validation, samples.classes) == (6, 6, None, 2)
    assert samples.train.targets().tolist() == [0, 0, 0, 1, 1, 1]
    inputs, targets = fetch(samples.train, [4, 0])
    assert inputs.shape == (2, 3, 5, 6)
    assert inputs.dtype == torch.uint8
    np.testing.assert_array_equal(inputs[0].numpy(), expected.transpose(2, 0, 1))
    assert targets.tolist() == [1, 0]
    assert samples.preprocess == Preprocess.from_json("imagenet")
    assert any(choice.value == "imagenet" for choice in samples.choices)


def test_images_without_class_folders_have_no_labels(tmp_path):
    _tree(tmp_path, parts=("val", "test"))
    expected = _image(tmp_path / "train" / "b.png", value=50)
    _image(tmp_path / "train" / "a.png")
    samples = _load(tmp_path)
    assert not samples.train.labelled
    assert samples.validation.labelled
    assert samples.test.labelled
    np.testing.assert_array_equal(samples.train.fetch([1])[0].tensor[0].numpy(), expected.transpose(2, 0, 1))
    assert samples.test.targets().tolist() == [0, 0, 0, 1, 1, 1]


def test_val_chooses_and_test_reports(tmp_path):
    _tree(tmp_path, parts=("train", "val"), each=2)
    only_val = _load(tmp_path)
    assert only_val.validation is None
    assert len(only_val.test) == 4
    _tree(tmp_path, parts=("test",), each=5)
    both = _load(tmp_path)
    assert len(both.validation) == 4
    assert len(both.test) == 10


def test_only_what_is_fetched_is_decoded(tmp_path, monkeypatch):
    _tree(tmp_path, each=40)
    samples = _load(tmp_path)  # the fingerprint has looked at every fifth image
    decoded = []
    open_image = images.Image.open
    monkeypatch.setattr(images.Image, "open", lambda path: decoded.append(str(path)) or open_image(path))
    samples.train.fetch([1, 1, 2])
    samples.train.fetch([5, 1, 2, 79])
    train = tmp_path / "train"
    order = sorted(str(p) for p in train.rglob("*.png"))
    assert decoded == [order[1], order[2], order[79]]


def test_decoding_once_and_on_the_fly_give_the_same(tmp_path, monkeypatch):
    _tree(tmp_path, each=40)
    kept = _load(tmp_path)
    monkeypatch.setattr(images, "MEMORY", 0)
    fresh = _load(tmp_path)
    assert not kept.train.lazy
    assert fresh.train.lazy
    torch.testing.assert_close(
        fresh.train.in_memory().inputs.tensor, kept.train.in_memory().inputs.tensor, rtol=0, atol=0
    )
    assert fresh.fingerprint == kept.fingerprint
    by_workers = Batches(fresh.test, fresh.preprocess, batch_size=16, device="cpu", workers=2)
    here = Batches(kept.test, kept.preprocess, batch_size=16, device="cpu")
    for (x, y), (other_x, other_y) in zip(tensors(here), tensors(by_workers), strict=True):
        torch.testing.assert_close(other_x, x, rtol=0, atol=0)
        assert other_y.tolist() == y.tolist()


def test_another_file_of_another_size_is_other_data(tmp_path):
    _tree(tmp_path, each=40)
    before = _load(tmp_path).fingerprint
    assert _load(tmp_path).fingerprint == before
    second = sorted((tmp_path / "train").rglob("*.png"))[1]  # none of those that are decoded for it
    second.write_bytes(second.read_bytes() + b"more")
    assert _load(tmp_path).fingerprint != before


def test_gray_images_stay_gray_and_a_mixture_becomes_rgb(tmp_path):
    _tree(tmp_path, mode="L")
    gray = _load(tmp_path)
    assert gray.train.fetch([0])[0].tensor.shape == (1, 1, 5, 6)
    assert gray.preprocess == Preprocess()
    assert gray.augment == "none"
    _image(tmp_path / "test" / "dog" / "9.png", mode="RGB")
    assert _load(tmp_path).train.fetch([0])[0].tensor.shape == (1, 3, 5, 6)


def test_16_bit_images_are_scaled_not_clipped(tmp_path):
    _tree(tmp_path, mode="I;16")
    expected = _image(tmp_path / "train" / "cat" / "0.png", value=100, mode="I;16")
    np.testing.assert_array_equal(_load(tmp_path).train.fetch([0])[0].tensor[0, 0].numpy(), expected)


def test_sizes_that_differ_are_resized_and_cropped_as_torchvision_does(tmp_path):
    from prunetaylor.runtime.torchvision_import import import_torchvision

    import_torchvision()
    from torchvision.transforms import CenterCrop, Compose, Resize

    _tree(tmp_path, each=1)
    array = np.random.default_rng(0).integers(0, 256, (301, 187, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "train" / "cat" / "0.png")
    inputs, _ = fetch(_load(tmp_path).train, [0])
    assert inputs.shape == (1, 3, 224, 224)
    expected = np.asarray(Compose([Resize(256), CenterCrop(224)])(Image.fromarray(array)))
    np.testing.assert_array_equal(inputs[0].numpy(), expected.transpose(2, 0, 1))
    assert _load(tmp_path, size=32).train.fetch([0, 1])[0].tensor.shape == (2, 3, 32, 32)


def test_data_size_resizes_images_of_equal_size_too(tmp_path):
    _tree(tmp_path)
    assert _load(tmp_path, size=4).test.fetch([0])[0].tensor.shape == (1, 3, 4, 4)


def test_a_rare_odd_size_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PROBES", 1)
    _tree(tmp_path)
    _image(tmp_path / "train" / "dog" / "2.png", size=(7, 7))
    with pytest.raises(DataError, match=r"2\.png .*7x7 .*6x5\n.*data\.size=5"):
        _load(tmp_path)
    assert _load(tmp_path, size=5).train.fetch([5])[0].tensor.shape == (1, 3, 5, 5)


def test_a_corrupt_image_is_named(tmp_path):
    _tree(tmp_path)
    whole = (tmp_path / "train" / "dog" / "1.png").read_bytes()
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"train/dog/1\.png cannot be decoded"):
        _load(tmp_path)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(whole[:60])
    with pytest.raises(DataError, match=r"train/dog/1\.png"):
        _load(tmp_path).train.in_memory()


def test_classes_must_agree(tmp_path):
    _tree(tmp_path, parts=("train",), classes=("cat", "dog", "emu"))
    _tree(tmp_path, parts=("test",), classes=("cat", "fox"))
    with pytest.raises(DataError, match=r"3 and 2 classes.*dog, emu.*fox"):
        _load(tmp_path)


def test_layouts_that_are_none(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        _load(tmp_path / "missing")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no train/ with a val/ or test/ beside it; it contains images"):
        _load(tmp_path)
    _tree(tmp_path)
    (tmp_path / "test" / "dog" / "notes.txt").write_text("not an image")
    for file in (tmp_path / "test" / "dog").glob("*.png"):
        file.unlink()
    (tmp_path / "train" / "emu").mkdir()
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(DataError, match="train/emu contains no images"):
        _load(tmp_path)
    with pytest.raises(UsageError, match="needs a folder"):
        load_samples(DataSection(source="folder:"), seed=0)
