"""L5: what a divergence does to a policy.

Fitting one Gaussian to a target with two modes: KL(pi || target) settles on the larger mode, KL(target || pi) covers
both, Jensen-Shannon sides with the first here. As a regulariser, a divergence bounds how far the optimum may leave the
reference, by its tail: exp(R / beta) for the reverse KL, 1 + R / beta for chi-squared + KL, and 1 / (1 + R / beta)
below for the forward KL (R: the spread of the rewards). Which of them earns more reward at equal beta is reported, not
claimed: for exact optima it is not the order that papers found on language models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.exact.divergences import FAMILIES, f_divergence, f_optimum, ratio_bounds
from fiducial.exact.minimise import exact_minimise
from fiducial.labs.base import BLUE, COLORS, GREEN, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import normals

GRID = torch.linspace(-6, 6, 241, dtype=torch.float64)
FITTED = {"reverse_kl": "reverse KL(π||target)", "forward_kl": "forward KL(target||π)", "js": "Jensen-Shannon"}
NAMES = {
    "reverse_kl": "reverse KL",
    "forward_kl": "forward KL",
    "js": "JS",
    "alpha": "alpha = 0.5",
    "chi2_kl": "χ² + KL",
}


def target() -> Tensor:
    """70 % around -2, 30 % around 2.5, on the grid."""
    density = 0.7 * torch.exp(-((GRID + 2) ** 2) / 0.5) + 0.3 * torch.exp(-((GRID - 2.5) ** 2) / 0.5)
    return density / density.sum()


def gaussian(parameters: Tensor) -> Tensor:
    """On the grid, of (mean, log of the standard deviation)."""
    return (-((GRID - parameters[0]) ** 2) / (2 * torch.exp(2 * parameters[1]))).softmax(-1)


def fit(family: str) -> Tensor:
    """The Gaussian nearest to the target: the best of several starts, since one mode is a local minimum."""

    def loss(parameters: Tensor) -> Tensor:
        return f_divergence(gaussian(parameters).clamp(min=1e-300), target(), family)

    starts = (torch.tensor(start, dtype=torch.float64) for start in ((-2.0, -0.5), (2.5, -0.5), (0.0, 1.0)))
    return gaussian(min((exact_minimise(loss, start, 1e-8) for start in starts), key=lambda p: float(loss(p))))


def run(seed: int, fast: bool) -> Result:
    """Fits of a Gaussian, and exact optima of random problems and of the worst one."""
    fits = {family: fit(family) for family in FITTED}
    minor = {family: float(found[GRID > 0].sum()) for family, found in fits.items()}
    violations = _violations(seed, 50 if fast else 1000)
    criteria = [Criterion("mass on the minor mode: forward - reverse KL", minor["forward_kl"] - minor["reverse_kl"],
                          ">", 0.0)]  # fmt: skip
    criteria += [
        Criterion(f"ratios outside their bounds, {NAMES[f]}", float(n), "<=", 0.0) for f, n in violations.items()
    ]
    tails, frontier = _tails(), _frontier(seed)
    series = {"fits": {"x": GRID, "target": target(), **fits}, "tails": tails, "reward_and_entropy": frontier}
    figures = {
        "fits": Plot(lambda ax: _draw_fits(ax, fits), width=5.6),
        "tails": Plot(lambda *axes: _draw_tails(axes, tails), panels=2),
    }
    note = "Table reward_and_entropy: at equal beta, what each exact optimum earns and how spread it is."
    return Result(series, figures, criteria, note, {f"mass on the minor mode, {f}": m for f, m in minor.items()})


def _violations(seed: int, problems: int) -> dict[str, int]:
    """Ratios pi/ref of optima of random problems outside `ratio_bounds`, by family, beyond rounding."""
    ref, rewards = normals(seed, problems, 8).mul(2).softmax(-1), normals(seed + 1, problems, 8)
    spreads = (rewards.amax(-1) - rewards.amin(-1)).tolist()
    found: dict[str, int] = dict.fromkeys(FAMILIES, 0)
    for beta in (0.05, 0.5, 5.0):
        for family in FAMILIES:
            ratio = f_optimum(ref, rewards, beta, family, 0.5).policy / ref
            bounds = torch.tensor([ratio_bounds(spread, beta, family, 0.5) for spread in spreads], dtype=torch.float64)
            outside = (ratio < bounds[:, :1] * (1 - 1e-9)) | (ratio > bounds[:, 1:] * (1 + 1e-9))
            found[family] += int(outside.sum())
    return found


def _tails() -> dict[str, Tensor]:
    """The worst cases by R / beta: a response of reward R that the reference almost never gives (greatest ratio), and
    one of reward -R (least)."""
    strength = torch.linspace(0, 12, 49, dtype=torch.float64)[1:]
    series = {"reward spread / beta": strength}
    ref = torch.tensor([1 - 1e-6, 1e-6], dtype=torch.float64)
    for family in FAMILIES:
        for side, sign in (("greatest", 1.0), ("least", -1.0)):
            rewards = torch.stack([torch.zeros_like(strength), sign * strength], -1)
            ratio = f_optimum(ref.expand_as(rewards), rewards, 1.0, family, 0.5).policy / ref
            series[f"{family} {side}"] = ratio[:, 1]
    return series


def _frontier(seed: int) -> dict[str, Any]:
    """Expected reward and entropy of each family's optimum for a random problem of 20 responses."""
    ref, rewards = normals(seed, 20).softmax(-1), normals(seed + 1, 20)
    rows: dict[str, list[Any]] = {"family": [], "beta": [], "reward": [], "entropy": []}
    for beta in (0.1, 0.3, 1.0, 3.0):
        for family in FAMILIES:
            policy = f_optimum(ref, rewards, beta, family, 0.5).policy
            found = family, beta, float(policy @ rewards), float(-torch.xlogy(policy, policy).sum())
            for column, value in zip(rows, found, strict=True):
                rows[column].append(value)
    return rows


def _draw_fits(ax: Any, fits: dict[str, Tensor]) -> None:
    width = float(GRID[1] - GRID[0])
    ax.fill_between(GRID, target() / width, color="#d9d9d9", label="target")
    for family, color, dashes in zip(FITTED, (ORANGE, BLUE, GREEN), ("-", "-", "--"), strict=True):
        ax.plot(GRID, fits[family] / width, dashes, color=color, label=FITTED[family])
    ax.set(xlabel="x", ylabel="density", title="Reverse KL picks a mode, forward KL covers both", ylim=(0, 1))
    ax.legend(loc="upper right")


def _draw_tails(axes: Any, tails: dict[str, Tensor]) -> None:
    strength = tails["reward spread / beta"]
    for family, color in zip(FAMILIES, COLORS, strict=False):
        axes[0].plot(strength, tails[f"{family} greatest"], color=color, label=NAMES[family])
        axes[1].plot(strength, tails[f"{family} least"], color=color, label=NAMES[family])
    axes[0].set(title="A rare response that looks good", ylabel="greatest π/ref")
    axes[1].set(title="A rare response that looks bad", ylabel="least π/ref")
    for ax in axes:
        ax.set(yscale="log", xlabel="R/β")
    axes[1].legend(loc="lower left")


LAB = Lab(
    id="L5",
    name="f_divergences",
    title="Mode seeking, mode covering, and tails",
    claim="Reverse KL settles on one mode and forward KL covers both; the optimum's ratio to the reference is bounded "
    "by exp(R/beta) for reverse KL, 1 + R/beta for chi-squared + KL, and below by 1/(1 + R/beta) for forward KL.",
    source="Wang et al. 2023, arXiv:2309.16240; Huang et al. 2024, arXiv:2407.13399",
    run=run,
)
