"""L44: trained policies beside the exact frontier of reward and KL.

On a tree of 4 tokens and depth 3 (40 responses) with random rewards, ref exp(r / beta) / Z has the most reward at its
KL for every beta: no policy lies above that curve. Each method is trained on its own samples with a KL penalty and
measured by enumeration. With the KL in the reward (k1) the frontier is where REINFORCE, RLOO and PPO should end. As a
loss, k2 has that divergence's gradient at each token and k3 that of the opposite one, KL(ref || pi); GRPO also divides
by the spread of its groups, which makes the penalty weaker or stronger but moves no point off the frontier by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fiducial.config import Critic
from fiducial.core.method import KL
from fiducial.core.seeds import mix
from fiducial.exact.optima import rlhf_optimum
from fiducial.exact.tables import TokenTree
from fiducial.labs.base import COLORS, GREY, Criterion, Lab, Plot, Result
from fiducial.labs.online import Draws, Paths, adam, online
from fiducial.labs.tabular import normals

VOCAB, DEPTH, BATCH = 4, 3, 128
BETAS = (0.25, 0.5, 1.0)
ALL = torch.logspace(1.5, -1.2, 100).tolist()  # betas along the frontier
WAYS: dict[str, tuple[str, KL, dict[str, Any]]] = {
    "rloo": ("rloo", KL(1.0, "k1", "reward"), {}),
    "ppo_lm": ("ppo_lm", KL(1.0, "k1", "reward"), {"whiten_adv": False}),
    "reinforce_lm": ("reinforce_lm", KL(1.0, "k1", "reward"), {"baseline": "running"}),
    "grpo, k2": ("grpo", KL(1.0, "k2", "loss"), {}),
    "grpo, k3": ("grpo", KL(1.0, "k3", "loss"), {}),
}
HELD = ("rloo", "ppo_lm")  # to the frontier


def run(seed: int, fast: bool) -> Result:
    """Each method at each beta, from the reference."""
    ref = TokenTree(VOCAB, DEPTH, seed=mix(seed, "tree"))
    rewards = normals(mix(seed, "rewards"), 1, len(ref.responses()))
    start = Paths(ref).logprobs()[0].exp()
    curve = list(zip(*(optimum(start, rewards[0], beta) for beta in ALL), strict=True))
    rows: dict[str, list[Any]] = {"method": [], "beta": [], "KL": [], "reward": [], "below the frontier": []}
    for way in WAYS:
        for beta in BETAS[1:] if fast else BETAS:
            policy = trained(way, beta, ref, rewards, 150 if fast else 800, seed)
            found = float((policy * (policy / start).log()).sum()), float(policy @ rewards[0])
            for column, value in zip(
                rows, (way, beta, *found, best_at(start, rewards[0], found[0]) - found[1]), strict=True
            ):
                rows[column].append(value)
    worst = {w: max(g for m, g in zip(rows["method"], rows["below the frontier"], strict=True) if m == w) for w in WAYS}
    over = -min(rows["below the frontier"])
    criteria = [Criterion("reward above the frontier, the greatest of all", over, "<=", 1e-9)]
    criteria += [Criterion(f"reward below the frontier at its KL, {way}", worst[way], "<=", 0.03) for way in HELD]
    series = {"points": rows, "frontier": {"beta": ALL, "KL": curve[0], "reward": curve[1]}}
    figures = {"frontier": Plot(lambda *axes: _draw(axes, rows, curve), panels=2)}
    note = "Furthest below the frontier: " + ", ".join(f"{way} {gap:.3f}" for way, gap in worst.items()) + "."
    return Result(series, figures, criteria, note)


def optimum(ref: Tensor, rewards: Tensor, beta: float) -> tuple[float, float]:
    """KL and expected reward of ref exp(r / beta) / Z."""
    policy = rlhf_optimum(ref, rewards, beta)
    return float((policy * (policy / ref).log()).sum()), float(policy @ rewards)


def best_at(ref: Tensor, rewards: Tensor, kl: float) -> float:
    """The frontier's reward at a KL: the optimum's that has it, whose beta is found by bisection.

    >>> even = torch.tensor([0.5, 0.5], dtype=torch.float64)  # KL log 2: all on the better answer
    >>> round(best_at(even, torch.tensor([1.0, 0.0], dtype=torch.float64), 0.6931), 2)
    1.0
    """
    low, high = math.log(1e-3), math.log(1e6)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if optimum(ref, rewards, math.exp(middle))[0] > kl else (low, middle)
    return optimum(ref, rewards, math.exp(low))[1]


def trained(way: str, beta: float, ref: TokenTree, rewards: Tensor, steps: int, seed: int) -> Tensor:
    """The chances [Y] of a tree's responses after training; the learning rate falls to 0, which averages the noise."""
    name, kl, hparams = WAYS[way]
    tree = TokenTree(VOCAB, DEPTH, ref.theta.detach())
    more = {"critic": Critic(lr_scale=2.0)} if name == "ppo_lm" else {}
    feed = Draws(tree, rewards, BATCH, mix(seed, way, str(beta)))
    penalty = KL(beta, kl.estimator, kl.place)
    for _ in online(name, tree, feed, steps, optim=adam(0.05, schedule="cosine"), kl=penalty, hparams=hparams, **more):
        pass
    return feed.paths.logprobs()[0].exp()


def _draw(axes: Any, rows: dict[str, list[Any]], curve: Sequence[Sequence[float]]) -> None:
    axes[0].plot(*curve, color=GREY, label="frontier", zorder=1)
    for way, color in zip(WAYS, COLORS, strict=False):
        here = [i for i, m in enumerate(rows["method"]) if m == way]
        kl, reward, gap = ([rows[name][i] for i in here] for name in ("KL", "reward", "below the frontier"))
        size = 9 if way == "rloo" else 6 if way == "ppo_lm" else 3.5  # they lie on each other
        axes[0].plot(kl, reward, "o", markersize=size, color=color, label=way)
        axes[1].plot([rows["beta"][i] for i in here], gap, "o-", markersize=4, color=color, label=way)
    axes[0].set(xlabel="KL(π || ref) (nats)", ylabel="expected reward", title="No policy lies above the frontier")
    axes[1].axhline(0.03, color=GREY, linewidth=0.8)
    axes[1].set(xlabel="β", ylabel="reward below the frontier", xscale="log", title="Distance at equal KL")
    axes[1].set_xticks(sorted(set(rows["beta"])), [f"{beta:g}" for beta in sorted(set(rows["beta"]))])
    axes[1].set_xticks([], minor=True)
    axes[0].legend(loc="lower right")


LAB = Lab(
    id="L44",
    name="kl_rlhf_optimum",
    title="Trained policies beside the exact frontier",
    claim="No policy has more reward at its KL than ref exp(r / beta) / Z; PPO and RLOO with the KL in the reward end "
    "within 0.03 of that frontier.",
    source="Ziegler et al. 2019, arXiv:1909.08593; Ahmadian et al. 2024, arXiv:2402.14740",
    run=run,
)
