"""L42: what GRPO's division by the standard deviation makes of the objective.

With rewards of 0 and 1 the expected gradient of a group of G is c_G(p) times that of the success rate p. Without the
division c is 1 - 1/G, with a leave-one-out baseline 1. With it c goes, from below, to 1 / sqrt(p (1 - p)), the gradient
of 2 arcsin sqrt(p): problems that are nearly always or nearly never solved count more. Two completions are too few for
that: at G = 2 c is 1. Groups are enumerated and the gradient is the trainer's own.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fiducial.core.types import Tokens
from fiducial.exact.optima import grpo_factor
from fiducial.exact.tables import SoftmaxTable
from fiducial.labs.base import BLUE, COLORS, GREY, Criterion, Lab, Plot, Result
from fiducial.methods import METHODS
from fiducial.prove.problems import exact_run, ready, value_and_gradient

SIZES = (2, 4, 8, 64)
WAYS = {"std": ("grpo", {"std_epsilon": 0.0}), "none": ("grpo", {"std": "none"}), "leave one out": ("rloo", {})}
COLOR = {"std": BLUE, "none": COLORS[1], "leave one out": COLORS[2]}


def groups(p: float, size: int) -> Tokens:
    """Every number k of successes among `size`, each a group with its binomial chance; 1 is right and 0 wrong."""
    k = torch.arange(size + 1).repeat_interleave(size)
    answers = (torch.arange(size).repeat(size + 1) < k).long()
    ids = torch.stack([torch.zeros_like(answers), answers], 1)
    mask = torch.tensor([False, True]).expand(len(ids), 2)
    chance = [math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)]
    weight = torch.tensor(chance, dtype=torch.float64).repeat_interleave(size)
    extra = {"rewards": answers.double(), "lengths": torch.full((len(ids),), 2)}
    return Tokens(ids, mask, weight, k, extra)


def factor(way: str, p: float, size: int) -> float:
    """The trainer's expected gradient over that of p, p (1 - p) in the logit of the right answer."""
    name, hparams = WAYS[way]
    table = SoftmaxTable(torch.tensor([[0.0, math.log(p / (1 - p))]], dtype=torch.float64))
    settings = exact_run(METHODS[name], n=size, hparams=hparams)
    parts, batch = ready(settings, METHODS[name], table, groups(p, size), None)
    _, gradient = value_and_gradient(settings, METHODS[name], parts, batch, len(batch.input_ids))
    return -float(gradient[1]) / (p * (1 - p))


def run(seed: int, fast: bool) -> Result:
    """All sizes and ways over a grid of success rates; nothing is drawn."""
    edge = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4] if fast else torch.linspace(0.005, 0.495, 50).tolist()
    grid = [*edge, 0.5, *(1 - p for p in reversed(edge))]
    limit = [(p * (1 - p)) ** -0.5 for p in grid]
    sizes = {
        way: SIZES if way == "std" else SIZES[:3] for way in WAYS
    }  # what does not depend on p needs no large group
    found = {(way, g): [factor(way, p, g) for p in grid] for way in WAYS for g in sizes[way]}
    theory = {g: [grpo_factor(p, g) for p in grid] for g in SIZES}
    off = max(abs(a - b) for g in SIZES for a, b in zip(found["std", g], theory[g], strict=True))
    flat = {"none": lambda g: 1 - 1 / g, "leave one out": lambda g: 1.0}
    straight = max(abs(c - level(g)) for way, level in flat.items() for g in sizes[way] for c in found[way, g])
    rise = [min(b - a for a, b in zip(found["std", s], found["std", t], strict=True)) for s, t in ((2, 4), (4, 8))]
    rise.append(min(b - a for a, b in zip(found["std", 8], found["std", 64], strict=True)))
    over = max(c / most for g in SIZES for c, most in zip(found["std", g], limit, strict=True))
    criteria = [
        Criterion("|factor of the trainer's gradient - c_G(p)|, the greatest", off, "<=", 1e-10),
        Criterion("|c - 1| at G = 2, the greatest", max(abs(c - 1) for c in found["std", 2]), "<=", 1e-10),
        Criterion("|c - (1 - 1/G)| without the division, |c - 1| leaving one out", straight, "<=", 1e-10),
        Criterion("c over its limit, the greatest", over, "<", 1.0),
        Criterion("least growth of c with the size of the group", min(rise), ">", 0.0),
    ]
    table = {"p": grid, "limit": limit, **{f"{way}, G = {g}": found[way, g] for way, g in found}}
    figures = {"factors": Plot(lambda *axes: _draw(axes, table), panels=2)}
    at = grid.index(0.02) if 0.02 in grid else 0
    note = (
        f"At p = {grid[at]:.3g} G = 8 has a factor of {found['std', 8][at]:.2f}, G = 64 of {found['std', 64][at]:.2f}, "
    )
    return Result({"factors": table}, figures, criteria, note + f"and the limit is {limit[at]:.2f}.")


def _draw(axes: Any, table: dict[str, list[float]]) -> None:
    for g, color in zip(SIZES, COLORS, strict=False):
        axes[0].plot(table["p"], table[f"std, G = {g}"], color=color, label=f"G = {g}")
    axes[0].plot(table["p"], table["limit"], ":", color=GREY, label="1 / √(p (1 − p))")
    axes[0].set(title="Divided by the standard deviation", ylabel="expected gradient / ∇p", ylim=(0, 8))
    for way in WAYS:
        for g, style in ((4, "-"), (8, "--")):
            axes[1].plot(table["p"], table[f"{way}, G = {g}"], style, color=COLOR[way], label=f"{way}, G = {g}")
    axes[1].set(title="Three baselines", ylim=(0, 8))
    for ax in axes:
        ax.set_xlabel("success rate p")
        ax.legend(ncols=2 if ax is axes[1] else 1, fontsize=7.5)


LAB = Lab(
    id="L42",
    name="grpo_objective",
    title="GRPO's gradient is that of another objective",
    claim="The expected gradient is c_G(p) times that of the success rate; c is 1 at G = 2 and goes to "
    "1 / sqrt(p (1 - p)) from below as groups grow.",
    source="Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025, arXiv:2503.20783",
    run=run,
)
