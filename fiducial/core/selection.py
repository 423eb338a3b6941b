"""One prompt's completions to examples: which is chosen, which rejected, which kept. Pure functions of what is known.

Each takes tensors of one prompt by glossary name (`rewards` [N], `preferences` [N, N], `draws` [N + 1] uniform in
[0, 1)) and returns choices; a prompt that teaches nothing returns none, and the run counts it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fiducial.core.method import Choice

PAIR_RULES = ("best_worst", "best_random", "random_two_labelled")


def by_rule(
    rewards: Tensor, draws: Tensor, *, pair_rule: str = "best_worst", skip_if_score_gap_below: float = 0.0
) -> list[Choice]:
    """One pair of N >= 2 completions (Dong et al. 2024, arXiv:2405.07863, section 3).

    pair_rule: "best_worst"; "best_random", the best against any other; "random_two_labelled", two at random whose
    winner is drawn from Bradley-Terry's sigmoid(r_i - r_j), so that a tie is a fair coin. The other rules make no pair
    of equal rewards. No rule pairs rewards closer than `skip_if_score_gap_below`.

    >>> by_rule(torch.tensor([0.2, 1.0, -1.0]), torch.zeros(4))
    [Choice(members=(1, 2), weight=1.0)]
    """
    if pair_rule == "random_two_labelled":
        first, second = draws[:-1].argsort(stable=True)[:2].tolist()
        wins = float(draws[-1]) < float(torch.sigmoid(rewards[first] - rewards[second]))
        chosen, rejected = (first, second) if wins else (second, first)
    else:
        chosen = int(rewards.argmax())
        others = [i for i in range(len(rewards)) if i != chosen]
        rejected = int(rewards.argmin()) if pair_rule == "best_worst" else others[int(float(draws[-1]) * len(others))]
        if rewards[chosen] == rewards[rejected]:
            return []
    gap = abs(float(rewards[chosen] - rewards[rejected]))
    return [Choice((chosen, rejected))] if gap >= skip_if_score_gap_below else []


def by_preference(preferences: Tensor, draws: Tensor) -> list[Choice]:
    """Disjoint pairs at random, each in both orders with the chance of either as its weight.

    >>> by_preference(torch.tensor([[0.5, 0.75], [0.25, 0.5]]), torch.tensor([0.1, 0.2, 0.0]))
    [Choice(members=(0, 1), weight=0.75), Choice(members=(1, 0), weight=0.25)]
    """
    order = draws[:-1].argsort(stable=True).tolist()
    found = []
    for i, j in zip(order[0::2], order[1::2], strict=False):
        found += [Choice((a, b), float(preferences[a, b])) for a, b in ((i, j), (j, i)) if preferences[a, b] > 0]
    return found


def best(rewards: Tensor, *, keep: int = 1, min_reward: float | None = None) -> list[Choice]:
    """The `keep` completions of highest reward, the first of equal ones; those under `min_reward` are left out.

    >>> best(torch.tensor([0.0, 2.0, 2.0]))
    [Choice(members=(1,), weight=1.0)]
    """
    order = rewards.argsort(descending=True, stable=True)[:keep].tolist()
    return [Choice((i,)) for i in order if min_reward is None or rewards[i] >= min_reward]


def demo_over_samples(draws: Tensor) -> list[Choice]:
    """The row's own completion, number 0, against each sampled one; together they weigh one example.

    >>> demo_over_samples(torch.zeros(3))
    [Choice(members=(0, 1), weight=1.0)]
    """
    samples = len(draws) - 2
    return [Choice((0, i), 1.0 / samples) for i in range(1, samples + 1)]
