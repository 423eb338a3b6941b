"""A frozen network beside the policy, such as the reference, which may move toward it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fiducial.core.types import Tokens
from fiducial.train.learner import Learner
from fiducial.train.runtime import Runtime


class Anchor:
    """Frozen weights. `moves` says that they will, so that they belong in checkpoints; `off` switches an adapter off,
    where the frozen model is the policy's own base."""

    def __init__(
        self, learner: Learner, moves: bool = False, off: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    ):
        self.learner, self.moves, self.off = learner, moves, off

    @torch.no_grad()
    def __call__(self, batch: Tokens, want_logits: bool = False) -> dict[str, Tensor]:
        """What `Learner` returns, without gradient."""
        with self.off(self.learner.model):
            return self.learner(batch, want_logits)

    @torch.no_grad()
    def move(self, policy: Learner, share: float, runtime: Runtime) -> None:
        """anchor <- share x policy + (1 - share) x anchor. All ranks take part."""
        whole = dict(policy.named_parameters()) if runtime.world == 1 else runtime.full_state(policy)
        for name, weight in self.learner.named_parameters():
            source = whole[name].to(weight.device, weight.dtype)
            weight.copy_(source) if share == 1 else weight.lerp_(source, share)

    def state(self) -> dict[str, Tensor]:
        """Its weights for a checkpoint."""
        return {name: weight.detach().cpu().clone() for name, weight in self.learner.named_parameters()}

    @torch.no_grad()
    def restore(self, saved: dict[str, Tensor]) -> None:
        """The weights that `state` gave."""
        for name, weight in self.learner.named_parameters():
            weight.copy_(saved[name])
