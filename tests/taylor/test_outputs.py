"""The tensor that counts in what a network returns, and its form."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError
from prunetaylor.network.state import copy_module
from prunetaylor.taylor.outputs import (
    OutputForm,
    clear_output_form,
    describe_path,
    parse_path,
    read_outputs,
    set_output_form,
    tensors_in,
)
from support.samples import rand

Z, FEATURES = rand(2, 3), rand(2, 5, seed=1)
Pair = namedtuple("Pair", "features scores")


@dataclass
class Output:
    features: Tensor
    scores: Tensor
    loss: Tensor | None = None


def test_without_a_form_it_is_the_logits_or_the_first_tensor() -> None:
    module = nn.Identity()
    for result in (Z, {"logits": Z}, {"out": Z, "aux": 1}, SimpleNamespace(logits=Z), (Z, "state"), [Z], (1, Z)):
        assert torch.equal(read_outputs(module, result), Z)
    assert read_outputs(module, rand(2, 3, 4, 5)).shape == (2, 60)
    assert read_outputs(module, rand(4)).shape == (4, 1)
    for nothing in ("no", None, torch.ones(2, dtype=torch.complex64), {}):
        with pytest.raises(DataError, match="not a tensor of real numbers"):
            read_outputs(module, nothing)


@pytest.mark.parametrize(
    ("result", "path"),
    [
        ((FEATURES, Z), "1"),
        ((FEATURES, Z), "-1"),
        ({"features": FEATURES, "scores": Z}, "scores"),
        ({"features": FEATURES, "scores": Z}, "1"),
        (OrderedDict(features=FEATURES, scores=Z), "scores"),
        (Pair(FEATURES, Z), "scores"),
        (Pair(FEATURES, Z), "1"),
        (Output(FEATURES, Z), "scores"),
        (SimpleNamespace(features=FEATURES, scores=Z), "scores"),
        ({"heads": [FEATURES, Z]}, "heads.1"),
    ],
)
def test_a_path_leads_to_a_tensor(result: object, path: str) -> None:
    assert torch.equal(OutputForm(parse_path(path)).read(result), Z)
    assert len(tensors_in(result)) == 2
    known = [describe_path(p) for p, tensor in tensors_in(result).items() if tensor is Z]
    assert torch.equal(OutputForm(parse_path(known[0])).read(result), Z)


def test_a_path_that_leads_nowhere_names_those_that_there_are() -> None:
    with pytest.raises(DataError, match=r"no output logits.*\n.*one of features, scores"):
        OutputForm(("logits",)).read(Output(FEATURES, Z))
    with pytest.raises(DataError, match="the output loss is a NoneType"):
        OutputForm(("loss",)).read(Output(FEATURES, Z))


def test_layouts() -> None:
    image, text = rand(2, 3, 4, 5), rand(2, 6, 3)
    pixels = OutputForm(axes="channels").read(image)
    assert pixels.shape == (2, 20, 3)
    assert torch.equal(pixels[1, 7], image[1, :, 1, 2])
    assert torch.equal(OutputForm(axes="positions").read(text), text)
    assert OutputForm(axes="positions").read(image).shape == (2, 12, 5)
    assert OutputForm(axes="own").read(image) is image


def test_copies_of_a_network_have_its_form() -> None:
    module = nn.Linear(2, 3)
    set_output_form(module, OutputForm((1,)))
    copied = copy_module(module)
    assert torch.equal(read_outputs(copied, (FEATURES, Z)), Z)
    assert "_prunetaylor_output_form" not in module.state_dict()
    clear_output_form(copied)
    assert torch.equal(read_outputs(copied, (FEATURES, Z)), FEATURES)
