"""Over-optimisation of a proxy reward: the curves that are fitted to it, and the ways in which a proxy fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class OveroptimisationCurve:
    """Gold reward gained at the distance d = sqrt(KL(pi || ref)) (Gao et al. 2022, arXiv:2210.10760).

    form "bon" (best of N): d (alpha - beta d); form "rl": d (alpha - beta log d), of infinite slope at 0.
    """

    form: str
    alpha: float
    beta: float

    def __call__(self, distances: Tensor) -> Tensor:
        return distances * (self.alpha - self.beta * _bend(self.form, distances))

    @property
    def peak(self) -> float:
        """The distance of greatest gain: alpha / (2 beta), or exp(alpha / beta - 1); infinite without a bend."""
        if self.beta <= 0:
            return math.inf
        ratio = self.alpha / self.beta
        return ratio / 2 if self.form == "bon" else math.exp(ratio - 1)


def fit_overoptimisation(
    distances: Tensor, gains: Tensor, form: str = "rl", min_distance: float = 0.0
) -> OveroptimisationCurve:
    """Least squares for alpha and beta over the points [n] with a distance of `min_distance` or more (and above 0).

    >>> d = torch.linspace(0.5, 4, 8).double()
    >>> curve = fit_overoptimisation(d, d * (3 - 0.5 * d), "bon")
    >>> round(curve.alpha, 6), round(curve.beta, 6), round(curve.peak, 6)
    (3.0, 0.5, 3.0)
    """
    if form not in ("bon", "rl"):
        raise ValueError(f"the form of an over-optimisation curve must be 'bon' or 'rl'; it is {form!r}")
    used = (distances >= min_distance) & (distances > 0)
    d = distances[used].double()
    if len(d.unique()) < 2:
        raise ValueError(f"two numbers are fitted, so points at 2 distances are needed; there are {len(d.unique())}")
    columns = torch.stack([d, -d * _bend(form, d)], 1)
    alpha, beta = torch.linalg.lstsq(columns, gains[used].double()[:, None]).solution[:, 0].tolist()
    return OveroptimisationCurve(form, alpha, beta)


def _bend(form: str, distances: Tensor) -> Tensor:
    return distances if form == "bon" else distances.log()


# -- Goodhart's law (Manheim & Garrabrant 2018, arXiv:1803.04585) ------------------------------------------------------


class Measured(NamedTuple):
    """What is wanted and what is measured of n items: gold [n], proxy [n]."""

    gold: Tensor
    proxy: Tensor


def regressional(n: int, seed: int, pressure: float = 0.0, noise: float = 1.0) -> Measured:
    """proxy = gold + noise, gold standard normal: E[gold | proxy] = proxy / (1 + noise^2), `regressional_slope`.

    Pressure selects: the items are those of proxy above `pressure` standard deviations, so n is what is tried.
    """
    gold, error = _normals(n, seed, 2)
    proxy = gold + noise * error
    kept = proxy >= pressure * math.sqrt(1 + noise**2) if pressure else torch.ones(n, dtype=torch.bool)
    return Measured(gold[kept], proxy[kept])


def regressional_slope(noise: float, gold: float = 1.0) -> float:
    """sigma_gold^2 / (sigma_gold^2 + sigma_noise^2): what is left of a proxy's excess in the gold reward.

    >>> regressional_slope(2.0)
    0.2
    """
    return gold**2 / (gold**2 + noise**2)


def extremal(n: int, seed: int, pressure: float = 0.0, turn: float = 1.0, noise: float = 0.1) -> Measured:
    """gold rises with the proxy up to `turn` and falls beyond it, with slope -1. Pressure shifts the proxy's mean."""
    proxy, error = _normals(n, seed, 2)
    proxy = proxy + pressure
    return Measured(torch.minimum(proxy, 2 * turn - proxy) + noise * error, proxy)


def causal(n: int, seed: int, pressure: float = 0.0, noise: float = 1.0) -> Measured:
    """The proxy is an effect of gold: as observed it tells of gold, but pressure adds to it and leaves gold alone."""
    gold, error = _normals(n, seed, 2)
    return Measured(gold, gold + noise * error + pressure)


def adversarial(n: int, seed: int, pressure: float = 0.0, leverage: float = 2.0) -> Measured:
    """Each item's owner moves a budget (half-normal, times the pressure) from gold into the proxy, which pays
    `leverage` for it: without pressure proxy and gold are one."""
    gold, budget = _normals(n, seed, 2)
    moved = pressure * budget.abs()
    return Measured(gold - moved, gold + leverage * moved)


GOODHART: dict[str, Callable[..., Measured]] = {
    "regressional": regressional,
    "extremal": extremal,
    "causal": causal,
    "adversarial": adversarial,
}


def _normals(n: int, seed: int, count: int) -> Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
