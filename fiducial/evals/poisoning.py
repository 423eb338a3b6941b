"""What raters who lie do to an aggregate: the minmax winner and the Bradley-Terry fit before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fiducial.data.preferences.raters import Rater, aggregate, poison
from fiducial.exact.minmax import minmax_winner
from fiducial.exact.optima import bradley_terry_fit


@dataclass(frozen=True)
class PoisoningShift:
    """Preference [N, N], minmax winner [N] and Bradley-Terry rewards [N], each (honest, poisoned)."""

    preference: tuple[Tensor, Tensor]
    minmax: tuple[Tensor, Tensor]
    rewards: tuple[Tensor, Tensor]

    @property
    def winner_shift(self) -> float:
        """Total variation between the two winners, in [0, 1]."""
        return float((self.minmax[1] - self.minmax[0]).abs().sum() / 2)

    @property
    def rewards_shift(self) -> float:
        """The greatest change of a reward; both fits have mean 0."""
        return float((self.rewards[1] - self.rewards[0]).abs().max())


def poisoning_shift(
    raters: Sequence[Rater], fraction: float, seed: int = 0, prompt: int = 0, lengths: Tensor | None = None
) -> PoisoningShift:
    """Let a `fraction` of the raters say the opposite, and compare what one prompt's judgements add up to.

    The Bradley-Terry fit takes pairs evenly. ValueError where a response always wins or always loses: no fit is finite.
    """
    pair = tuple(aggregate(who, lengths)[prompt] for who in (raters, poison(raters, fraction, seed)))
    law = torch.full((len(pair[0]),), 1 / len(pair[0]), dtype=torch.float64)
    return PoisoningShift(
        preference=(pair[0], pair[1]),
        minmax=(minmax_winner(pair[0]).policy, minmax_winner(pair[1]).policy),
        rewards=(bradley_terry_fit(pair[0], law), bradley_terry_fit(pair[1], law)),
    )
