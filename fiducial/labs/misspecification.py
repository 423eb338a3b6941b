"""L14: RLHF against DPO when a model class misses the truth.

RLHF fits a reward in its class and then takes the best policy of another class; DPO fits the policy to the preferences
directly. With exact data and exact optimisation, which of the two is worth more under the true reward depends on which
class holds the truth: if both do, or if both miss it in the same way, they are equal; if only the policy class misses
it, RLHF wins; if only the reward class does, DPO wins; if both miss it in different ways, either can win. Online DPO,
whose pairs come from its own policy, can then exceed both: how often is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fiducial.exact.misspecification import online_dpo_in_class, regularised_value, rlhf_vs_dpo
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import normals

ARMS, BETA = 3, 1.0
REF = torch.full((ARMS,), 1 / ARMS, dtype=torch.float64)
TOLERANCE = 1e-7

Instance = tuple[Tensor, Tensor, Tensor]  # true rewards [A], features of rewards and of policies [A, 1]


def instance(case: str, seed: int) -> Instance:
    """A random problem on three arms with one feature for each class."""
    free, one, other = normals(seed, ARMS), normals(seed + 1, ARMS, 1), normals(seed + 2, ARMS, 1)
    scale = 0.5 + normals(seed + 3, 1).abs()
    return {
        "both right": (scale * one[:, 0], one, 2 * one),
        "policy class wrong": (scale * one[:, 0], one, other),
        "reward class wrong": (free, one, free[:, None]),
        "both wrong, the same": (free, one, 2 * one),
        "both wrong, different": (free, one, other),
    }[case]


CASES: dict[str, Callable[[Tensor], Tensor] | None] = {  # which gaps V(RLHF) - V(DPO) agree with theory
    "both right": lambda gap: gap.abs() <= TOLERANCE,
    "policy class wrong": lambda gap: gap >= -TOLERANCE,
    "reward class wrong": lambda gap: gap <= TOLERANCE,
    "both wrong, the same": lambda gap: gap.abs() <= TOLERANCE,
    "both wrong, different": None,
}


def run(seed: int, fast: bool) -> Result:
    """Random problems of each case, solved exactly by both ways."""
    number = 40 if fast else 200
    gaps: dict[str, Tensor] = {}
    for k, case in enumerate(CASES):
        problems = (instance(case, 10 * (number * (len(CASES) * seed + k) + i)) for i in range(number))
        found = [rlhf_vs_dpo(rewards, REF, one, other, BETA) for rewards, one, other in problems]
        gaps[case] = torch.tensor([f.rlhf_value - f.dpo_value for f in found], dtype=torch.float64)
    criteria = []
    for case, agrees in CASES.items():
        gap = gaps[case]
        if agrees is not None:
            criteria.append(Criterion(f"share with the sign of theory, {case}", _share(agrees(gap)), ">=", 0.99))
        if case in ("both right", "both wrong, the same"):
            criteria.append(Criterion(f"greatest |gap|, {case}", float(gap.abs().max()), "<", 1e-6))
    either = gaps["both wrong, different"]
    criteria.append(Criterion("lesser share of either sign, both wrong, different", min(_share(either > TOLERANCE),
                              _share(either < -TOLERANCE)), ">", 0.0))  # fmt: skip
    exceeds = _online(seed, 10 if fast else 50)
    series: dict[str, Any] = {"gaps": gaps}
    figures = {"gaps": Plot(lambda ax: _draw(ax, gaps), width=7.5, height=3.6)}
    metrics = {"share of problems where online DPO exceeds both, both wrong, the same": exceeds}
    metrics |= {f"mean V(RLHF) - V(DPO), {case}": float(gap.mean()) for case, gap in gaps.items()}
    note = f"Where both classes are wrong in the same way, online DPO exceeds both in {exceeds:.0%} of the problems."
    return Result(series, figures, criteria, note, metrics)


def _share(where: Tensor) -> float:
    return float(where.double().mean())


def _online(seed: int, number: int) -> float:
    """How often online DPO is worth more than RLHF and DPO, where both classes are wrong in the same way."""
    better = 0
    for i in range(number):
        rewards, one, other = instance("both wrong, the same", 10 * (number * seed + i) + 5)
        found = rlhf_vs_dpo(rewards, REF, one, other, BETA)
        online = regularised_value(online_dpo_in_class(rewards, REF, other, BETA, rounds=10), rewards, REF, BETA)
        better += float(online) > max(found.rlhf_value, found.dpo_value) + TOLERANCE
    return better / number


def _draw(ax: Any, gaps: dict[str, Tensor]) -> None:
    for place, gap in enumerate(gaps.values()):
        scatter = torch.linspace(-0.28, 0.28, len(gap))[torch.randperm(len(gap), generator=torch.Generator())]
        equal = gap.abs() <= TOLERANCE
        for where, color in ((equal, GREY), (gap > TOLERANCE, BLUE), (gap < -TOLERANCE, ORANGE)):
            ax.plot(place + scatter[where], gap[where], "o", markersize=3.2, alpha=0.7, color=color)
    ax.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    ax.set_yscale("symlog", linthresh=1e-5)
    names = ("both classes\nright", "policy class\nwrong", "reward class\nwrong", "both wrong,\nthe same")
    ax.set_xticks(range(len(gaps)), [*names, "both wrong,\ndifferent"])
    ax.set(ylabel="V(RLHF) − V(DPO), symlog", title="Which way is worth more, by what the model classes miss")


LAB = Lab(
    id="L14",
    name="misspecification",
    title="RLHF against DPO when a model class is wrong",
    claim="Equal if both classes hold the truth or both miss it in the same way; RLHF is worth more if only the policy "
    "class misses it, DPO if only the reward class does; otherwise either.",
    source="Shi et al. 2025, arXiv:2505.19770",
    run=run,
)
