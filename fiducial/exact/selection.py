"""What choosing among N samples does to a distribution: laws of the best and the worst, and their divergence.

F is the distribution function of a policy in the order of its rewards; responses [A] are drawn N times independently.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def best_of_n(policy: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The law of the sample with the greatest reward, [A]: F(y)^N - F(y-)^N; equal rewards share it in proportion.

    >>> best_of_n(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), 2)  # the worse one only if drawn twice
    tensor([0.2500, 0.7500])
    """
    below = (rewards[None, :] < rewards[:, None]).to(policy.dtype) @ policy
    level = (rewards[None, :] == rewards[:, None]).to(policy.dtype) @ policy
    share = torch.where(level > 0, policy / level, 0.0)
    return share * ((below + level) ** n - below**n)


def worst_of_n(policy: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The law of the sample with the least reward, [A]: (1 - F(y-))^N - (1 - F(y))^N without ties."""
    return best_of_n(policy, -rewards, n)


def best_and_worst(policy: Tensor, rewards: Tensor, n: int) -> Tensor:
    """[A, A]: the chance that of N samples i is the best and j the worst, for rewards without ties.

    All N lie between j and i, at least one of them at each end: M^N - (M - p_i)^N - (M - p_j)^N + (M - p_i - p_j)^N,
    with M the mass from j to i. This is what pairs of best against worst are drawn from.

    >>> best_and_worst(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), 2)
    tensor([[0.2500, 0.0000],
            [0.5000, 0.2500]])
    """
    if len(rewards.unique()) < len(rewards):
        raise ValueError("the joint law of best and worst is for rewards that all differ; these have ties")
    order = rewards.argsort()
    p = policy[order]
    upto = p.cumsum(0)
    mass = upto[:, None] - upto[None, :] + p[None, :]  # from j up to i
    either, both = mass - p[:, None], mass - p[None, :]
    joint = mass**n - either**n - both**n + (either - p[None, :]) ** n
    joint = torch.where(torch.ones_like(joint).tril(-1) > 0, joint, 0.0) + torch.diag(p**n)
    back = order.argsort()
    return joint[back][:, back]


def bon_kl(n: int) -> float:
    """The bound log N - (N - 1) / N on KL(best of N || policy); reached as no response has much mass.

    >>> round(bon_kl(4), 4)
    0.6363
    """
    return math.log(n) - (n - 1) / n
