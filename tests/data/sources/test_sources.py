"""digits, torchvision, code, and how a source is chosen."""

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from prunetaylor.core import registry
from prunetaylor.core.config.code import NOBODY, Trust
from prunetaylor.core.config.schema import DataSection, Normalization
from prunetaylor.core.errors import CheckpointRefused, DataError, UsageError
from prunetaylor.data.load import from_python, load_samples, split_spec
from prunetaylor.data.samples import Preprocess, TensorSplit
from prunetaylor.data.sources import load_source
from support.samples import fetch


def _load(source=None, recorded=None, trust=NOBODY, **options):
    return load_samples(DataSection(source=source, **options), recorded=recorded, trust=trust, seed=0)


def test_the_registry_finds_sources_without_torch():
    code = (
        "import sys; from prunetaylor.core import registry; print(*registry.names(registry.SOURCES)); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"arrays", "code", "digits", "folder", "torchvision"} <= set(done.stdout.split())
    for name in registry.names(registry.SOURCES):
        assert callable(load_source(name).read)


def test_digits_are_split_alike_for_every_seed():
    samples = _load("digits")
    other = load_samples(DataSection(source="digits"), seed=99)
    assert samples.fingerprint == other.fingerprint
    assert len(samples.train) + len(samples.test) == 1797
    inputs, targets = fetch(samples.train, range(len(samples.train)))
    assert inputs.shape[1:] == (1, 8, 8)
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
    assert samples.classes == 10
    assert samples.augment == "none"
    shares = samples.test.targets().bincount() / (targets.bincount() + samples.test.targets().bincount())
    assert bool(((shares - 0.2).abs() < 0.01).all())


def test_digits_without_scikit_learn_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'scikit-learn>="):
        _load("digits")


def test_digits_take_no_argument():
    with pytest.raises(UsageError, match="takes no argument"):
        _load("digits:3")


def _idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def _mnist(root, name="MNIST"):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 12), ("t10k", 5)):
        arrays[part] = rng.integers(0, 256, (count, 28, 28))
        _idx(root / name / "raw" / f"{part}-images-idx3-ubyte", arrays[part])
        _idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return arrays


@pytest.mark.parametrize(("name", "normalize"), [("MNIST", "mnist"), ("FashionMNIST", "none")])
def test_mnist_like_sets_become_tensors(tmp_path, name, normalize):
    arrays = _mnist(tmp_path, name)
    samples = _load(f"torchvision:{name}", root=str(tmp_path))
    assert isinstance(samples.train, TensorSplit)
    inputs, targets = fetch(samples.train, range(12))
    assert inputs.shape == (12, 1, 28, 28)
    assert inputs.dtype == torch.uint8
    np.testing.assert_array_equal(inputs[:, 0].numpy(), arrays["train"])
    assert targets.tolist() == [*range(10), 0, 1]
    assert len(samples.test) == 5
    assert samples.classes == 10
    assert samples.preprocess == Preprocess.from_json(normalize)


def test_data_size_resizes_torchvisions_tensors(tmp_path):
    _mnist(tmp_path)
    samples = _load("torchvision:MNIST", root=str(tmp_path), size=32)
    assert samples.train.fetch([0, 3])[0].tensor.shape == (2, 1, 32, 32)


def _cifar10(root, monkeypatch):
    from prunetaylor.runtime.torchvision_import import import_torchvision

    cifar = import_torchvision().datasets.CIFAR10
    monkeypatch.setattr(cifar, "_check_integrity", lambda self: True)
    monkeypatch.setattr(cifar, "_load_meta", lambda self: setattr(self, "classes", [str(i) for i in range(10)]))
    base = root / cifar.base_folder
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for file in [name for name, _ in cifar.train_list + cifar.test_list]:
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (base / file).write_bytes(pickle.dumps({"data": data, "labels": [3, 1, 4, 1]}))
    return data


def test_cifar_becomes_channels_first_tensors(tmp_path, monkeypatch):
    last = _cifar10(tmp_path, monkeypatch)
    samples = _load("torchvision:CIFAR10", root=str(tmp_path))
    assert isinstance(samples.test, TensorSplit)
    assert (len(samples.train), len(samples.test)) == (20, 4)
    np.testing.assert_array_equal(samples.test.inputs.tensor.numpy(), last.reshape(4, 3, 32, 32))
    assert samples.test.targets().tolist() == [3, 1, 4, 1]
    assert samples.augment == "crop-flip"
    assert samples.preprocess == Preprocess.from_json("cifar10")


def test_sets_with_split_arguments_and_files(tmp_path, monkeypatch):
    """STL10's arguments are split="train" and "test"; Flowers102 has "val" too. Both stand in for their like."""
    from PIL import Image

    from prunetaylor.runtime.torchvision_import import import_torchvision

    datasets = import_torchvision().datasets
    sizes = {"train": (40, 30), "val": (30, 40), "test": (30, 30)}

    class Flowers(torch.utils.data.Dataset):
        classes = ("rose", "lily")

        def __init__(self, root, split="train", transform=None, target_transform=None, download=False):
            assert not download
            self.split = split

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.new("RGB", sizes[self.split], (10 * index, 0, 0)), index

    monkeypatch.setattr(datasets, "Flowers102", Flowers)
    samples = _load("torchvision:Flowers102", root=str(tmp_path), size=24)
    assert samples.classes == 2
    assert len(samples.validation) == 2
    inputs, targets = fetch(samples.test, [1])
    assert inputs.shape == (1, 3, 24, 24)
    assert inputs[0, :, 3, 3].tolist() == [10, 0, 0]
    assert targets.tolist() == [1]


def test_missing_files_name_both_remedies(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read from (?s:.*)data\.root.*data\.download=true"):
        _load("torchvision:MNIST", root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"data\.root is not set\n.*data\.download=true"):
        _load("torchvision:CIFAR10")


def test_download_is_asked_for_only_when_told(tmp_path, monkeypatch):
    from prunetaylor.runtime.torchvision_import import import_torchvision

    asked = []

    def kind(root, train=True, transform=None, target_transform=None, download=False):
        asked.append(download)
        raise RuntimeError("no network here")

    monkeypatch.setattr(import_torchvision().datasets, "KMNIST", kind)
    for download in (False, True):
        with pytest.raises(DataError, match="no network here"):
            _load("torchvision:KMNIST", root=str(tmp_path), download=download)
    assert asked == [False, True]


def test_torchvision_names_are_checked(tmp_path):
    with pytest.raises(UsageError, match=r"'CIFAR11'.*'CIFAR10"):
        _load("torchvision:CIFAR11", root=str(tmp_path))
    with pytest.raises(UsageError, match="no split into training and test"):
        _load("torchvision:CocoDetection", root=str(tmp_path))


def _code(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(f"import torch\nfrom torch.utils.data import TensorDataset\n\n\ndef data():\n    {body}\n")
    return f"{path}:data"


def test_code_gives_two_or_three_sets(tmp_path):
    body = "return TensorDataset(torch.rand(8, 4), torch.arange(8)), (torch.rand(2, 4), torch.tensor([0, 1]))"
    two = _load(_code(tmp_path, body))
    assert (len(two.train), len(two.test), two.validation, two.classes) == (8, 2, None, None)
    three = _load(_code(tmp_path, "return [(torch.full((n, 4), 1.0), torch.zeros(n)) for n in (8, 3, 2)]"))
    assert (len(three.train), len(three.validation), len(three.test)) == (8, 3, 2)
    assert three.train.targets().dtype == torch.float32


def test_a_sets_own_transforms_are_all_there_is(tmp_path):
    code = "d = [(torch.rand(3, 16, 16), 0)] * 4; print('noise'); return d, d"
    assert _load(_code(tmp_path, code)).augment == "none"
    assert _load(_code(tmp_path, code), augment="flip").augment == "flip"
    tensors = "d = torch.rand(4, 3, 16, 16), torch.zeros(4).long(); return d, d"
    assert _load(_code(tmp_path, tensors)).augment == "crop-flip"


def test_stdout_belongs_to_the_result(tmp_path, capsys):
    _load(_code(tmp_path, "d = torch.rand(4, 2), torch.zeros(4); print('noise'); return d, d"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "noise" in captured.err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1", "returned a int"),
        ("return (1,)", "returned 1 values"),
        ("return 1, 2", "train of .*mine.py:data is a int, not a data set"),
        ("raise OSError('disk')", "mine.py:data failed: OSError: disk"),
        ("d = torch.rand(0, 3), torch.rand(0); return d, d", "train of .* has no samples"),
        ("return (torch.rand(2, 3), torch.zeros(2)), (torch.rand(2, 4), torch.zeros(2))", "a test input .* is float32"),
    ],
)
def test_code_that_fails_is_named(tmp_path, body, message):
    with pytest.raises(DataError, match=message):
        _load(_code(tmp_path, body))


def test_a_checkpoints_code_is_run_only_when_trusted(tmp_path):
    spec = _code(tmp_path, "d = torch.rand(4, 2), torch.zeros(4).long(); return d, d")
    for said in (spec, f"code:{spec}"):
        with pytest.raises(CheckpointRefused, match=r"would run it(?s:.*)--trust-code"):
            _load(recorded={"source": said})
        assert len(_load(recorded={"source": said}, trust=Trust(everything=True)).train) == 4


def test_what_the_checkpoint_says_is_used_until_the_user_says_otherwise(tmp_path):
    _mnist(tmp_path)
    said = {
        "source": "torchvision:MNIST",
        "root": str(tmp_path),
        "normalize": {"mean": [0.5], "std": [0.25]},
        "augment": "flip",
    }
    samples = _load(recorded=said)
    assert samples.source == "torchvision:MNIST"
    assert samples.preprocess == Preprocess((0.5,), (0.25,))
    assert samples.augment == "flip"
    assert all("checkpoint" in choice.reason for choice in samples.choices)
    told = _load(recorded=said, normalize=Normalization(mean=[0.1], std=[0.2]), augment="none")
    assert told.preprocess == Preprocess((0.1,), (0.2,))
    assert told.augment == "none"
    assert {choice.reason for choice in told.choices} == {"as asked"}
    assert _load(recorded=said, normalize="none").preprocess == Preprocess()
    assert len(_load("digits", recorded=said).train) > 1000
    hostile = {"source": "digits", "root": ["x"], "size": "big", "augment": 3}
    assert _load(recorded=hostile).augment == "none"


def test_none_is_none_and_nothing_is_an_error():
    assert _load("none") is None
    assert _load(recorded={"source": "none"}) is None
    with pytest.raises(UsageError, match=r"no data given(?s:.*)--data"):
        _load()


def test_specs():
    assert split_spec("folder:a:b") == ("folder", "a:b")
    assert split_spec("digits") == ("digits", "")
    assert split_spec("some/file.py:make") == ("code", "some/file.py:make")
    assert split_spec("package.module:make") == ("code", "package.module:make")
    for wrong, meant in (("digit", "digits"), ("torchvsion:MNIST", "torchvision"), ("floder:/x", "folder")):
        with pytest.raises(UsageError, match=f"unknown data source .*did you mean '{meant}'"):
            split_spec(wrong)


def test_a_path_without_its_kind_is_told_the_kind(tmp_path: Path) -> None:
    for wrong, meant in (("digits.npz", "arrays:digits.npz"), (str(tmp_path), f"folder:{tmp_path}")):
        with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
            split_spec(wrong)


def test_from_python():
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6)
    samples = from_python((x, y), (x, y), normalize="cifar10")
    assert samples.augment == "none"
    assert samples.classes is None
    assert samples.preprocess == Preprocess.from_json("cifar10")
    assert len(from_python((x, y)).test) == 6
    with pytest.raises(DataError, match="test is a float"):
        from_python((x, y), 1.5)


WORDS = """
import torch

def datasets():
    rows = [{"ids": torch.arange(1, 2 + n % 3), "answer": n} for n in range(6)]
    return rows[:4], rows[4:]

def collate(rows):
    ids = torch.nn.utils.rnn.pad_sequence([row["ids"] for row in rows], batch_first=True)
    return {"ids": ids, "answer": torch.tensor([row["answer"] for row in rows])}
"""


def test_samples_of_different_lengths_are_combined_by_data_collate(tmp_path):
    (tmp_path / "words.py").write_text(WORDS)
    source, collate = f"{tmp_path}/words.py:datasets", f"{tmp_path}/words.py:collate"
    samples = _load(source, collate=collate, target="answer")
    inputs, targets = samples.train.fetch([0, 2])
    assert inputs.tree["ids"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert (list(inputs.tree), targets.tolist()) == (["ids"], [0, 2])
    with pytest.raises(DataError, match="no entry wrong"):
        _load(source, collate=collate, target="wrong")
    with pytest.raises(UsageError, match=r"data\.target does not apply"):
        _load("digits", target="answer")


def test_a_collate_function_that_only_the_checkpoint_names_is_not_run(tmp_path):
    (tmp_path / "words.py").write_text(WORDS)
    source, collate = f"{tmp_path}/words.py:datasets", f"{tmp_path}/words.py:collate"
    recorded = {"source": source, "collate": collate, "target": "answer"}
    with pytest.raises(CheckpointRefused, match=r"code to combine its samples"):
        load_samples(DataSection(), recorded=recorded, trust=Trust(frozenset({("data.source", source)})), seed=0)
    samples = load_samples(DataSection(), recorded=recorded, trust=Trust(everything=True), seed=0)
    assert samples.train.fetch([0])[1].tolist() == [0]
