"""Many bandits at once: a softmax table whose every prompt is an experiment of its own, with known gold rewards.

The trainer treats the rows of a table alike and no row touches another, so S prompts are S repetitions: differences
between methods come with intervals over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fiducial.config import Optim
from fiducial.core.types import Tokens
from fiducial.exact.divergences import kl
from fiducial.exact.tables import SoftmaxTable
from fiducial.labs.training import training


@dataclass(frozen=True)
class Pairs:
    """M labelled pairs of each of S bandits: the numbers of the arms, [S, M] each."""

    chosen: Tensor
    rejected: Tensor

    def tokens(self, chosen_only: bool = False) -> Tokens:
        """A batch of pairs, or of the chosen arms as demonstrations."""
        bandit = torch.arange(len(self.chosen))[:, None].expand_as(self.chosen)
        sides = [self.chosen] if chosen_only else [self.chosen, self.rejected]
        ids = torch.cat([torch.stack([bandit, side], -1).reshape(-1, 2) for side in sides])
        mask = torch.tensor([False, True]).repeat(len(ids), 1)
        weight = torch.ones(len(ids), dtype=torch.float64)
        extra = {"lengths": torch.full((len(ids),), 2)}
        return Tokens(ids, mask, weight, torch.arange(len(ids)), extra, pairs=not chosen_only)

    def some(self, number: int, draw: torch.Generator) -> Pairs:
        """`number` of them, drawn with replacement, the same places in each bandit."""
        places = torch.randint(self.chosen.shape[1], (number,), generator=draw)
        return Pairs(self.chosen[:, places], self.rejected[:, places])


class Bandits:
    """S bandits of A arms: gold rewards and the reference's logits are standard normal."""

    def __init__(self, number: int, arms: int, seed: int):
        draw = torch.Generator().manual_seed(seed)
        self.gold, self.ref_logits = torch.randn(2, number, arms, generator=draw, dtype=torch.float64)
        self.ref = self.ref_logits.softmax(-1)

    def pairs(self, policy: Tensor, number: int, draw: torch.Generator) -> Pairs:
        """`number` pairs of arms from each row of `policy` [S, A], labelled by Bradley-Terry on the gold rewards."""
        arms = torch.multinomial(policy, 2 * number, replacement=True, generator=draw)
        first, second = arms.chunk(2, -1)
        gap = self.gold.gather(1, first) - self.gold.gather(1, second)
        wins = torch.rand(gap.shape, generator=draw, dtype=torch.float64) < gap.sigmoid()
        return Pairs(torch.where(wins, first, second), torch.where(wins, second, first))

    def train(
        self, method: str, make: Callable[[int, Tensor], Tokens], lr: float, number: int, **hparams: Any
    ) -> Iterator[Tensor]:
        """The policies [S, A] after each step of the trainer from the reference; `make(step, policy)` gives batches."""
        table = SoftmaxTable(self.ref_logits)
        optim = Optim(lr=lr, schedule="cosine", clip=0.0, rows_per_pass=1_000_000)
        run = training(method, table, lambda step: make(step, table.probabilities()), optim, number, **hparams)
        for _ in run:
            yield table.probabilities()

    def value(self, policy: Tensor) -> Tensor:
        """Mean gold reward, [..., S, A] -> [..., S]."""
        return (policy * self.gold).sum(-1)

    def kl(self, policy: Tensor) -> Tensor:
        """KL(policy || reference) in nats, [..., S, A] -> [..., S]."""
        return kl(policy, self.ref)


def at_kl(kls: Tensor, values: Tensor, level: float | Tensor) -> Tensor:
    """Each bandit's value where its path [T, S] first comes to `level`, interpolated, [S]; NaN where it never does.

    The path begins below it. `level` is one number, or one for each bandit [S].

    >>> path = torch.tensor([[0.0], [1.0], [2.0]])
    >>> at_kl(path, 10 * path, 1.5), at_kl(path, 10 * path, 3.0)
    (tensor([15.]), tensor([nan]))
    """
    before = (kls[1:] >= level).double().argmax(0)
    there = (kls[1:] >= level).any(0)
    bandit = torch.arange(kls.shape[1])
    low, high = kls[before, bandit], kls[before + 1, bandit]
    share = (level - low) / (high - low)
    found = values[before, bandit] * (1 - share) + values[before + 1, bandit] * share
    return torch.where(there, found, torch.nan)
