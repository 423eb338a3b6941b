"""Comparisons of two completions, whatever judges them, and the removal of position bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal, Protocol

from fiducial.core.types import Prompt
from fiducial.data.feedback.writer import Side

TIE = 1e-9  # a probability this near to 1/2 is a tie: averaging p and 1 - p rounds


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt; `fields` is what a judge may read besides (`answer`, `criterion`, ...)."""

    prompt: Prompt
    a: Side
    b: Side
    fields: dict[str, Any] = field(default_factory=dict)

    def swapped(self) -> Comparison:
        """The same with b shown first."""
        return replace(self, a=self.b, b=self.a)


@dataclass(frozen=True)
class Judgement:
    """How probable it is that `a` is better; None where the judge gave no verdict, and `why` is then a short reason to
    count by. `details` is what the judge says besides; `orders` are the judgements with a first and with b first (each
    the probability of what it was shown first) that this one is made of; `votes` what a judge that is asked several
    times said each time."""

    probability: float | None
    why: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    orders: tuple[Judgement, ...] = ()
    votes: tuple[float | None, ...] = ()

    def __post_init__(self):
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(f"a judge says how probable it is that a wins, in [0, 1]; it said {self.probability}")

    @property
    def outcome(self) -> float | None:
        """1: a wins, 0: b wins, 1/2: a tie, None: no verdict."""
        if self.probability is None:
            return None
        return 0.5 if abs(self.probability - 0.5) < TIE else float(self.probability > 0.5)


class PairJudge(Protocol):
    """Says which of two completions is better. `symmetric`: the order in which it sees them cannot matter to it.

    >>> class Longer:
    ...     name, symmetric = "longer", True
    ...     def __call__(self, comparisons):
    ...         return [Judgement(float(len(c.a) > len(c.b))) for c in comparisons]
    >>> Longer()([Comparison("2 + 2?", "four", "4")])[0].probability
    1.0
    """

    @property
    def name(self) -> str: ...

    @property
    def symmetric(self) -> bool: ...

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]: ...


def both_orders(
    judge: PairJudge, comparisons: Sequence[Comparison], disagreement: Literal["average", "tie"] = "average"
) -> list[Judgement]:
    """Each comparison asked with a first and with b first, and averaged: p = (p_AB + 1 - p_BA) / 2 (Lee et al. 2023,
    arXiv:2309.00267), p being the probability of what is shown first. Without a verdict on both there is none.

    A judge that always says "the first" gives 1/2 this way. With `disagreement` "tie" so does one that calls another
    side better in either order, however sure it is. A symmetric one is asked once.
    """
    if judge.symmetric:
        return judge(comparisons)
    # One call, so that a judge whose work is done in batches does it in one.
    found = judge([*comparisons, *(comparison.swapped() for comparison in comparisons)])
    pairs = zip(found[: len(comparisons)], found[len(comparisons) :], strict=True)
    return [_together(first, second, disagreement) for first, second in pairs]


def _together(first: Judgement, second: Judgement, disagreement: str) -> Judgement:
    if first.probability is None or second.probability is None:
        return Judgement(None, first.why or second.why, orders=(first, second))
    if disagreement == "tie" and {first.outcome, second.outcome} in ({0.0}, {1.0}):  # the first, or the second, twice
        return Judgement(0.5, orders=(first, second))
    return Judgement((first.probability + 1 - second.probability) / 2, orders=(first, second))


def position_bias(judgements: Sequence[Judgement]) -> float | None:
    """Mean |p_AB + p_BA - 1| over what was judged in both orders: 0 for a judge that does not care which is first, 1
    for one that only does. None where nothing was."""
    sums = [
        abs(first.probability + second.probability - 1)
        for first, second in (j.orders for j in judgements if j.orders)
        if first.probability is not None and second.probability is not None
    ]
    return fmean(sums) if sums else None


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow.

    >>> sigmoid(0.0), sigmoid(-1000.0)
    (0.5, 0.0)
    """
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
