"""What a file says of its network, its samples and its run is held against the file before it is followed."""

import json

import pytest
import torch
from torch import nn

from prunetaylor import load
from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.data.inputs import Inputs
from prunetaylor.data.load import _require_small
from prunetaylor.network.checkpoint.architecture.builtin import Digits
from prunetaylor.network.checkpoint.architecture.size_limit import build_bounded
from prunetaylor.network.checkpoint.read import read, sha256
from prunetaylor.network.checkpoint.write import write_model

LARGE = {
    "builtin:digits": [{"num_classes": 3_000_000}, {"num_classes": 10**12}, {"num_classes": -1}],
    "torchvision:resnet18": [{"num_classes": 3_000_000}, {"norm_layer": "x"}],
    "torchvision:vit_b_16": [{"image_size": 224 * 10**6}],
}


@pytest.mark.parametrize("arch", LARGE)
def test_a_file_cannot_ask_for_a_network_far_larger_than_itself(tmp_path, arch):
    for args in LARGE[arch]:
        write_model(tmp_path / "a.safetensors", Digits(), arch=arch, args=args, data={})
        with pytest.raises(CheckpointRefused) as caught:
            load(tmp_path / "a.safetensors")
        assert caught.value.__cause__ is not caught.value  # whoever follows the causes would never end


def test_a_factory_stops_at_its_first_tensor_over_the_limit():
    made = []

    def make():
        made.append(1)
        small = nn.Linear(4, 4)
        float(small.weight.sum())  # needs values
        made.append(2)
        return nn.Sequential(small, nn.Linear(100_000, 1000))

    with pytest.raises(CheckpointRefused, match="far larger"):
        build_bounded(make, {"w": torch.zeros(4, 4)}, "x", {}, known=True)
    assert made == [1, 1, 2]
    assert (
        build_bounded(lambda: nn.Linear(4, 4), {"w": torch.zeros(4, 4)}, "x", {}, known=False).weight.device.type
        == "cpu"
    )


def test_transforms_of_a_file_cannot_make_images_that_fill_the_memory():
    image = Inputs.of(torch.zeros(1, 3, 32, 32))
    _require_small(["RandomHorizontalFlip", {"RandomCrop": {"size": 32, "padding": 4}}], image)
    for one in ({"Pad": {"padding": 16_000}}, {"Resize": {"size": [9999, 9999]}}):
        with pytest.raises(CheckpointRefused, match="augmentation"):
            _require_small([one], image)
    with pytest.raises(CheckpointRefused):
        _require_small([{"Pad": {"padding": 500}}] * 100, image)


def test_a_run_knows_the_file_that_it_wrote(net, tmp_path):
    file = tmp_path / "model.safetensors"
    write_model(file, net, arch=None, args={}, data={})
    (tmp_path / "report.json").write_text(json.dumps({"hashes": {"model": sha256(file)}}))
    assert read(tmp_path).notes == ()
    net[0].weight.data.mul_(2)
    write_model(file, net, arch=None, args={}, data={})
    with pytest.raises(CheckpointRefused, match="not the file that the run") as caught:
        read(tmp_path)
    assert str(file) in caught.value.remedy
    read(file)
    for text in ("{", "[]", '{"hashes": [1]}', '{"hashes": {}}'):
        (tmp_path / "report.json").write_text(text)
        assert bool(read(tmp_path).notes) == (text == "{")
