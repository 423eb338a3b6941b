"""Credit under a constraint: reward and cost traded at a multiplier that follows the cost (Dai et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fiducial.core.credit import gae
from fiducial.core.method import Running


def lagrangian(
    state: dict[str, Any],
    token_rewards: Tensor,
    token_costs: Tensor,
    kl_penalty: Tensor,
    costs: Tensor,
    old_values: Tensor,
    old_cost_values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    threshold: float = 0.0,
    lambda_init: float = 1.0,
    lambda_lr: float = 0.1,
    lambda_max: float = 5.0,
    window: int = 128,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Advantages and both returns, [N, L] each, and the multiplier of the next step.

    `token_rewards` has the whole penalty taken off; half of it is given back and half put on the costs.
    """
    recent = [*state["recent"], *costs.tolist()][-window:]
    multiplier = state["lambda"] if state["lambda"] > 0 else lambda_init
    if recent:
        excess = sum(recent) / len(recent) + threshold
        multiplier = min(multiplier * math.exp(min(lambda_lr * multiplier * excess, 20.0)), lambda_max)
    gain, returns = gae(token_rewards + kl_penalty / 2, old_values, mask, gamma, lam)
    harm, cost_returns = gae(token_costs + kl_penalty / 2, old_cost_values, mask, gamma, lam)
    gain, harm = gain / (1 + multiplier), multiplier * harm / (1 + multiplier)
    parts = {"advantages": gain - harm, "reward_advantages": gain, "cost_advantages": harm}
    return {**parts, "returns": returns, "cost_returns": cost_returns}, {"lambda": multiplier, "recent": recent}


CREDIT = Running(init=lambda: {"lambda": 0.0, "recent": []}, update=lagrangian, shown=("lambda",))
