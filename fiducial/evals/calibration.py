"""How far a preference model's probabilities can be trusted: calibration, accuracy by rating, both orders, cycles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bin:
    """Pairs of similar confidence: its mean, the share that the model got right, and their weight."""

    confidence: float
    accuracy: float
    weight: float


def reliability(margins: Tensor, weights: Tensor | None = None, bins: int = 10) -> list[Bin]:
    """Pairs in `bins` equal steps of the model's confidence max(p, 1 - p), p = sigmoid(margin), without empty ones.

    margins [N] are log-odds that the chosen completion is better (of a reward model r_chosen - r_rejected). A margin of
    0 is half right. ValueError for no pairs, or margins that are not finite.
    """
    if not len(margins) or not margins.isfinite().all():
        raise ValueError("calibration needs margins of at least one pair, all of them finite")
    weights = torch.ones_like(margins) if weights is None else weights
    confidence = torch.sigmoid(margins.double().abs())
    right = (margins > 0).double() + 0.5 * (margins == 0)
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found = []
    for b in range(bins):
        share = torch.where(place == b, weights.double(), 0.0)
        if share.sum() > 0:
            total = float(share.sum())
            found.append(Bin(float((confidence * share).sum()) / total, float((right * share).sum()) / total, total))
    return found


def calibration_error(margins: Tensor, weights: Tensor | None = None, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean |confidence - accuracy| over the bins.

    >>> sure, unsure = torch.tensor([20.0, 20.0]), torch.tensor([20.0, -20.0])
    >>> round(calibration_error(sure), 6), round(calibration_error(unsure), 6)
    (0.0, 0.5)
    """
    found = reliability(margins, weights, bins)
    return sum(b.weight * abs(b.confidence - b.accuracy) for b in found) / sum(b.weight for b in found)


def accuracy_by_rating(
    margins: Sequence[float], ratings: Sequence[float | None], weights: Sequence[float] | None = None
) -> dict[float, Bin]:
    """The model's accuracy at each degree |rating|, slight ones first; rows without a rating and ties are left out.

    A rating is of chosen over rejected, so a negative one wants a negative margin. `confidence` is the model's own.

    >>> found = accuracy_by_rating([2.0, -1.0, 0.5], [2, 1, 1])
    >>> {rating: bin.accuracy for rating, bin in found.items()}
    {1: 0.5, 2: 1.0}
    """
    out: dict[float, list[tuple[float, float, float]]] = {}
    for margin, rating, weight in zip(margins, ratings, weights or [1.0] * len(margins), strict=True):
        if rating:
            signed = margin * math.copysign(1, rating)
            right = 0.5 if signed == 0 else float(signed > 0)
            confidence = float(torch.sigmoid(torch.tensor(abs(margin), dtype=torch.float64)))
            out.setdefault(abs(rating), []).append((confidence, right, weight))
    return {rating: _pooled(rows) for rating, rows in sorted(out.items())}


def _pooled(rows: Sequence[tuple[float, float, float]]) -> Bin:
    total = sum(weight for *_, weight in rows)
    confidence, accuracy = (sum(row[i] * row[2] for row in rows) / total for i in (0, 1))
    return Bin(confidence, accuracy, total)


def order_consistency(forward: Tensor, backward: Tensor) -> float:
    """Share of pairs of which both orders name the same completion, before they are put together.

    forward [N] is how likely the first completion is better when it is shown first, backward [N] how likely the
    *second* is better when that is shown first. 1/2 names none.

    >>> order_consistency(torch.tensor([0.9, 0.8]), torch.tensor([0.2, 0.7]))
    0.5
    """
    return float(((forward > 0.5) & (backward < 0.5) | (forward < 0.5) & (backward > 0.5)).double().mean())


def cycle_rate(preferences: Tensor) -> float:
    """Share of triples whose majorities run in a circle, i over j over k over i: [..., N, N] -> share of all of them.

    0 for whatever is ranked by a reward, 1/4 on average for coins. A preference of 1/2 is no majority. ValueError
    where there are fewer than three completions.

    >>> cycle_rate(torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]))
    1.0
    """
    n = preferences.shape[-1]
    if n < 3:
        raise ValueError(f"a cycle needs three completions of a prompt; there are {n}")
    beats = (preferences > 0.5).double()
    cycles = (beats @ beats @ beats).diagonal(dim1=-2, dim2=-1).sum(-1) / 3  # each is seen from its three members
    return float(cycles.mean()) / math.comb(n, 3)
