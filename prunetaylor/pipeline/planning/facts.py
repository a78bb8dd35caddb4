"""The facts that a plan is made from, beside the configuration: plain values, so that decisions are easily tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunetaylor.taylor.convergence import Convergence
from prunetaylor.taylor.objective import Task


@dataclass(frozen=True)
class Facts:
    """The facts about the network, its samples and the device.

    The first half is known when everything is open, the second from the probe of the dense network.
    """

    device: str = "cpu"  # its kind: cpu, cuda or mps
    half_precision: Literal["bf16", "fp16"] | None = None  # the type that a GPU is fast in
    task: Task = "classification"
    task_reason: str = ""  # why its loss is taken
    elimination_work: float = 0.0  # FLOPs of ExactOBS at the dense network, all layers
    cores: int = 1  # of this process, which shares the machine's with the run's others
    decodes: bool = False  # whether samples are decoded whenever they are read
    batch_norms: bool = True  # whether any keeps running statistics
    training_samples: int | None = None  # None: there are no data
    labelled: bool = True  # whether the training samples have labels
    test_labelled: bool = True  # whether the test samples have labels
    has_validation: bool = False  # whether the data come with samples to choose epochs by
    plain_layout: str | None = ""  # why convolutions cannot lie with channels last; None: they can; empty: no gain

    prunable: int = 1  # weights, in layers that can be pruned as far as is known
    zeros: int = 0  # of these, before anything is pruned
    forward_work: float = 0.0  # FLOPs of one sample's forward pass
    convergence: Convergence | None = None  # None: there are no labels, or no data

    @property
    def has_data(self) -> bool:
        """Return whether there are samples."""
        return self.training_samples is not None
