"""L30: comparisons between leaves of a tree, or between independent responses?

The rewards of a tree's 64 leaves are sums of Gaussian effects of their segments. Each comparison of two leaves tells
their difference up to noise; what remains unknown is the posterior variance of the difference of two leaves, averaged
over all pairs. Chain pairs are drawn from all pairs alike, tree pairs by their split level, each level as often. Which
of the two leaves less unknown depends on where in the response the rewards vary, so nothing is claimed about that.
"""

from __future__ import annotations

import math
from itertools import product
from os.path import commonprefix
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fiducial.data.feedback.tree_preferences import Node, Shape, chain, draw_pairs
from fiducial.labs.base import BLUE, ORANGE, Criterion, Lab, Plot, Result

SHAPE = Shape(depth=3, branching=4, budget=300)
PROFILES = {"early": (2.0, 0.75, 0.25), "equal": (1.0, 1.0, 1.0), "late": (0.25, 0.75, 2.0)}  # variance by level
NOISE = 1.0  # variance of a comparison
WAYS = {"chain": ORANGE, "tree": BLUE}


def prior(variances: tuple[float, ...]) -> Tensor:
    """Covariance [leaves, leaves]: two leaves share the effects of their common segments."""
    paths = list(product(range(SHAPE.branching), repeat=SHAPE.depth))
    shared = [[math.fsum(variances[: len(commonprefix([a, b]))]) for b in paths] for a in paths]
    return torch.tensor(shared, dtype=torch.float64)


def pairs(way: str, seed: int) -> list[tuple[int, int]]:
    """The pairs that `fiducial data tree_preferences` draws, of numbered leaves."""
    shape = SHAPE if way == "tree" else chain(SHAPE)
    leaves = [Node(path) for path in product(range(shape.branching), repeat=shape.depth)]
    names = [str(i) for i in range(len(leaves))]
    return [(i, j) for i, j, _ in draw_pairs(leaves, names, shape, seed)]


def unknown(covariance: Tensor, compared: list[tuple[int, int]]) -> list[float]:
    """Mean posterior variance of a difference before each comparison and after the last."""
    n, left = len(covariance), []
    for i, j in [*compared, (0, 0)]:
        total = n * covariance.trace() - covariance.sum()
        left.append(float(total) / (n * (n - 1) / 2))
        toward = covariance[:, i] - covariance[:, j]
        covariance = covariance - torch.outer(toward, toward) / (NOISE + toward[i] - toward[j])
    return left


def run(seed: int, fast: bool) -> Result:
    """Averages over draws of the pairs; the posterior itself is exact."""
    draws = 5 if fast else 50
    rows: dict[str, Any] = {"comparisons": list(range(SHAPE.budget + 1))}
    criteria, metrics = [], {}
    for profile, variances in PROFILES.items():
        start = prior(variances)
        for way in WAYS:
            curves = [unknown(start, pairs(way, seed * 1000 + i)) for i in range(draws)]
            rows[f"{profile} {way}"] = mean = [fmean(values) for values in zip(*curves, strict=True)]
            steepest = max(after - before for before, after in zip(mean, mean[1:], strict=False))
            criteria.append(Criterion(f"greatest change of the {way}'s curve, {profile} variance", steepest, "<", 0.0))
            metrics[f"left after {SHAPE.budget} comparisons, {profile} variance, {way}"] = mean[-1]
    figures = {"left": Plot(lambda *axes: _draw(axes, rows), panels=3, width=3.7)}
    better = [p for p in PROFILES if rows[f"{p} tree"][-1] < rows[f"{p} chain"][-1]]
    note = f"After {SHAPE.budget} comparisons the tree leaves less unknown under: {', '.join(better) or 'none'}."
    return Result({"left": rows}, figures, criteria, note, metrics)


def _draw(axes: Any, rows: dict[str, Any]) -> None:
    for ax, profile in zip(axes, PROFILES, strict=True):
        for way, color in WAYS.items():
            ax.plot(rows["comparisons"], rows[f"{profile} {way}"], color=color, label=f"{way} pairs")
        by_level = ", ".join(f"{v:g}" for v in PROFILES[profile])
        ax.set(title=f"Variance by level: {by_level}", xlabel="comparisons", yscale="log")
    axes[0].set_ylabel("posterior variance of a difference")
    axes[0].legend()


LAB = Lab(
    id="L30",
    name="tree_vs_chain",
    title="Tree pairs or chain pairs",
    claim="Both ways of pairing lower what is unknown about reward differences; which is better depends on where in "
    "the response rewards vary.",
    source="Qiu et al. 2024, arXiv:2402.10184 (its claim is asymptotic)",
    run=run,
    observational=True,
)
