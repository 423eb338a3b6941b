"""Closed forms that trained policies are held to. All float64; distributions are compared in max-norm."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import torch
from torch import Tensor


def rlhf_optimum(ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """argmax of E r - beta KL(pi || ref): ref exp(r / beta) / Z, rows of [..., A].

    >>> rlhf_optimum(torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, 0.0, -1.0]).double(), 0.5)
    tensor([0.9187, 0.0746, 0.0067], dtype=torch.float64)
    """
    return (ref.log() + rewards / beta).softmax(-1)


def ipo_optimum(ref: Tensor, preference: Tensor, law: Tensor, beta: float) -> Tensor:
    """argmax of E P(y beats law) - beta KL(pi || ref) (Azar et al. 2023): ref exp(P law / beta) / Z.

    preference [A, A], P[i, j] = P(i beats j); law [A] is what opponents are drawn from.
    """
    return (ref.log() + preference @ law / beta).softmax(-1)


def bradley_terry(rewards: Tensor) -> Tensor:
    """P[..., i, j] = sigmoid(r_i - r_j): [..., A] -> [..., A, A]."""
    return torch.sigmoid(rewards[..., :, None] - rewards[..., None, :])


def expected_reward_gradient(parameters: Tensor, objective: Callable[[], Tensor]) -> Tensor:
    """Gradient of an exactly enumerated objective with respect to `parameters`."""
    (gradient,) = torch.autograd.grad(objective(), parameters)
    return gradient


def grpo_factor(success: float, group_size: int, epsilon: float = 0.0, std: str = "population") -> float:
    """c_G(p): with binary rewards the expected GRPO gradient is c_G(p) grad p.

    k of G succeed with a binomial chance; the group then contributes the mean of A grad log pi over its members, in
    expectation s(k) / (p (1 - p)) grad p with s(k) = q (1 - q) / (spread + epsilon), q = k / G.

    >>> round(grpo_factor(0.3, 2), 12)  # G = 2: exactly 1
    1.0
    >>> round(grpo_factor(0.3, 4, std="none"), 12)  # mean-only: 1 - 1/G
    0.75
    """
    p, total = success, 0.0
    for k in range(1, group_size):
        q = k / group_size
        spread = (q * (1 - q)) ** 0.5
        if std == "sample":
            spread *= (group_size / (group_size - 1)) ** 0.5
        scale = 1.0 if std == "none" else spread + epsilon
        total += comb(group_size, k) * p**k * (1 - p) ** (group_size - k) * q * (1 - q) / scale
    return total / (p * (1 - p))
