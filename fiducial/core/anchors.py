"""How frozen networks move: the share of the policy that enters one before a step."""

from __future__ import annotations

import math


def trust_region(step: int, steps: int, *, alpha: float = 0.6, sync_steps: int = 512) -> float:
    """`alpha` before every `sync_steps`-th step (Gorbatovski et al. 2024, arXiv:2404.09656); 1 is the hard update.

    >>> [trust_region(step, 6, sync_steps=2) for step in range(5)]
    [0.0, 0.0, 0.6, 0.0, 0.6]
    """
    return alpha if step and step % sync_steps == 0 else 0.0


def rounds(step: int, steps: int, *, iterations: int = 3) -> float:
    """A hard update at the start of each of `iterations` rounds, the first excepted.

    >>> [rounds(step, 6) for step in range(6)]
    [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    """
    length = math.ceil(steps / iterations)
    return 1.0 if step and step % length == 0 else 0.0
