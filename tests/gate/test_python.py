"""What Python callers meet of the gate."""

import pytest
from torch import nn

from prunetaylor import prune
from prunetaylor.errors import UsageError


def test_prune_from_python_writes_no_file_that_could_be_judged() -> None:
    with pytest.raises(UsageError, match=r"gate\.max_drop judges files"):
        prune(nn.Linear(2, 2), None, settings={"gate.max_drop": 0.5})
