"""Rewards out of several sources and of lengths, before credit: penalties of one completion, and what needs its group.

A group is the completions of one prompt. NaN stands for a source that does not apply to a completion: it is no zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fiducial.core.credit import ZERO_STD


def overlong_penalty(length: int, max_length: int, cache: int) -> float:
    """DAPO's soft punishment of length (Yu et al. 2025, arXiv:2503.14476, eq. 13), in [-1, 0].

    0 up to `max_length` - `cache` tokens, then falling in a straight line to -1 at `max_length`, and -1 beyond.

    >>> [overlong_penalty(length, max_length=20, cache=4) for length in (16, 17, 20, 99)]
    [0.0, -0.25, -1.0, -1.0]
    """
    if not 0 <= cache <= max_length:
        raise ValueError(f"cache must be from 0 to max_length = {max_length}; it is {cache}")
    over = length - (max_length - cache)
    if over <= 0:
        return 0.0
    return -min(over / cache, 1.0) if cache else -1.0


def length_reward(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """Kimi k1.5's length reward of a group (2025, arXiv:2501.12599, section 2.3.3), in [-0.5, 0.5].

    lambda = 0.5 - (length - shortest) / (longest - shortest); a correct completion gets lambda, a wrong one min(0,
    lambda), so that none is paid for being short and wrong. All 0 when all are as long. The paper adds it to the reward
    after a warm-up without.

    >>> length_reward([10, 20, 30], [True, True, False]), length_reward([10, 30], [False, True])
    ([0.5, 0.0, -0.5], [0.0, -0.5])
    """
    if len(lengths) != len(correct):
        raise ValueError(f"one verdict per length: there are {len(lengths)} lengths and {len(correct)} verdicts")
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    if shortest == longest:
        return [0.0] * len(lengths)
    lam = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [x if right else min(0.0, x) for x, right in zip(lam, correct, strict=True)]


def normalised(rewards: Tensor, *, std_epsilon: float = 0.0) -> Tensor:
    """Rewards [..., G] of groups, centred and divided by the group's population standard deviation.

    NaN is left out and stays NaN; a group without spread is 0.

    >>> normalised(torch.tensor([1.0, 3.0, torch.nan]))
    tensor([-1.,  1., nan])
    """
    exact = rewards.double()
    mean = exact.nanmean(-1, keepdim=True)
    centred = exact - mean
    std = centred.square().nanmean(-1, keepdim=True).sqrt()
    flat = std <= ZERO_STD * mean.abs().clamp(min=1.0)
    scaled = torch.where(flat, torch.zeros_like(centred), centred / (std + std_epsilon).masked_fill(flat, 1.0))
    return scaled.masked_fill(exact.isnan(), math.nan).to(rewards.dtype)


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k R_k of sources [K, G] over those that apply; NaN where none does. [G]"""
    known = ~rewards.isnan()
    total = (rewards.nan_to_num(0.0, posinf=math.inf, neginf=-math.inf) * weights[:, None] * known).sum(0)
    return total.masked_fill(~known.any(0), math.nan)


def sum_then_normalise(rewards: Tensor, weights: Tensor, *, std_epsilon: float = 0.0) -> Tensor:
    """The sources [K, G] of a group weighted and added, then normalised. [G]"""
    return normalised(weighted_sum(rewards, weights), std_epsilon=std_epsilon)


def normalise_then_sum(rewards: Tensor, weights: Tensor, *, std_epsilon: float = 0.0) -> Tensor:
    """Each source [K, G] normalised within the group, so that its weight is its say whatever its scale; then added. [G]

    Not normalised again: with one source of weight 1 it equals `sum_then_normalise`; of two with equal weights the one
    with the larger spread has no more say than the other.
    """
    return weighted_sum(normalised(rewards, std_epsilon=std_epsilon), weights)
