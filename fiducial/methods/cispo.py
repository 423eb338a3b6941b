"""Clipped importance sampling weights, CISPO (MiniMax 2025, arXiv:2506.13585), eq. 4 and 5.

    grad L = -clip(rho, 1 - clip_low, 1 + clip_high) A grad log pi(y_t | x, y_<t)        averaged over all tokens

The weight is clipped and detached, so no token ever loses its gradient, as those outside PPO's clip do. The loss is
written as the function that has this gradient, A times the integral of clip(exp(u)) over u = log rho: its value then
falls as it is minimised. The papers leave the weight free below (clip_low 1) and do not tell the bound above; a weight
of at most 5 is ScaleRL's (arXiv:2510.13786).
"""

import math

import torch
from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import Method, Range
from fiducial.methods.grpo import METHOD as GRPO


def cispo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 1.0, clip_high: float = 4.0
) -> Tensor:
    """Per token, minimised: three [B, L] -> [B, L].

    >>> logprobs = torch.tensor([[0.0, 2.0]], requires_grad=True)  # ratios 1 and 7.4, which is clipped at 5
    >>> cispo(logprobs, torch.zeros(1, 2), torch.ones(1, 2)).sum().backward()
    >>> logprobs.grad
    tensor([[-1., -5.]])
    """
    u = logprobs - old_logprobs
    low, high = 1 - clip_low, 1 + clip_high
    inside = torch.exp(u.clamp(-20, math.log(high)))
    integral = torch.where(u > math.log(high), high * (1 + u - math.log(high)), inside)
    if low > 0:
        integral = torch.where(u < math.log(low), low * (1 + u - math.log(low)), integral)
    return -advantages * integral


METHOD = Method(
    title="Clipped importance sampling weights",
    family="policy optimisation",
    paper="arXiv:2506.13585",
    feed="groups",
    loss=cispo,
    per="token",
    credit=credit.group_normalized,
    min_group=2,
    target="success_gradient",
    choices={"std": GRPO.choices["std"]},
    ranges={"clip_low": Range(0, 1), "clip_high": Range(0), "std_epsilon": Range(0)},
)
