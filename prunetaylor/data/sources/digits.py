"""digits: the 1,797 handwritten digits of the UCI test set that scikit-learn bundles, 1x8x8 in [0, 1].

Every run sees the same split, 20 % of each class for the test, whatever its seed.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import UsageError
from prunetaylor.core.requirements import install_hint
from prunetaylor.data.samples import RawSource, TensorSplit

TEST_SHARE = 0.2
_SPLIT_SEED = 0


def read(argument: str, cfg: DataSection, seed: int) -> RawSource:
    """Inputs float32 (N, 1, 8, 8), targets int64 (N,). UsageError without scikit-learn."""
    if argument:
        raise UsageError(f"the source digits takes no argument, not {argument!r}", "use just: digits")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            f"the digits come with scikit-learn, which cannot be imported: {error}", install_hint("scikit-learn")
        ) from error
    bunch = load_digits()
    inputs = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16).unsqueeze(1)
    targets = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    whole = TensorSplit(inputs, targets)
    test = _test_indices(targets.tolist())
    train = sorted(set(range(len(whole))) - set(test))
    return RawSource(
        train=TensorSplit(*whole.fetch(train)),
        test=TensorSplit(*whole.fetch(test)),
        validation=None,
        classes=10,
        augment="none",
    )


def _test_indices(targets: list[int]) -> list[int]:
    chooser = random.Random(_SPLIT_SEED)
    chosen: list[int] = []
    for label in sorted(set(targets)):
        members = [index for index, target in enumerate(targets) if target == label]
        chosen += chooser.sample(members, round(TEST_SHARE * len(members)))
    return sorted(chosen)
