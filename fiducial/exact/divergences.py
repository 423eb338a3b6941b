"""f-divergences whose regularised optimum has full support (Wang et al. 2023, arXiv:2309.16240), in float64.

D_f(p, q) = E_q f(p / q). Maximising E_pi r - beta D_f(pi, ref) gives

    pi(y) = ref(y) (f')^-1((r(y) - lambda) / beta)

with one additive lambda, which makes pi sum to 1. A multiplicative 1 / Z in its place is right for reverse_kl only.

    family        f(u)                                                (f')^-1(z)                 z below
    reverse_kl    u log u                                             exp(z - 1)                 inf
    forward_kl    -log u                                              -1 / z                     0
    js            u log u - (u + 1) log((u + 1) / 2)                  1 / (2 exp(-z) - 1)        log 2
    alpha         (u^(1-a) - (1 - a) u - a) / (a (a - 1)), 0 < a < 1  (1 - a z)^(-1 / a)         1 / a
    chi2_kl       (u - 1)^2 / 2 + u log u   (chi-PO)                  W0(exp z), Lambert's W     inf

js is twice the usual Jensen-Shannon divergence. Code that writes f'(u) = (u^(b-1) - 1) / (b - 1) means b = 1 - alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FAMILIES = ("reverse_kl", "forward_kl", "js", "alpha", "chi2_kl")

REFUSED = {
    "total_variation": "its f' takes two values only and has no inverse",
    "chi_squared": "its f' is finite at 0, so the optimum can put no mass at all on a response; "
    "chi2_kl adds the term that prevents it",
}


@dataclass(frozen=True)
class Divergence:
    """A family: f, its derivative, the inverse of the derivative, and the least upper bound of where that is defined.

    `inverse` is infinite at `limit` and beyond, which is where a search for lambda has gone too far.
    """

    family: str
    f: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    limit: float = math.inf


class Optimum(NamedTuple):
    """policy [..., A] and the multiplier lambda [...] that makes it sum to 1."""

    policy: Tensor
    multiplier: Tensor


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of distributions [..., A]: terms with p = 0 are 0, and p > 0 = q gives infinity.

    >>> kl(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5]))  # log 2
    tensor(0.6931)
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def divergence(family: str, alpha: float | None = None) -> Divergence:
    """The family of that name. ValueError for total_variation and chi_squared, with the reason.

    >>> u = torch.tensor([0.5, 2.0], dtype=torch.float64)
    >>> js = divergence("js")
    >>> js.inverse(js.derivative(u))
    tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    if family in REFUSED:
        raise ValueError(f"the divergence {family} has no closed form: {REFUSED[family]}; use one of {FAMILIES}")
    if family not in FAMILIES:
        raise ValueError(f"the divergence must be one of {', '.join(FAMILIES)}; it is {family!r}")
    if family == "alpha":
        if alpha is None or not 0 < alpha < 1:
            raise ValueError(f"the divergence alpha needs alpha between 0 (reverse_kl) and 1 (forward_kl), not {alpha}")
        return _alpha(alpha)
    return _FIXED[family]


def _alpha(a: float) -> Divergence:
    return Divergence(
        "alpha",
        lambda u: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)),
        lambda u: -torch.expm1(-a * u.log()) / a,
        lambda z: torch.where(z < 1 / a, torch.log1p(-(a * z).clamp(max=1)).div(-a).exp(), math.inf),
        1 / a,
    )


def lambert_w_exp(z: Tensor) -> Tensor:
    """W0(exp z), the u > 0 with u + log u = z, by Newton on log u; any z, without overflow.

    >>> lambert_w_exp(torch.tensor([1.0, 2 + 0.6931471805599453], dtype=torch.float64))
    tensor([1., 2.], dtype=torch.float64)
    """
    x = torch.where(z > 1, z.clamp(min=1).log(), z)  # at or above the root of a convex increasing function
    for _ in range(20):
        x = x - (x.exp() + x - z) / (x.exp() + 1)
    return x.exp()


_FIXED = {
    "reverse_kl": Divergence(
        "reverse_kl", lambda u: torch.xlogy(u, u), lambda u: u.log() + 1, lambda z: torch.exp(z - 1)
    ),
    "forward_kl": Divergence(
        "forward_kl", lambda u: -u.log(), lambda u: -1 / u, lambda z: torch.where(z < 0, -1 / z, math.inf), 0.0
    ),
    "js": Divergence(
        "js",
        lambda u: torch.xlogy(u, u) - (u + 1) * ((u + 1) / 2).log(),
        lambda u: math.log(2) - torch.log1p(1 / u),
        lambda z: torch.where(z < math.log(2), 1 / torch.expm1(math.log(2) - z), math.inf),
        math.log(2),
    ),
    "chi2_kl": Divergence(
        "chi2_kl", lambda u: (u - 1).square() / 2 + torch.xlogy(u, u), lambda u: u + u.log(), lambert_w_exp
    ),
}


def f_divergence(p: Tensor, q: Tensor, family: str, alpha: float | None = None) -> Tensor:
    """D_f(p, q) = E_q f(p / q) of distributions [..., A], q > 0.

    >>> p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    >>> bool(torch.isclose(f_divergence(p, q, "forward_kl"), kl(q, p)))
    True
    """
    return (q * divergence(family, alpha).f(p / q)).sum(-1)


def f_optimum(ref: Tensor, rewards: Tensor, beta: float, family: str, alpha: float | None = None) -> Optimum:
    """argmax of E r - beta D_f(pi, ref), rows of [..., A], and its multiplier, by bisection (the sum falls in lambda).

    Every entry of ref must be positive. The policy is not rescaled: its sum tells how well lambda was found.

    >>> ref, r = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, 0.0, -1.0]).double()
    >>> f_optimum(ref, r, 0.5, "chi2_kl").policy
    tensor([0.7976, 0.1770, 0.0254], dtype=torch.float64)
    """
    if not (ref > 0).all():
        raise ValueError("the reference must give every response a positive probability; leave out those it does not")
    law = divergence(family, alpha)
    ref, rewards = ref.double(), rewards.double()
    best, at_one = rewards.amax(-1, keepdim=True), float(law.derivative(torch.ones((), dtype=torch.float64)))
    gaps = best - rewards  # lambda is searched as its distance from the best reward, where float64 is finest

    def policy(offset: Tensor) -> Tensor:
        return ref * law.inverse((-gaps - offset) / beta)

    # Every ratio is 1 or less at `high`; at `low` every one is 1 or more, or the best one infinite.
    high = torch.full_like(best, -beta * at_one)
    low = (-gaps.amax(-1, keepdim=True) - beta * at_one).clamp(min=-beta * law.limit)
    for _ in range(100):
        middle = (low + high) / 2
        above = policy(middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return Optimum(policy(high), (best + high).squeeze(-1))


def ratio_bounds(spread: float, beta: float, family: str, alpha: float | None = None) -> tuple[float, float]:
    """The least and greatest pi(y) / ref(y) that an optimum can have when rewards span `spread` = max r - min r.

    Some ratio is at most 1 and some at least 1, and f' of two ratios differs by at most spread / beta. Hence exp(R /
    beta) for reverse_kl above, 1 / (1 + R / beta) for forward_kl below, and less than 1 + R / beta for chi2_kl above.

    >>> ratio_bounds(1.0, 0.5, "forward_kl")  # 1 / (1 + 2); nothing bounds it above
    (0.3333333333333333, inf)
    """
    law = divergence(family, alpha)
    at_one = law.derivative(torch.ones((), dtype=torch.float64))
    low, high = law.inverse(at_one - spread / beta), law.inverse(at_one + spread / beta)
    return float(low), float(high)
