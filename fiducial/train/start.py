"""The weights that a run began with, to measure how far training has moved them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.evals.diagnostics import squared_distance, weights_distance
from fiducial.train.learner import Learner
from fiducial.train.runtime import Runtime


class Start:
    """Copies on the CPU of the weights that train, under FSDP of this rank's share of them.

    To be made before a checkpoint is restored: a run that goes on is measured from where it first began.
    """

    def __init__(self, learner: Learner):
        self.weights = [weight.detach().to("cpu", copy=True) for weight in trained(learner)]

    @property
    def bytes(self) -> int:
        """What the copies take."""
        return sum(weight.numel() * weight.element_size() for weight in self.weights)

    @torch.no_grad()
    def distance(self, learner: Learner, runtime: Runtime) -> dict[str, float]:
        """`weights_distance` of the weights as they are now, over all ranks."""
        return weights_distance(runtime.gather(squared_distance(trained(learner), self.weights)))


def trained(learner: Learner) -> list[Tensor]:
    """The weights that have a gradient; of those that are spread over ranks this rank's share."""
    weights: list[Any] = [weight for weight in learner.parameters() if weight.requires_grad]
    return [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights]
