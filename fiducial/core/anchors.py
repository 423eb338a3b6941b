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


def reference_reset(
    step: int,
    steps: int,
    seen: dict[str, float],
    *,
    reset_every: int = 0,
    reset_stalled: int = 0,
    reset_kl: float = 0.0,
) -> float:
    """A hard update (ProRL, arXiv:2505.24864) every so many steps, after so many evaluations without a better one, or
    when the KL to the reference exceeds so many nats a completion; 0: not for this reason.

    >>> [reference_reset(step, 5, {}, reset_every=2) for step in range(5)]
    [0.0, 0.0, 1.0, 0.0, 1.0]
    >>> reference_reset(3, 5, {"stalled": 2}, reset_stalled=2), reference_reset(3, 5, {"kl": 4.0}, reset_kl=5.0)
    (1.0, 0.0)
    """
    due = bool(reset_every) and step > 0 and step % reset_every == 0
    stalled = bool(reset_stalled) and seen.get("stalled", 0) >= reset_stalled
    far = bool(reset_kl) and seen.get("kl", 0.0) > reset_kl
    return float(due or stalled or far)
