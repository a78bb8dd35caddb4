"""Which network a checkpoint is: named, said or found; loaded strictly; untrusted code never imported."""

import os
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from prunetaylor.core.errors import CheckpointRefused, UsageError
from prunetaylor.network.checkpoint.architecture.build import build_network
from prunetaylor.network.checkpoint.architecture.builtin import NETWORKS
from prunetaylor.network.checkpoint.architecture.factory import build
from prunetaylor.network.checkpoint.architecture.torchvision_match import Match, _reference, match
from prunetaylor.network.checkpoint.inspect import inspect_file
from prunetaylor.network.checkpoint.load import load
from prunetaylor.network.checkpoint.read import read
from prunetaylor.network.checkpoint.write import write_model, write_pt
from prunetaylor.runtime.torchvision_import import import_torchvision
from prunetaylor.runtime.user_code import load_object

ROOT = Path(__file__).parents[3]


def tv(name, **args):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return import_torchvision().models.get_model(name, weights=None, **args).eval()


def saved(tmp_path, state, name="a.pt"):
    torch.save(state, tmp_path / name)
    return read(tmp_path / name)


def same_outputs(one, other, shape):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x))


def test_named_by_the_user(net, network_file, tmp_path, capsys):
    found = build_network(f"{network_file}:make", {"num_classes": 3}, saved(tmp_path, net.state_dict()))
    assert (found.spec, found.args) == (f"{network_file}:make", {"num_classes": 3})
    assert not found.module.training
    same_outputs(found.module, net, (1, 4, 4))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "imported\n")


def test_half_precision_files_load_into_the_network_as_it_is_built(net, network_file, tmp_path):
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    found = build_network(f"{network_file}:make", None, saved(tmp_path, state)).module
    assert found[0].weight.dtype == torch.float32
    torch.testing.assert_close(found[0].weight, net[0].weight.bfloat16().float(), rtol=0, atol=0)


def test_the_callers_random_stream_is_untouched(net, network_file, tmp_path):
    before = torch.random.get_rng_state()
    build_network(f"{network_file}:make", None, saved(tmp_path, net.state_dict()))
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)


@pytest.mark.parametrize("write", [write_model, write_pt])
@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 8, 8)), ("lenet", (1, 28, 28))])
def test_built_in_networks_say_what_they_are(tmp_path, write, name, shape):
    net = NETWORKS[name](num_classes=7).eval()
    write(tmp_path / "a", net, arch=f"builtin:{name}", args={"num_classes": 7}, data={})
    found = build_network(None, None, read(tmp_path / "a"))
    assert (found.spec, found.args) == (f"builtin:{name}", {"num_classes": 7})
    assert "from the checkpoint" in found.reason
    same_outputs(found.module, net, shape)


def test_lenet_has_the_size_of_the_literature():
    assert sum(p.numel() for p in NETWORKS["lenet"]().parameters()) == 431_080


@pytest.mark.parametrize("write", [write_model, write_pt])
def test_code_that_only_the_file_names_is_not_imported(net, network_file, tmp_path, write):
    write(tmp_path / "a", net, arch=f"{network_file}:make", args={}, data={})
    inspect_file(tmp_path / "a")
    with pytest.raises(CheckpointRefused, match="loading it would run that") as caught:
        load(tmp_path / "a")
    assert f"--arch {network_file}:make" in caught.value.remedy
    assert "--trust-code" in caught.value.remedy
    assert not (tmp_path / "imported").exists()
    same_outputs(load(tmp_path / "a", trust_code=True), net, (1, 4, 4))
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "arch", ["os:getcwd", "antigravity:geohash", "timm.evil:make", "x.py", "/etc/passwd.py:f", "nonsense"]
)
def test_other_things_that_a_file_may_name_are_refused(net, tmp_path, arch):
    write_model(tmp_path / "a", net, arch=arch, args={}, data={})
    with pytest.raises(CheckpointRefused, match=r"would run that|which does not exist"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("arch", "args", "match"),
    [
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "cannot take 'weights'"),
        ("torchvision:resnet999", {}, "no network 'resnet999'"),
        ("builtin:lenet", {"num_clases": 3}, "no argument 'num_clases'; did you mean 'num_classes'"),
        ("builtin:lenets", {}, "did you mean 'lenet'"),
    ],
)
def test_what_a_file_says_wrongly_is_refused(net, tmp_path, arch, args, match):
    write_model(tmp_path / "a", net, arch=arch, args=args, data={})
    with pytest.raises(CheckpointRefused, match=match):
        load(tmp_path / "a")
    with pytest.raises(UsageError, match=match):
        build(arch, args)


def test_arguments_of_the_file_are_for_the_very_factory_that_it_names(net, network_file, tmp_path):
    wide = nn.Sequential(*net[:4], nn.Linear(16, 7))
    spec = f"{network_file}:make"
    write_model(tmp_path / "a", wide, arch=spec, args={"num_classes": 7}, data={})
    assert load(tmp_path / "a", arch=spec)[4].out_features == 7
    write_model(tmp_path / "b", wide, arch="gone/network_file.py:make", args={"num_classes": 7}, data={})
    with pytest.raises(CheckpointRefused, match=r"4\.weight") as caught:
        load(tmp_path / "b", arch=spec)
    assert "made with gone/network_file.py:make" in caught.value.remedy
    assert caught.value.remedy.endswith("add model.args.num_classes=7")
    assert load(tmp_path / "b", arch=spec, args={"num_classes": 7})[4].out_features == 7


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        ("width", 3, True),
        ("act", "relu", True),
        ("norm", "batch_norm 2d", True),
        ("pretrained", False, True),
        ("weights", None, True),
        ("widths", [16, 32, {"last": 64}], True),
        ("weight_scale", 0.5, True),
        ("num_classes", 10, True),
        ("pretrained", True, False),
        ("use_pretrained_backbone", 1, False),
        ("weights", "DEFAULT", False),
        ("encoder_weights", "imagenet", False),
        ("ckpt", "best", False),
        ("download", True, False),
        ("config_file", "base", False),
        ("act", "https://example.org/x", False),
        ("act", "weights.pt", False),
        ("act", "/etc/passwd", False),
        ("act", "__import__('os').system('true')", False),
        ("act", "there", False),
        ("parts", ["relu", ["../x"]], False),
        ("parts", {"path": "x"}, False),
    ],
)
def test_arguments_of_a_file_open_nothing(tmp_path, monkeypatch, name, value, passes):
    (tmp_path / "there").write_text("a file of that name")
    (tmp_path / "f.py").write_text(
        "from torch import nn\ncalls = []\ndef make(**given):\n    calls.append(given)\n    return nn.Linear(2, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a", nn.Linear(2, 2), arch="f.py:make", args={name: value}, data={})
    calls = load_object("f.py:calls")
    if passes:
        load(tmp_path / "a", arch="f.py:make")
        assert calls == [{name: value}]
        return
    with pytest.raises(CheckpointRefused, match="gives its network") as caught:
        load(tmp_path / "a", arch="f.py:make")
    assert f"model.args.{name}=" in caught.value.remedy
    assert calls == []
    load(tmp_path / "a", arch="f.py:make", args={name: value})  # the user's own word
    load(tmp_path / "a", trust_code=True)
    assert calls == [{name: value}] * 2


def test_a_head_of_another_size_is_named_with_the_remedy(net, network_file, tmp_path):
    checkpoint = saved(tmp_path, net.state_dict())
    with pytest.raises(CheckpointRefused, match=r"'4\.weight' is 3x16 in the file and 10x16 in") as caught:
        build_network(f"{network_file}:make", {"num_classes": 10}, checkpoint)
    assert caught.value.exit_code == 5
    assert "model.args.num_classes=3" in caught.value.remedy
    assert "--arch" in caught.value.remedy
    with pytest.raises(CheckpointRefused, match=r"fc\.weight.*10x512 .*1000x512") as caught:
        build_network("torchvision:resnet18", None, saved(tmp_path, tv("resnet18", num_classes=10).state_dict()))
    assert "model.args.num_classes=10" in caught.value.remedy


def test_other_shapes_are_named(net, network_file, tmp_path):
    state = {**net.state_dict(), "0.weight": torch.zeros(4, 1, 5, 5)}
    with pytest.raises(CheckpointRefused, match=r"'0\.weight' is 4x1x5x5 in the file and 4x1x3x3"):
        build_network(f"{network_file}:make", None, saved(tmp_path, state))


def test_integer_weights_are_refused(net, network_file, tmp_path):
    state = {**net.state_dict(), "4.weight": torch.ones(3, 16, dtype=torch.int8)}
    with pytest.raises(CheckpointRefused, match=r"'4\.weight' is 3x16 int8 in the file and 3x16 float32"):
        build_network(f"{network_file}:make", None, saved(tmp_path, state))


def test_missing_and_unexpected_tensors_are_named(net, network_file, tmp_path):
    state = net.state_dict()
    del state["0.bias"]
    state["head.bias"] = torch.zeros(3)
    match = (
        r"1 tensors of .* are missing in the file \('0\.bias'\); 1 tensors of the file are not in .* \('head\.bias'\)"
    )
    with pytest.raises(CheckpointRefused, match=match):
        build_network(f"{network_file}:make", None, saved(tmp_path, state))


def test_masks_of_torch_pruning_have_their_own_remedy(net, network_file, tmp_path):
    state = net.state_dict()
    state["4.weight_orig"], state["4.weight_mask"] = state.pop("4.weight"), torch.ones(3, 16)
    with pytest.raises(CheckpointRefused) as caught:
        build_network(f"{network_file}:make", None, saved(tmp_path, state))
    assert "prune.remove" in caught.value.remedy


def test_counters_of_old_batch_norms_may_be_missing(net, network_file, tmp_path):
    state = {k: v for k, v in net.state_dict().items() if "num_batches_tracked" not in k}
    assert build_network(f"{network_file}:make", None, saved(tmp_path, state)).module[1].num_batches_tracked == 0


@pytest.mark.parametrize("head", ["model.", "net."])
def test_a_frameworks_leading_name_is_taken_off(net, network_file, tmp_path, head):
    state = OrderedDict((head + k, v) for k, v in net.state_dict().items())
    same_outputs(build_network(f"{network_file}:make", None, saved(tmp_path, state)).module, net, (1, 4, 4))


def test_a_network_may_really_have_a_module_called_module(net, tmp_path):
    (tmp_path / "outer.py").write_text(
        "from torch import nn\n"
        "class Outer(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.module = nn.Linear(2, 2)\n"
    )
    state = {"module.weight": torch.eye(2), "module.bias": torch.zeros(2)}
    found = build_network(f"{tmp_path / 'outer.py'}:Outer", None, saved(tmp_path, state)).module
    torch.testing.assert_close(found.module.weight.detach(), torch.eye(2))


@pytest.mark.parametrize(
    ("body", "args", "match"),
    [
        ("def make(): raise KeyError('x')", {}, r"raised KeyError: 'x'"),
        ("def make(): return 3", {}, "returned a int, not an nn.Module"),
        ("make = 3", {}, "is a int, not a factory"),
        ("def make(depth): pass", {}, "needs the argument 'depth'"),
        ("def make(depth=3): pass", {"dept": 2}, "no argument 'dept'; did you mean 'depth'"),
        ("from torch import nn\nmake = nn.Linear(2, 2)", {"a": 1}, "is a network, not a factory"),
        ("def other(): pass", {}, "has no 'make'"),
    ],
)
def test_factories_that_fail(tmp_path, body, args, match):
    (tmp_path / "net.py").write_text(body)
    with pytest.raises(UsageError, match=match) as caught:
        build(f"{tmp_path / 'net.py'}:make", args)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("net.py", r"net\.py:FACTORY"),
        ("resnet18", "torchvision:NAME"),
        ("torchvision:resnet81", r"did you mean 'resnet18'|no network 'resnet81'"),
        ("timm:hf-hub:someone/something", "timm"),
    ],
)
def test_specs_that_name_nothing(spec, match):
    with pytest.raises(UsageError, match=match):
        build(spec, {})


def test_a_network_in_a_file_is_taken_as_it_is(net, tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\nmake = nn.Linear(2, 2)\n")
    state = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    found = build_network(f"{tmp_path / 'net.py'}:make", None, saved(tmp_path, state)).module
    torch.testing.assert_close(found.weight.detach(), torch.eye(2))


def test_torchvision_networks_are_found_by_names_and_shapes(tmp_path):
    start = time.perf_counter()
    net = tv("resnet18", num_classes=10)
    found = build_network(None, None, saved(tmp_path, {"state_dict": net.state_dict()}))
    assert (found.spec, found.args) == ("torchvision:resnet18", {"num_classes": 10})
    assert "num_classes=10" in found.reason
    same_outputs(found.module, net, (3, 64, 64))
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {}),
        ("resnext50_32x4d", {"num_classes": 3}),
        ("wide_resnet50_2", {}),
        ("mobilenet_v3_small", {"num_classes": 2}),
    ],
)
def test_each_is_told_from_its_relatives(name, args):
    with torch.device("meta"):
        state = tv(name, **args).state_dict()
    assert match(state) == [Match(f"torchvision:{name}", args)]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_classifier_of_torchvision_is_found():
    models = import_torchvision().models
    for name in models.list_models(module=models):
        shapes = _reference(name, {})
        state = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
        assert match(state) == [Match(f"torchvision:{name}", {})]


def test_a_network_with_auxiliary_heads():
    with torch.device("meta"):
        net = tv("inception_v3", num_classes=4, init_weights=False)
        bare = {k: v for k, v in net.state_dict().items() if not k.startswith("AuxLogits")}
    assert match(net.state_dict()) == [Match("torchvision:inception_v3", {"num_classes": 4})]
    assert match(bare) == [Match("torchvision:inception_v3", {"aux_logits": False, "num_classes": 4})]


@pytest.fixture
def twins(monkeypatch):
    """torchvision with two networks that have the same names and shapes."""
    models = import_torchvision().models
    listed = [*models.list_models(module=models), "twin"]
    build_one, builder = models.get_model, models.get_model_builder
    monkeypatch.setattr(models, "list_models", lambda module=None: listed)
    monkeypatch.setattr(models, "get_model", lambda n, **k: build_one("squeezenet1_1" if n == "twin" else n, **k))
    monkeypatch.setattr(models, "get_model_builder", lambda n: builder("squeezenet1_1" if n == "twin" else n))


def test_ambiguity_is_an_error_that_lists_them_unless_the_file_names_one(twins, tmp_path):
    net = tv("squeezenet1_1", num_classes=2)
    with pytest.raises(UsageError, match="torchvision:squeezenet1_1, torchvision:twin") as caught:
        build_network(None, None, saved(tmp_path, net.state_dict()))
    assert "--arch torchvision:squeezenet1_1" in caught.value.remedy
    named = saved(tmp_path, {"arch": "twin", "state_dict": net.state_dict()})
    assert build_network(None, None, named).spec == "torchvision:twin"


def test_nothing_known_says_how_to_name_it(net, tmp_path):
    with pytest.raises(UsageError, match="does not name its network") as caught:
        build_network(None, None, saved(tmp_path, net.state_dict()))
    assert "--arch FILE.py:FACTORY" in caught.value.remedy


def test_the_example_network_file():
    spec = f"{ROOT / 'configs' / 'resnet20_cifar.py'}:resnet20"
    net = build(spec, {"num_classes": 7}).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert sum(p.numel() for p in build(spec, {}).parameters()) == 269_722


@pytest.mark.shared_data
def test_the_example_network_file_fits_its_checkpoint():
    folder = os.environ.get("PRUNING_TEST_DATA")
    if not folder:
        pytest.skip("PRUNING_TEST_DATA names no folder with resnet20-cifar10-jpeg.pt")
    checkpoint = read(Path(folder) / "resnet20-cifar10-jpeg.pt")
    assert checkpoint.form == "training dict"
    found = build_network(f"{ROOT / 'configs' / 'resnet20_cifar.py'}:resnet20", {}, checkpoint).module
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, checkpoint.state[name], rtol=0, atol=0)
