"""L43: safe RLHF keeps a cost at its limit, on average.

Four answers with rewards 1, 0.8, 0.3, 0 and costs 1, 0.2, -0.5, -1. The best policy whose expected cost is at most 0
draws the second with 5/6 and the fourth with 1/6, reward 2/3. The multiplier rises while the cost is above 0 and falls
while it is below, and policy and multiplier may go round that point without end, so what is measured are averages over
the second half of a run. All settings are the method's own, its KL penalty of 0.02 too, which dampens the swings. With
the multiplier held at nothing the costs are ignored.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from fiducial.config import Critic
from fiducial.core.seeds import mix
from fiducial.evals.stats import Interval, mean_interval
from fiducial.exact.tables import TokenTree
from fiducial.labs.base import BLUE, COLORS, GREY, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.online import Draws, adam, online
from fiducial.methods import METHODS

REWARDS, COSTS = torch.tensor([[1.0, 0.8, 0.3, 0.0], [1.0, 0.2, -0.5, -1.0]]).double()
BEST = 2 / 3
BATCH = 128
WAYS = {"safe_rlhf": {}, "no multiplier": {"lambda_lr": 0.0, "lambda_init": 1e-9}}
COLOR = {"safe_rlhf": BLUE, "no multiplier": ORANGE}


def path(way: str, steps: int, seed: int) -> dict[str, list[float]]:
    """Exact expectations of the policy after each step, and the multiplier."""
    tree = TokenTree(4, 1, torch.zeros(1, 5, 4))
    feed = Draws(tree, REWARDS[None], BATCH, seed, costs=COSTS[None])
    optim = adam(0.05, betas=(0.0, 0.99))  # no momentum, which would drive the swings
    found: dict[str, list[float]] = {"reward": [], "cost": [], "lambda": []}
    critic, kl = Critic(lr_scale=1.0), METHODS["safe_rlhf"].kl
    for report in online(
        "safe_rlhf", tree, feed, steps, optim=optim, critic=critic, kl=kl, hparams=WAYS[way], seed=seed
    ):
        chances = tree.theta.detach()[0, 0].softmax(-1)
        found["reward"].append(float(chances @ REWARDS))
        found["cost"].append(float(chances @ COSTS))
        found["lambda"].append(report.metrics.get("lambda", 0.0))
    return found


def run(seed: int, fast: bool) -> Result:
    """Repetitions that differ in what is drawn."""
    repetitions = 3 if fast else 8
    steps = {"safe_rlhf": 300 if fast else 1000, "no multiplier": 80 if fast else 400}
    paths = {way: [path(way, number, mix(seed, r)) for r in range(repetitions)] for way, number in steps.items()}
    half = {
        (way, name): [fmean(p[name][len(p[name]) // 2 :]) for p in paths[way]]
        for way in WAYS
        for name in ("reward", "cost")
    }
    cost, reward = (mean_interval(half["safe_rlhf", name]) for name in ("cost", "reward"))
    distance = [abs(r - BEST) for r in half["safe_rlhf", "reward"]]
    free = mean_interval(half["no multiplier", "cost"])
    criteria = [
        _below("mean cost, second half", cost, 0.05),
        _below("|mean reward - 2/3|, second half", mean_interval(distance), 0.05),
        Criterion("mean cost without a multiplier", free.value, ">", 0.5, free),
    ]
    first = {way: paths[way][0] for way in WAYS}
    series = {way.replace(" ", "_"): {"step": list(range(1, steps[way] + 1)), **first[way]} for way in WAYS}
    late = first["safe_rlhf"]["lambda"][steps["safe_rlhf"] // 2 :]
    note = f"Reward {reward.value:.3f} of {BEST:.3f} and cost {cost.value:.3f} on average over the second half."
    figures = {"constraint": Plot(lambda *axes: _draw(axes, first), panels=3, width=4.0)}
    return Result(series, figures, criteria, note, {"swing of lambda, second half": max(late) - min(late)})


def _below(name: str, estimate: Interval, bound: float) -> Criterion:
    return Criterion(name, estimate.value, "<=", bound, estimate)


def _draw(axes: Any, first: dict[str, dict[str, list[float]]]) -> None:
    for way, path in first.items():
        axes[0].plot(path["reward"], color=COLOR[way], label=way)
        axes[0].plot(path["cost"], ":", color=COLOR[way])
    axes[0].axhline(BEST, color=GREY, linewidth=0.8)
    axes[0].axhline(0, color=GREY, linewidth=0.8)
    axes[0].set(title="Reward (solid) and cost (dotted)", xlabel="step")
    axes[0].legend()
    safe = first["safe_rlhf"]
    axes[1].plot(safe["lambda"], color=BLUE)
    axes[1].set(title="The multiplier", xlabel="step", ylabel="λ")
    axes[2].plot(safe["cost"], safe["lambda"], color=COLORS[4], linewidth=0.8)
    axes[2].plot(safe["cost"][-1], safe["lambda"][-1], "o", color=BLUE, label="last step")
    axes[2].axvline(0, color=GREY, linewidth=0.8)
    axes[2].set(title="Cost and multiplier", xlabel="cost", ylabel="λ")
    axes[2].legend()


LAB = Lab(
    id="L43",
    name="safe_rlhf",
    title="A cost that is kept at its limit",
    claim="The averages of safe RLHF's second half have a cost of at most 0 and the reward of the best policy under "
    "that constraint; without a multiplier the constraint is violated. Single iterates may swing.",
    source="Dai et al. 2023, arXiv:2310.12773",
    run=run,
)
