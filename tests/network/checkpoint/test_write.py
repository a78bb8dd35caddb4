"""Writing: what is read back is what was written, ties and views included, and a failure leaves nothing behind."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from prunetaylor.core.errors import OutputError, UsageError
from prunetaylor.network.checkpoint.load import load
from prunetaylor.network.checkpoint.read import read
from prunetaylor.network.checkpoint.write import model_bytes, write_model, write_pt


class Tied(nn.Module):
    """An embedding whose weights are the head's too, views of one storage, and awkward buffers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        both = torch.arange(6.0)
        self.register_buffer("left", both[:3])
        self.register_buffer("right", both[3:])
        self.register_buffer("whole", both)
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("none", torch.zeros(0))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("brain", torch.randn(3, dtype=torch.bfloat16))


@pytest.mark.parametrize("write", [write_model, write_pt])
def test_ties_views_and_dtypes_come_back(tmp_path, write):
    net = Tied()
    write(tmp_path / "a", net, arch=None, args={}, data={})
    found = read(tmp_path / "a").state
    wanted = net.state_dict()
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    file = tmp_path / "tied_net.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 50, bias=False))\n"
        "    net[1].weight = net[0].weight\n"
        "    return net\n"
    )
    spec = f"{file}:make"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 50, bias=False))
    net[1].weight = net[0].weight
    write_model(tmp_path / "ours", net, arch=spec, args={}, data={})
    with safe_open(tmp_path / "ours", framework="pt") as opened:
        assert list(opened.keys()) == ["0.weight"]
    # a file of others names the tied tensor once and says nothing
    safetensors.torch.save_file({"1.weight": net[1].weight.detach()}, tmp_path / "theirs")
    for name in ("ours", "theirs"):
        again = load(tmp_path / name, arch=spec)
        assert again[0].weight is again[1].weight
        torch.testing.assert_close(again[0].weight, net[0].weight, rtol=0, atol=0)


def test_our_pt_opens_without_us_and_without_code(net, tmp_path):
    write_pt(tmp_path / "model.pt", net, arch="builtin:lenet", args={}, data={"source": "digits"})
    held = torch.load(tmp_path / "model.pt", weights_only=True)
    assert (held["format"], held["version"], held["arch"], held["data"]) == (
        "prunetaylor",
        1,
        "builtin:lenet",
        {"source": "digits"},
    )
    net.load_state_dict(held["state_dict"], strict=True)


def test_our_safetensors_opens_without_us(net, tmp_path):
    write_model(tmp_path / "a.safetensors", net, arch="net.py:f", args={"n": 3}, data={})
    held = safetensors.torch.load_file(tmp_path / "a.safetensors")
    net.load_state_dict(held, strict=True)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["prunetaylor"])["args"] == {"n": 3}


def test_model_bytes_is_the_size_without_a_description(net, tmp_path):
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "bare", {"format": "pt"})
    assert model_bytes(net) == (tmp_path / "bare").stat().st_size
    assert write_model(tmp_path / "full", net, arch=None, args={}, data={}) > model_bytes(net)


@pytest.mark.parametrize("write", [write_model, write_pt])
def test_an_old_file_is_replaced_and_its_mode_is_usual(net, tmp_path, write):
    (tmp_path / "a").write_text("old")
    (tmp_path / "usual").write_text("")
    write(tmp_path / "a", net, arch=None, args={}, data={})
    assert read(tmp_path / "a").form == "prunetaylor"
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "usual"]


@pytest.mark.parametrize("write", [write_model, write_pt])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(net, tmp_path, monkeypatch, write, failure):
    def fail(*_):
        raise failure

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr("os.replace", fail)
    expected = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write(tmp_path / "a", net, arch=None, args={}, data={})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_that_is_not_there(net, tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*a\.safetensors: .*No such file"):
        write_model(tmp_path / "nowhere" / "a.safetensors", net, arch=None, args={}, data={})


@pytest.fixture
def small_disk():
    """Files may have 2,000 bytes: as on a full disk, writing fails in the middle."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", [write_model, write_pt])
def test_a_full_disk(tmp_path, small_disk, write):
    with pytest.raises(OutputError, match="cannot write") as caught:
        write(tmp_path / "a", nn.Linear(100, 100), arch=None, args={}, data={})
    assert "free space" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_model, write_pt])
@pytest.mark.parametrize("args", [{"layer": nn.ReLU()}, {"x": float("nan")}])
def test_a_description_that_is_no_json(net, tmp_path, write, args):
    with pytest.raises(UsageError, match="must be JSON"):
        write(tmp_path / "a", net, arch="net.py:f", args=args, data={})
    assert list(tmp_path.iterdir()) == []


def test_the_same_network_gives_the_same_bytes(tmp_path):
    net = nn.Linear(2, 2)
    for k in range(12):
        write_model(tmp_path / str(k), net, arch="für:x", args={"größe": 1}, data={})
    assert len({(tmp_path / str(k)).read_bytes() for k in range(12)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as opened:
        assert set(opened.metadata()) == {"format", "prunetaylor"}
    assert b'{"__metadata__":{"format":"pt","prunetaylor":' in (tmp_path / "0").read_bytes()[:80]
