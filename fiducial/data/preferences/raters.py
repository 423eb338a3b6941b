"""Simulated raters: who they are, what they would answer, and the judgements they give.

A population is a list of raters. Its average preference sum_h w_h P_h need not be anybody's: three raters, each
consistent, can average to a cycle that no reward explains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from random import Random
from typing import Any

import torch
from torch import Tensor

from fiducial.core.seeds import mix
from fiducial.core.types import Prompt
from fiducial.data.preferences.record import Preference


@dataclass(frozen=True, eq=False)
class Rater:
    """Somebody who judges N responses to each of S prompts, by a table of rewards or a matrix of preferences.

    `rewards` [S, N] (or [N] for one prompt): prefers i to j with probability sigmoid((r_i - r_j) / temperature)
    (Bradley & Terry 1952); temperature 0 always takes the better one. `length_bias` is added to a reward for each unit
    of length. `matrix` [S, N, N] (or [N, N]): the probabilities themselves, P + P^T = 1.

    `noise` is the share of answers that are turned round. `position_bias` is the share answered "A" without a look.
    Leaning towards one side by |2 P - 1| below `tie_below` is answered by 0, below `slight_below` by +1 or -1, else by
    +2 or -2. `traits` are columns of what the rater answers (a country, an age), to slice by. `weight` is the
    rater's share in the population, up to a common factor.
    """

    id: str
    rewards: Tensor | None = None
    matrix: Tensor | None = None
    weight: float = 1.0
    temperature: float = 1.0
    length_bias: float = 0.0
    noise: float = 0.0
    position_bias: float = 0.0
    tie_below: float = 0.0
    slight_below: float = 0.0
    traits: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if (self.rewards is None) == (self.matrix is None):
            raise ValueError(f"rater {self.id!r} needs either rewards or a matrix of preferences")
        for name in ("noise", "position_bias", "tie_below", "slight_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rater {self.id!r}: {name} is a share, in [0, 1]; it is {getattr(self, name)}")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"rater {self.id!r}: weight must be above 0; it is {self.weight}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"rater {self.id!r}: temperature must be 0 or more; it is {self.temperature}")
        if self.matrix is not None:
            self._check_matrix(self.matrix)
        if self.rewards is not None and (self.rewards.ndim not in (1, 2) or not self.rewards.isfinite().all()):
            raise ValueError(f"rater {self.id!r}: rewards must be finite numbers, a row for each prompt")

    def _check_matrix(self, matrix: Tensor) -> None:
        square = matrix.ndim in (2, 3) and matrix.shape[-1] == matrix.shape[-2]
        if not square or not torch.allclose(matrix + matrix.mT, torch.ones_like(matrix)):
            raise ValueError(f"rater {self.id!r}: matrix[i][j] + matrix[j][i] must be 1, and matrix[i][i] 1/2")
        if matrix.min() < 0 or matrix.max() > 1:
            raise ValueError(f"rater {self.id!r}: matrix holds probabilities, in [0, 1]")
        if self.length_bias:
            raise ValueError(f"rater {self.id!r}: length_bias shifts rewards, and this rater has a matrix")

    @property
    def shape(self) -> tuple[int, int]:
        """How many prompts and responses the rater knows: (S, N)."""
        table = self.rewards if self.rewards is not None else self.matrix
        assert table is not None
        batched = table.ndim == (2 if self.rewards is not None else 3)
        return (len(table) if batched else 1, table.shape[-1])

    def preferences(self, lengths: Tensor | None = None) -> Tensor:
        """P [S, N, N] in float64: how often the rater says that response i is better than j, whoever is shown first.

        `lengths` [S, N] are what `length_bias` multiplies.
        """
        if self.matrix is not None:
            made = self.matrix.double().reshape(*self.shape, -1)
        else:
            assert self.rewards is not None
            rewards = self.rewards.double().reshape(self.shape)
            if self.length_bias:
                if lengths is None:
                    raise ValueError(f"rater {self.id!r} looks at length: give lengths [S, N]")
                rewards = rewards + self.length_bias * lengths.reshape(self.shape)
            made = bradley_terry(rewards, self.temperature)
        return (1 - self.noise) * made + self.noise * (1 - made)

    def answer(self, preference: float, draw: Random) -> float:
        """A rating of A against B, given the chance `preference` that this rater finds A better."""
        if self.position_bias and draw.random() < self.position_bias:
            return 2.0
        lean, better = abs(2 * preference - 1), draw.random() < preference
        if lean < self.tie_below:
            return 0.0
        degree = 1.0 if lean < self.slight_below else 2.0
        return degree if better else -degree


def bradley_terry(rewards: Tensor, temperature: float = 1.0) -> Tensor:
    """P [..., N, N] with P_ij = sigmoid((r_i - r_j) / temperature) from rewards [..., N]; at temperature 0 the better
    one always wins and equals draw. It is transitive, and blind to what is added to all rewards of a prompt."""
    gap = rewards[..., :, None] - rewards[..., None, :]
    return (gap.sign() + 1) / 2 if temperature == 0 else torch.sigmoid(gap / temperature)


def aggregate(raters: Sequence[Rater], lengths: Tensor | None = None) -> Tensor:
    """The population's average preference [S, N, N], sum_h w_h P_h with weights that add up to 1.

    >>> aggregate(three_raters())[0, 0, 1].item()  # two of three prefer the first to the second, and so on round
    0.6666666666666666
    """
    _same_shape(raters)
    total = math.fsum(rater.weight for rater in raters)
    return sum((rater.weight / total * rater.preferences(lengths) for rater in raters), start=torch.zeros(()))


def three_raters() -> list[Rater]:
    """Condorcet's example: three consistent raters whose majority goes round in a circle, 1 over 2 over 3 over 1.

    Their orders are 3 > 1 > 2, 2 > 3 > 1 and 1 > 2 > 3.
    """
    orders = ((1.0, 0.0, 2.0), (0.0, 2.0, 1.0), (2.0, 1.0, 0.0))
    return [Rater(f"rater {i}", torch.tensor(order), temperature=0.0) for i, order in enumerate(orders, 1)]


def poison(raters: Sequence[Rater], fraction: float, seed: int = 0) -> list[Rater]:
    """The same population in which a `fraction` of the raters, drawn by `seed`, say the opposite of what they think.

    Their trait `poisoned` is True, the others' False. The fraction is of their number, rounded.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is a share of the raters, in [0, 1]; it is {fraction}")
    turned = set(Random(mix(seed, "poison")).sample(range(len(raters)), round(fraction * len(raters))))
    return [
        replace(
            rater,
            noise=1 - rater.noise if i in turned else rater.noise,
            traits={**rater.traits, "poisoned": i in turned},
        )
        for i, rater in enumerate(raters)
    ]


def simulate(
    raters: Sequence[Rater],
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    n: int | None,
    seed: int,
    raters_per_pair: int = 1,
    replacement: bool = True,
) -> list[Preference]:
    """`n` pairs of responses [S][N], each judged by `raters_per_pair` different raters: n x raters_per_pair records.

    With `replacement` a prompt and two of its responses are drawn evenly for each, so that a pair may come again, and a
    shorter call gives the beginning of a longer one. Without it n pairs are drawn, each at most once (None: all), in
    the order of the prompts, and what is said of a pair does not depend on n. Which response is shown first is drawn
    too, and raters by weight. Lengths are in words. A rater's traits become columns of the record.
    """
    states, options = _same_shape(raters)
    if len(prompts) != states or len(responses) != states or any(len(r) != options for r in responses):
        raise ValueError(f"the raters know {states} prompts with {options} responses each: give just these")
    if not 1 <= raters_per_pair <= len(raters):
        raise ValueError(f"raters_per_pair must be from 1 to the {len(raters)} raters; it is {raters_per_pair}")
    if options < 2 or (n is not None and n < 1):
        raise ValueError(f"there is nothing to compare: {options} responses, n = {n}")
    lengths = torch.tensor([[len(text.split()) for text in texts] for texts in responses], dtype=torch.float64)
    tables = {rater.id: rater.preferences(lengths) for rater in raters}
    if len(tables) < len(raters):
        raise ValueError("two raters have the same id: ids tell their judgements apart")
    shown = _with_replacement if replacement and n is not None else _without_replacement
    found = []
    for s, a, b, draw in shown(states, options, n, seed):
        for rater in _different(raters, raters_per_pair, draw):
            rating = rater.answer(float(tables[rater.id][s, a, b]), draw)
            pair = (prompts[s], responses[s][a], responses[s][b])
            found.append(
                Preference(*pair, rating, rater_id=rater.id, source="simulated", index=len(found), fields=rater.traits)
            )
    return found


Shown = Iterator[tuple[int, int, int, Random]]
"""Prompt, the response shown as A, that shown as B, and what the rest about this pair is drawn from."""


def _with_replacement(states: int, options: int, n: int | None, seed: int) -> Shown:
    assert n is not None
    for place in range(n):
        draw = Random(mix(seed, "judgement", place))
        s = draw.randrange(states)
        a, b = draw.sample(range(options), 2)
        yield s, a, b, draw


def _without_replacement(states: int, options: int, n: int | None, seed: int) -> Shown:
    pairs = [(s, *sides) for s in range(states) for sides in combinations(range(options), 2)]
    if n is not None and n > len(pairs):
        raise ValueError(
            f"n = {n} is more than the {len(pairs)} pairs there are: ask for fewer, show each to more raters "
            "(raters_per_pair), or draw with replacement"
        )
    lots = sorted(range(len(pairs)), key=lambda k: mix(seed, "pair", k))
    for k in sorted(lots[:n]):
        draw = Random(mix(seed, "judgement", k))
        s, *sides = pairs[k]
        a, b = draw.sample(sides, 2)
        yield s, a, b, draw


def _different(raters: Sequence[Rater], number: int, draw: Random) -> list[Rater]:
    """`number` raters drawn by weight without putting any back."""
    left, drawn = list(raters), []
    for _ in range(number):
        (rater,) = draw.choices(left, [rater.weight for rater in left])
        left.remove(rater)
        drawn.append(rater)
    return drawn


def _same_shape(raters: Sequence[Rater]) -> tuple[int, int]:
    shapes = {rater.shape for rater in raters}
    if len(shapes) != 1:
        raise ValueError(
            "a population needs at least one rater"
            if not shapes
            else f"the raters know different numbers of prompts and responses: {sorted(shapes)}"
        )
    return shapes.pop()
