"""Files as people have them: every form is read, every other is refused with what to do about it."""

import argparse
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from prunetaylor.core.errors import CheckpointRefused, UsageError
from prunetaylor.network.checkpoint.inspect import inspect_file
from prunetaylor.network.checkpoint.read import read
from prunetaylor.network.checkpoint.torch_format.pickle_machine import _TABLE
from prunetaylor.network.checkpoint.write import write_model, write_pt


def same(found, wanted):
    assert list(found) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)


class Touch:
    """A pickle that touches a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def prefixed(state, prefix):
    return OrderedDict((prefix + k, v) for k, v in state.items())


FORMS = {
    "plain": (lambda s: s, "state_dict", ""),
    "nested with a metric": (lambda s: {"state_dict": s, "top1": 88.29}, "training dict", ""),
    "training": (
        lambda s: {"epoch": 3, "model": s, "optimizer": {"state": {0: {"m": s["0.weight"]}}}},
        "training dict",
        "",
    ),
    "model_state_dict": (lambda s: {"model_state_dict": s, "loss": torch.tensor(0.3)}, "training dict", ""),
    "EMA beside": (lambda s: {"ema": {k: v * 0 for k, v in s.items()}, "model": s}, "training dict", ""),
    "EMA alone": (lambda s: {"ema": {"decay": 0.99, "module": s}}, "training dict", ""),
    "unusual name": (lambda s: {"student": s, "epoch": 1}, "training dict", ""),
    "DataParallel": (lambda s: prefixed(s, "module."), "state_dict", "module."),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), "state_dict", "_orig_mod."),
    "compiled in DataParallel": (lambda s: prefixed(s, "module._orig_mod."), "state_dict", "module._orig_mod."),
    "DataParallel compiled": (
        lambda s: {"model": prefixed(s, "_orig_mod.module.")},
        "training dict",
        "_orig_mod.module.",
    ),
    "averaged": (lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "module.")}, "state_dict", "module."),
    "a layer compiled": (
        lambda s: {k.replace("4.", "4._orig_mod."): v for k, v in s.items()},
        "state_dict",
        "_orig_mod.",
    ),
    "a script's arguments": (lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)}, "training dict", ""),
    "numpy's numbers": (lambda s: {"model": s, "best": np.float64(0.9), "n": np.int64(3)}, "training dict", ""),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(net, tmp_path, form, zipped):
    make, name, prefix = FORMS[form]
    torch.save(make(net.state_dict()), tmp_path / "file", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "file")
    same(found.state, net.state_dict())
    assert (found.form, found.prefix_removed) == (name, prefix)
    assert found.container == ("zip" if zipped else "legacy")
    assert found.metadata is None
    assert found.size == (tmp_path / "file").stat().st_size
    seen = inspect_file(tmp_path / "file")
    assert (seen.form, seen.sha256, len(seen.tensors)) == (name, found.sha256, len(found.state))


def test_ema_beside_the_model_is_told(net, tmp_path):
    torch.save({"ema": net.state_dict(), "model": net.state_dict()}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").notes == ("weights taken from 'model', not from 'ema'",)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_safetensors_of_others_whatever_the_ending(net, tmp_path, ending):
    file = tmp_path / f"model{ending}"
    save_file({f"module.{k}": v for k, v in net.state_dict().items()}, file, {"format": "pt"})
    found = read(file)
    assert (found.form, found.prefix_removed, found.metadata) == ("safetensors", "module.", None)
    same(dict(sorted(found.state.items())), dict(sorted(net.state_dict().items())))


@pytest.mark.parametrize(("write", "masked"), [(write_model, True), (write_pt, False)])
def test_our_own_files_say_what_they_are(net, tmp_path, write, masked):
    size = write(
        tmp_path / "file",
        net,
        arch="builtin:digits",
        args={"num_classes": 3},
        data={"source": "digits"},
        extra={"classes": 3},
        **({"masks": {"4.weight": net[4].weight > 0}} if masked else {}),
    )
    found = read(tmp_path / "file")
    assert found.form == "prunetaylor"
    assert found.size == size == (tmp_path / "file").stat().st_size
    assert (found.metadata.arch, found.metadata.args, found.metadata.data) == (
        "builtin:digits",
        {"num_classes": 3},
        {"source": "digits"},
    )
    kept = {"4.weight": {"size": 48, "kept": int((net[4].weight > 0).sum())}}
    assert found.metadata.masks == (kept if masked else {})
    assert found.metadata.classes == 3
    same(dict(sorted(found.state.items())), dict(sorted(net.state_dict().items())))


def test_a_run_folder_is_its_file(net, tmp_path):
    write_model(tmp_path / "model.safetensors", net, arch=None, args={}, data={})
    assert read(tmp_path).path == tmp_path / "model.safetensors"


def test_dtypes_survive(tmp_path):
    state = {
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "eight": torch.randn(3).to(torch.float8_e4m3fn),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
    }
    torch.save(state, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt").state
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in state.items()}
    torch.testing.assert_close(found["brain"], state["brain"], rtol=0, atol=0)
    assert [t.dtype for t in inspect_file(tmp_path / "a.pt").tensors][:2] == ["float16", "bfloat16"]


BESIDE = {
    "nested keys": {("a", (1, 2)): 3, ((),): 4},
    "long keys": {tuple(range(20)): 1, 2**62: 2, -(2**100): 3},
    "other keys": {1j: 1, torch.Size([1, 2]): 2, torch.device("cpu"): 3, torch.float32: 4, None: 5},
    "sets": {((1, 2), 3), 2j, "a"},
    "types of tensors": [torch.FloatTensor, torch.cuda.HalfTensor, torch.sparse.LongTensor],
    "a history": [{"loss": 0.5, "accuracy": 1.5, "step": step} for step in range(1000)],
    "states": [torch.get_rng_state(), torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).state_dict()],
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", BESIDE)
def test_what_torch_reads_beside_the_weights_is_no_reason_to_refuse(net, tmp_path, beside, zipped):
    held = {"state_dict": net.state_dict(), "beside": BESIDE[beside]}
    torch.save(held, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert torch.load(tmp_path / "a.pt", weights_only=True)["beside"]
    same(read(tmp_path / "a.pt").state, net.state_dict())


def test_every_name_that_torch_reads_without_code_is_known():
    from torch._weights_only_unpickler import _get_allowed_globals

    assert set(_get_allowed_globals()) <= set(_TABLE) | {"torch.storage.TypedStorage"}  # abstract: no file names it


def test_truth_values_are_0_or_1_whatever_the_bytes(tmp_path):
    held = torch.tensor([7, 255, 0], dtype=torch.uint8).view(torch.bool)
    torch.save({"w": held}, tmp_path / "a.pt")
    save_file({"w": held}, tmp_path / "a.safetensors")
    for file in ("a.pt", "a.safetensors"):
        assert read(tmp_path / file).state["w"].view(torch.uint8).tolist() == [1, 1, 0]


def refused(file, match, remedy=""):
    for look in (read, inspect_file):
        with pytest.raises(CheckpointRefused, match=match) as caught:
            look(file)
        assert caught.value.exit_code == 5
        assert caught.value.remedy
        assert remedy in caught.value.remedy


def assert_the_way_works(folder, file, net):
    """The code that the refusal prints makes a file that is read."""
    with pytest.raises(CheckpointRefused) as caught:
        read(file)
    code = "import torch" + caught.value.remedy.partition("import torch")[2]
    exec(code.replace("'weights.pt'", repr(str(folder / "weights.pt"))))
    same(read(folder / "weights.pt").state, net.state_dict())


@pytest.mark.parametrize("form", [lambda s: {"model": s}, lambda s: s])
def test_weights_beside_an_object_are_saved_alone(net, tmp_path, form):
    torch.save({**form(net.state_dict()), "folder": Path("x")}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "asks to run code.*pathlib")
    assert_the_way_works(tmp_path, tmp_path / "a.pt", net)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}])
def test_a_pickled_module_is_refused(net, tmp_path, zipped, wrap):
    torch.save(wrap(net), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "whole.pt", "pickled module.*torch.nn", "m.state_dict(), 'weights.pt'")
    assert_the_way_works(tmp_path, tmp_path / "whole.pt", net)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_pickle_does_not_run(net, tmp_path, zipped):
    trace, file = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"state_dict": net.state_dict(), "x": Touch(trace)}, file, _use_new_zipfile_serialization=zipped)
    refused(file, "asks to run code.*it was not run")
    assert not trace.exists()
    torch.load(file, weights_only=False)  # the file would have done it
    assert trace.exists()


def test_a_malicious_plain_pickle_does_not_run(tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps(Touch(trace)))
    refused(file, "plain pickle")
    assert not trace.exists()


def test_torchscript_is_refused(net, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer releases, about the kind's end
        torch.jit.script(net).save(str(tmp_path / "script.pt"))
    refused(tmp_path / "script.pt", "TorchScript", "state_dict")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"hello, world\n" * 50, "not a checkpoint"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (bytes(range(256)) * 8, "not a checkpoint"),
        (b"\x10\0\0\0\0\0\0\0{not json at all", "damaged"),
        (b"PK\x03\x04 and nothing after it", "damaged"),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "damaged"),
    ],
)
def test_other_content_is_refused(tmp_path, content, match):
    (tmp_path / "a.pt").write_bytes(content)
    refused(tmp_path / "a.pt", match)


@given(
    content=st.binary(max_size=300), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x20\0\0\0\0\0\0\0{"])
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_refused(tmp_path, content, start):
    (tmp_path / "a.pt").write_bytes(start + content)
    with pytest.raises(CheckpointRefused):
        read(tmp_path / "a.pt")


def test_foreign_zips_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    refused(tmp_path / "a.npz", r"NumPy \.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "a.zip", "another program")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_anywhere(net, tmp_path, kind):
    whole = tmp_path / "whole"
    if kind == "safetensors":
        write_model(whole, net, arch=None, args={}, data={})
    else:
        torch.save(net.state_dict(), whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    lengths = torch.randint(1, len(content), (40,), generator=torch.Generator().manual_seed(0)).tolist()
    for length in [*lengths, 7, 8, 20, len(content) - 1]:
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(CheckpointRefused):
            read(tmp_path / "cut")


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ([1, 2, 3], "a list"),
        ({}, "empty"),
        (torch.zeros(3), "a Tensor"),
        ({"epoch": 3, "lr": 0.1}, "a dict with 'epoch', 'lr'"),
        ({"optimizer": {"state": {"a": torch.zeros(3)}}}, "no weights"),
        (
            {"generator": {"a": torch.zeros(3)}, "critic": {"a": torch.ones(3)}},
            "several networks: 'generator', 'critic'",
        ),
        ({"format": "prunetaylor", "version": 2, "state_dict": {"a": torch.zeros(3)}}, "newer prunetaylor"),
        ({"format": "prunetaylor", "version": 1, "arch": 3, "state_dict": {"a": torch.zeros(3)}}, "malformed: arch"),
        ({"format": "prunetaylor", "version": 1, "args": [3], "state_dict": {"a": torch.zeros(3)}}, "malformed: args"),
        ({"format": "prunetaylor", "version": 1, "arch": None}, "no weights"),
    ],
)
def test_files_without_one_state_dict_are_refused(tmp_path, held, match):
    torch.save(held, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", match)


def test_colliding_names_are_refused(tmp_path):
    torch.save({"a._orig_mod.b": torch.zeros(3), "a.b": torch.zeros(3)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "two tensors have the same name")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinite_weights_are_named(net, tmp_path, bad):
    net[4].weight.data[1, 2:4] = bad
    net[0].bias.data[0] = bad
    torch.save(net.state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointRefused, match=r"'0\.bias' has NaN or infinite values \(1 of 4\); 1 more tensors"):
        read(tmp_path / "a.pt")
    assert {t.name: t.nonfinite for t in inspect_file(tmp_path / "a.pt").tensors if t.nonfinite} == {
        "0.bias": 1,
        "4.weight": 2,
    }


def test_an_attention_mask_may_be_infinite(tmp_path):
    mask = torch.full((3, 3), float("-inf")).triu(1)
    torch.save({"mask": mask, "weight": torch.ones(3)}, tmp_path / "a.pt")
    torch.testing.assert_close(read(tmp_path / "a.pt").state["mask"], mask)


def test_quantised_tensors_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of some releases, about the kind's end
        tensor = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    torch.save({"weight": tensor}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "'weight' is quantised")


def test_sparse_tensors_become_dense(tmp_path):
    torch.save({"weight": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    torch.testing.assert_close(read(tmp_path / "a.pt").state["weight"], torch.eye(3))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have(tmp_path, name):
    with pytest.raises(UsageError, match="cannot read"):
        read(tmp_path / name)


@pytest.mark.parametrize("look", [read, inspect_file])
def test_nothing_there(tmp_path, look):
    (tmp_path / "model.pt").touch()
    with pytest.raises(UsageError, match=r"modle\.pt.*'model\.pt'") as caught:
        look(tmp_path / "modle.pt")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"no such file"):
        look(tmp_path / "nowhere" / "model.pt")
    with pytest.raises(UsageError, match=r"is a directory without model\.safetensors"):
        look(tmp_path)


def test_inspection_counts_zeros_and_ties(tmp_path):
    net = nn.Module()
    net.a = nn.Linear(4, 4, bias=False)
    net.b = nn.Linear(4, 4, bias=False)
    net.a.weight.data[:3] = 0
    net.b.weight = net.a.weight
    write_model(tmp_path / "a", net, arch="net.py:f", args={}, data={})
    seen = inspect_file(tmp_path / "a")
    assert [(t.name, t.tied_to, t.nonzero, t.sparsity) for t in seen.tensors] == [
        ("a.weight", None, 4, 0.75),
        ("b.weight", "a.weight", 4, 0.75),
    ]
    assert (seen.elements, seen.nonzero, seen.sparsity) == (16, 4, 0.75)
    assert seen.metadata.arch == "net.py:f"
    assert json.dumps(seen.metadata.args) == "{}"
