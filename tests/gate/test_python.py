"""What Python callers meet of the gate."""

import pytest
from torch import nn

from prunetaylor import prune
from prunetaylor.core.errors import UsageError


def test_prune_from_python_writes_no_file_that_could_be_judged() -> None:
    with pytest.raises(UsageError, match=r"gate\.max_drop concerns files"):
        prune(nn.Linear(2, 2), None, settings={"gate.max_drop": 0.5})


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("track", ["tensorboard"], "progress"),
        ("checkpoint.every", 5, "can resume a run"),
        ("output", "runs/mine", r"outcome\.save"),
        ("model.arch", "torchvision:resnet18", "the network itself"),
        ("data.normalize", "imagenet", "normalize="),
    ],
)
def test_what_has_no_effect_from_python_is_refused(key: str, value: object, instead: str) -> None:
    with pytest.raises(UsageError, match=rf"{key} concerns files(.|\n)*{instead}"):
        prune(nn.Linear(2, 2), None, settings={key: value})
