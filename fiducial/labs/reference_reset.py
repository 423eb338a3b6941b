"""L46: a reference that is set to the policy from time to time.

Under a KL penalty the policy comes to rest at ref exp(r / beta) / Z, however long it trains. If the reference is then
set to the policy, and the optimizer forgets, the next round goes as far again: after n rounds the policy is
pi_0 exp(n r / beta) / Z, the optimum for beta / n. The method is `prorl` without scaling and clipping; every group
of two answers is enumerated with its chance, so nothing is drawn.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fiducial.core.method import KL
from fiducial.core.seeds import mix
from fiducial.core.types import Tokens
from fiducial.evals.stats import mean_interval
from fiducial.exact.divergences import kl
from fiducial.exact.optima import moving_reference_optimum
from fiducial.exact.tables import TokenTree
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result, above
from fiducial.labs.online import Paths, adam, online, rows
from fiducial.labs.tabular import normals
from fiducial.train.measure import Meter

PROMPTS, ANSWERS, BETA, ROUNDS = 12, 4, 1.0, 3
WAYS = {"with resets": BLUE, "without": ORANGE}


class Pairs:
    """All groups of two answers to each prompt, each weighted by its chance under the policy as it is now."""

    def __init__(self, tree: TokenTree, rewards: Tensor):
        self.paths = Paths(tree)
        two = torch.tensor(list(product(range(ANSWERS), repeat=2))).repeat(PROMPTS, 1)  # [S A A, 2]
        prompt = torch.arange(PROMPTS).repeat_interleave(ANSWERS**2)[:, None].expand_as(two)
        self.at = prompt.reshape(-1), two.reshape(-1)
        self.tokens = rows(self.paths, *self.at, {"rewards": rewards[self.at]})
        self.tokens.group = torch.arange(len(two)).repeat_interleave(2)

    def batch(self, step: int, meter: Meter) -> Tokens:
        each = self.paths.logprobs().exp()[self.at].view(-1, 2)
        weight = each.prod(-1).repeat_interleave(2)
        return replace(self.tokens, weight=weight, extra=dict(self.tokens.extra))


def path(way: str, steps: int, rewards: Tensor, seed: int) -> dict[str, Tensor]:
    """After every step: reward [T, S], the KL to the first policy [T, S], the batch's KL to the reference before it
    [T]; and the last policy [S, A]."""
    tree = TokenTree(ANSWERS, 1, prompts=PROMPTS, seed=mix(seed, "reference"))
    start, found = (
        tree.theta.detach()[:, 0].softmax(-1),
        {"reward": [], "KL to the start": [], "KL to the reference": []},
    )
    every = steps // ROUNDS if way == "with resets" else 0
    hparams = {"std": "none", "clip_low": 1.0, "clip_high": 1e6, "reset_every": every}
    penalty = KL(BETA, "k1", "reward")
    feed = Pairs(tree, rewards)
    for report in online("prorl", tree, feed, steps, optim=adam(0.15), kl=penalty, hparams=hparams, seed=seed):
        policy = tree.theta.detach()[:, 0].softmax(-1)
        found["reward"].append((policy * rewards).sum(-1))
        found["KL to the start"].append(kl(policy, start))
        found["KL to the reference"].append(torch.tensor(report.metrics["kl/sequence"], dtype=torch.float64))
    return {name: torch.stack(values) for name, values in found.items()} | {"policy": policy, "start": start}


def run(seed: int, fast: bool) -> Result:
    """Rewards and references are standard normal; both ways take the same steps."""
    steps = ROUNDS * (150 if fast else 400)
    rewards = normals(mix(seed, "rewards"), PROMPTS, ANSWERS)
    paths = {way: path(way, steps, rewards, seed) for way in WAYS}
    gain = mean_interval((paths["with resets"]["reward"][-1] - paths["without"]["reward"][-1]).tolist())
    first = range(steps // ROUNDS, steps, steps // ROUNDS)  # the first batch of each later round
    still = max(abs(float(paths["with resets"]["KL to the reference"][step])) for step in first)
    criteria = [
        above("final reward, with resets minus without", gain, 0.05),
        Criterion("|KL to the reference| right after a reset, the greatest", still, "<=", 1e-12),
    ]
    for way, number in (("with resets", ROUNDS), ("without", 1)):
        goal = moving_reference_optimum(paths[way]["start"], rewards, BETA, number)
        gap = float((paths[way]["policy"] - goal).abs().sum(-1).max()) / 2
        criteria.append(Criterion(f"total variation to start exp({number} r / beta) / Z, {way}", gap, "<=", 1e-3))
    series = {"paths": {"step": torch.arange(1, steps + 1)} | {
        f"{way}: {name}": values.mean(-1) if values.ndim == 2 else values
        for way in WAYS for name, values in paths[way].items() if len(values) == steps
    }}  # fmt: skip
    figures = {"rounds": Plot(lambda *axes: _draw(axes, series["paths"], steps), panels=2)}
    return Result(series, figures, criteria, f"{ROUNDS} rounds end {gain.value:.2f} higher than one.")


def _draw(axes: Any, table: dict[str, Tensor], steps: int) -> None:
    for way, color in WAYS.items():
        axes[0].plot(table["step"], table[f"{way}: reward"], color=color, label=way)
        axes[1].plot(table["step"], table[f"{way}: KL to the start"], color=color, label=f"to the start, {way}")
    axes[1].plot(table["step"], table["with resets: KL to the reference"], ":", color=BLUE,
                 label="to the reference, with resets")  # fmt: skip
    for ax in axes:
        for step in range(steps // ROUNDS, steps, steps // ROUNDS):
            ax.axvline(step, color=GREY, linewidth=0.7, zorder=0)
        ax.set_xlabel("step")
        ax.legend(fontsize=8)
    axes[0].set(ylabel="expected reward", title="A plateau, and growth by rounds")
    axes[1].set(ylabel="KL (nats)", title="The penalty is spent anew in each round")


LAB = Lab(
    id="L46",
    name="reference_reset",
    title="Setting the reference to the policy",
    claim="With a fixed reference the reward reaches a plateau; with n rounds the policy is pi_0 exp(n r / beta) / Z, "
    "and the reward goes on growing.",
    source="Liu et al. 2025, arXiv:2505.24864; Gorbatovski et al. 2024, arXiv:2404.09656",
    run=run,
)
