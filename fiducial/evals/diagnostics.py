"""What preference training does to a policy, as pure functions of what was measured: rankings that flip, distance from
the reference and from the start, the ranking that is the best to be had."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

import torch
from torch import Tensor

from fiducial.core.divergence import full_kl, kl_estimate
from fiducial.core.tokens import sequence_sum
from fiducial.core.types import Pair
from fiducial.exact.optima import idealised_ranking_accuracy

BETAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # the grid of the idealised ranking accuracy


# -- rankings ----------------------------------------------------------------------------------------------------


def right(chosen: Tensor, rejected: Tensor) -> Tensor:
    """1 where the chosen side has more, 0 where it has less, and a half where both have the same: [B], [B] -> [B]."""
    return ((chosen > rejected).double() + (chosen >= rejected).double()) / 2


def flips(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Which pairs a policy ranks otherwise than the reference did (Chen et al. 2024, arXiv:2405.19534).

    Both are `right`, [B]. The four shares [B] of a pair add up to 1; a tie is half a pair of each kind, and one that
    stays a tie is no flip. So correct_correct + correct_wrong is the reference's accuracy, and correct_correct +
    wrong_correct the policy's.

    >>> found = flips(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.5]))
    >>> {name: share.tolist() for name, share in found.items() if share.any()}
    {'flips/correct_correct': [0.0, 0.5], 'flips/correct_wrong': [1.0, 0.0], 'flips/wrong_wrong': [0.0, 0.5]}
    """
    return {
        "flips/correct_correct": torch.minimum(before, after),
        "flips/correct_wrong": (before - after).clamp(min=0),
        "flips/wrong_correct": (after - before).clamp(min=0),
        "flips/wrong_wrong": torch.minimum(1 - before, 1 - after),
    }


def agreement(pairs: Sequence[Pair]) -> list[float]:
    """The share of the raters' weight that is with the chosen side of each pair.

    Judgements of the same two completions of a prompt count together, whichever of the two they chose. A soft
    preference p is two pairs of weights p and 1 - p, so it is a share like any other.

    >>> three = [Pair("2 + 2", "4", "5")] * 2 + [Pair("2 + 2", "5", "4")]
    >>> [round(share, 4) for share in agreement(three)]
    [0.6667, 0.6667, 0.3333]
    """
    weights: dict[tuple[str, ...], float] = defaultdict(float)
    for pair in pairs:
        weights[_sides(pair)] += pair.weight
    shares = []
    for pair in pairs:
        prompt, chosen, rejected = _sides(pair)
        with_it, against = weights[prompt, chosen, rejected], weights.get((prompt, rejected, chosen), 0.0)
        shares.append(with_it / (with_it + against))
    return shares


def _sides(pair: Pair) -> tuple[str, str, str]:
    return repr(pair.prompt), repr(pair.chosen), repr(pair.rejected)


def disputed_majorities(pairs: Sequence[Pair]) -> tuple[list[int], Tensor]:
    """Which pairs stand for what most raters prefer, one for each two completions, and how many do: [n], above 1/2.

    Empty where no rater disagrees with another: unanimity says nothing of how far a preference goes.
    """
    shares = agreement(pairs)
    first: dict[tuple[str, ...], int] = {}
    for number, (pair, share) in enumerate(zip(pairs, shares, strict=True)):
        if share > 0.5:
            first.setdefault(_sides(pair), number)
    chosen = list(first.values())
    found = torch.tensor([shares[number] for number in chosen], dtype=torch.float64)
    return (chosen, found) if (found < 1).any() else ([], found[:0])


def idealised_ranking_accuracies(
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    shares: Tensor,
    lengths: tuple[Tensor, Tensor] | None = None,
    betas: Sequence[float] = BETAS,
) -> dict[str, float]:
    """Least, median and greatest share of pairs [B] that exact DPO on each pair alone would rank right, over `betas`.

    `shares` is of the raters who prefer the chosen side. With the lengths of both sides, ref^(1 / length) for ref.
    """
    sizes = lengths or (None, None)
    found = [idealised_ranking_accuracy(ref_chosen, ref_rejected, shares, beta, *sizes) for beta in betas]
    return {"min": min(found), "median": median(found), "max": max(found)}


# -- distances ---------------------------------------------------------------------------------------------------


def completion_kl(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, logits: Tensor | None = None, ref_logits: Tensor | None = None
) -> dict[str, Tensor]:
    """Estimates of KL(policy || reference) from completions that the policy drew, in nats a completion, [B] each.

    k1, k2 and k3 of each token, from both sides' log-probs [B, L], summed over the masked ones; with logits [B, L, V]
    also "exact": the whole next-token distributions' divergence, summed along the completion. k1, k3 and exact have the
    divergence as their expectation, k2 has a bias (Schulman, "Approximating KL divergence").
    """
    found = {name: kl_estimate(logprobs.double(), ref_logprobs.double(), name) for name in ("k1", "k2", "k3")}
    if logits is not None and ref_logits is not None:
        found["exact"] = full_kl(logits, ref_logits).double()
    return {name: sequence_sum(per_token, mask) for name, per_token in found.items()}


def squared_distance(weights: Iterable[Tensor], start: Iterable[Tensor]) -> tuple[float, float]:
    """|weights - start|^2 and |start|^2, summed over all tensors: squares, because those of parts add up."""
    moved = size = 0.0
    for now, then in zip(weights, start, strict=True):
        wide = torch.promote_types(now.dtype, torch.float32)
        now, then = now.detach().cpu().to(wide), then.cpu().to(wide)
        moved += float(torch.linalg.vector_norm(now - then, dtype=torch.float64)) ** 2
        size += float(torch.linalg.vector_norm(then, dtype=torch.float64)) ** 2
    return moved, size


def weights_distance(parts: Iterable[tuple[float, float]]) -> dict[str, float]:
    """L2 distance of the weights from their start, and its share of the start's own norm (left out where that is 0).

    `parts` are `squared_distance`s of disjoint blocks.

    >>> weights_distance([(9.0, 100.0), (16.0, 0.0)])
    {'weights_distance': 5.0, 'weights_distance/relative': 0.5}
    """
    moved, size = (math.fsum(column) for column in zip(*parts, strict=True))
    distance = {"weights_distance": math.sqrt(moved)}
    return {**distance, "weights_distance/relative": math.sqrt(moved / size)} if size else distance
