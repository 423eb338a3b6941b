"""L1: what a Bradley-Terry reward cannot say.

Three raters, each of them consistent, whose majority goes round in a circle (Condorcet's example): on average the first
response beats the second, the second the third and the third the first, each with probability 2/3. The best
Bradley-Terry rewards are all equal, so its loss stays at log 2; a model of the pair itself reaches the labels' entropy.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fiducial.data.preferences.raters import aggregate, three_raters
from fiducial.labs.base import BLUE, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import descend, normals
from fiducial.methods import METHODS

FIRST, SECOND = torch.tensor([0, 1, 2, 1, 2, 0]), torch.tensor([1, 2, 0, 0, 1, 2])  # every ordered pair
ENTROPY = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)


def run(seed: int, fast: bool) -> Result:
    """Gradient descent on both models' losses over all pairs, weighted by how often they are seen."""
    raters = three_raters()
    tables = torch.cat([rater.preferences() for rater in raters])
    average = aggregate(raters)[0]
    steps = 300 if fast else 3000
    rewards = descend(lambda r: _bt(r, average), normals(seed, 3), 2.0, steps)
    pairwise = descend(lambda g: _general(g, average), normals(seed + 1, 3, 3), 4.0, steps)
    nll = {
        "Bradley-Terry": torch.stack([_bt(r, average) for r in rewards]),
        "general": torch.stack([_general(g, average) for g in pairwise]),
    }
    criteria = [
        Criterion("|loss of Bradley-Terry - log 2|", abs(float(nll["Bradley-Terry"][-1]) - math.log(2)), "<=", 1e-4),
        Criterion("|loss of the general model - 0.6365|", abs(float(nll["general"][-1]) - ENTROPY), "<=", 1e-3),
        Criterion("|average preference - 2/3| round the cycle", _off(average), "<=", 1e-15),
    ]
    matrices = {"rater": [name for name in ("1", "2", "3", "average") for _ in range(9)]}
    cells = torch.cat([tables, average[None]])
    matrices |= {"first": [i + 1 for _ in range(4) for i in range(3) for _ in range(3)]}
    matrices |= {"second": [j + 1 for _ in range(12) for j in range(3)], "preference": cells.flatten().tolist()}
    series = {"matrices": matrices, "training": {"step": list(range(steps + 1)), **nll}}
    figures = {
        "matrices": Plot(lambda *axes: _draw_matrices(axes, cells), panels=4, width=2.5, height=3.1),
        "training": Plot(lambda ax: _draw_training(ax, nll)),
    }
    note = "Each rater's matrix is an order; their average is a cycle, on which every reward is as good as none."
    return Result(series, figures, criteria, note)


def _bt(rewards: Tensor, preference: Tensor) -> Tensor:
    """Mean loss of free rewards [3]."""
    chosen, rejected = rewards[FIRST], rewards[SECOND]
    losses = METHODS["bt_reward_model"].loss(chosen, rejected, torch.zeros_like(chosen))
    return (preference[FIRST, SECOND] * losses).sum() / 3


def _general(scores: Tensor, preference: Tensor) -> Tensor:
    """Mean loss of free scores g(i, j), [3, 3], of each ordered pair."""
    losses = METHODS["pairwise_preference_model"].loss(scores[FIRST, SECOND], scores[SECOND, FIRST])
    return (preference[FIRST, SECOND] * losses).sum() / 3


def _off(average: Tensor) -> float:
    return float((average[FIRST[:3], SECOND[:3]] - 2 / 3).abs().max())


def _draw_matrices(axes: Any, tables: Tensor) -> None:
    names = ("rater 1: 3 > 1 > 2", "rater 2: 2 > 3 > 1", "rater 3: 1 > 2 > 3", "average: a cycle")
    for ax, table, name in zip(axes, tables, names, strict=True):
        ax.imshow(table.numpy(), vmin=0, vmax=1, cmap="cividis")
        for i in range(3):
            for j in range(3):
                value = float(table[i, j])
                ax.text(j, i, f"{value:.2g}", ha="center", va="center", color="white" if value < 0.6 else "black")
        ax.set_xticks(range(3), ["1", "2", "3"])
        ax.set_yticks(range(3), ["1", "2", "3"])
        ax.set(title=name, xlabel="beats response")
        ax.grid(visible=False)
    axes[0].set_ylabel("P(response ...")


def _draw_training(ax: Any, nll: dict[str, Tensor]) -> None:
    for (name, values), color in zip(nll.items(), (ORANGE, BLUE), strict=True):
        ax.plot(range(1, len(values) + 1), values, color=color, label=name)
    for bound, said in ((math.log(2), "log 2"), (ENTROPY, "entropy of the labels")):
        ax.axhline(bound, color="#888888", linewidth=0.8, linestyle=":", zorder=0)
        ax.annotate(said, (0.99, bound), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8.5)
    ax.set(xscale="log", xlabel="step", ylabel="negative log-likelihood (nats)", title="No reward fits a cycle")
    ax.legend()


LAB = Lab(
    id="L1",
    name="bt_vs_cycle",
    title="A cycle that no reward explains",
    claim="Three consistent raters average to a 2/3 cycle. The Bradley-Terry loss stays at log 2 = 0.6931, a general "
    "preference model reaches the entropy 0.6365.",
    source="Munos et al. 2023, arXiv:2312.00886; Condorcet's example",
    run=run,
)
