"""L51: nine policy gradients on the same problems.

32 trees of 4 tokens and depth 3 with a reward of 0 or 1 that a third of the responses earn, eight completions of each
tree a step, every method with its own KL penalty and settings. Success and the KL to the start are exact, from
enumeration. What is held in memory is counted in numbers of 8 bytes: parameters that train and AdamW's two averages.
Methods that are about several updates on a batch take two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.core.seeds import mix
from fiducial.core.types import Tokens
from fiducial.evals.stats import mean_interval
from fiducial.exact.tables import TokenTree, ValueTree
from fiducial.labs.base import COLORS, GREY, Criterion, Lab, Plot, Result, above
from fiducial.labs.online import Draws, adam, online
from fiducial.methods import METHODS
from fiducial.train.measure import Meter

TREES, VOCAB, DEPTH, N = 32, 4, 3, 8
NAMES = ("reinforce_lm", "rloo", "remax", "mdloo", "grpo", "dr_grpo", "reinforce_pp", "kimi_l2_pg", "ppo_lm")
TWICE = ("mdloo", "kimi_l2_pg", "ppo_lm")


class WithGreedy(Draws):
    """Draws whose batch also has what the greedy response of each row's tree earns, which ReMax compares with."""

    def batch(self, step: int, meter: Meter) -> Tokens:
        batch = super().batch(step, meter)
        theta, paths = self.paths.tree.theta.detach(), self.paths
        likeliest = theta.argmax(-1)[:, paths.nodes] == paths.tokens  # [S, Y, T]
        greedy = (likeliest | ~paths.mask).all(-1).double().argmax(-1)  # the one response that goes along all the way
        rewards = self.outcomes["rewards"][torch.arange(len(theta)), greedy, 0]
        batch.extra["greedy_rewards"] = rewards[batch.group]
        return batch


def path(name: str, steps: int, seed: int) -> dict[str, Tensor]:
    """Success [T, S] before each step and after the last, and KL to the start [T, S]."""
    tree = TokenTree(VOCAB, DEPTH, prompts=TREES, seed=mix(seed, "trees"))
    draw = torch.Generator().manual_seed(mix(seed, "rewards"))
    rewards = (torch.rand(TREES, len(tree.responses()), generator=draw) < 1 / 3).double()
    feed = WithGreedy(tree, rewards, N, mix(seed, "draws"))
    start = feed.paths.logprobs()
    found: list[Tensor] = [start]
    optim = adam(0.05, epochs=2 if name in TWICE else 1)
    for _ in online(name, tree, feed, steps, optim=optim, kl=METHODS[name].kl, n=N, seed=seed):
        found.append(feed.paths.logprobs())
    logprobs = torch.stack(found)
    success = (logprobs.exp() * rewards).sum(-1)
    return {"success": success, "KL": (logprobs.exp() * (logprobs - start)).sum(-1)}


def held(name: str) -> int:
    """Numbers that training by a method keeps: three for each parameter that trains."""
    tree = TokenTree(VOCAB, DEPTH, prompts=TREES)
    critics = len(METHODS[name].critics) * ValueTree(VOCAB, DEPTH, TREES).forecast.numel()
    return 3 * (tree.theta.numel() + critics)


def run(seed: int, fast: bool) -> Result:
    """The same trees, rewards and draws for every method."""
    steps = 60 if fast else 300
    paths = {name: path(name, steps, seed) for name in NAMES}
    gains = {name: mean_interval((p["success"][-1] - p["success"][0]).tolist()) for name, p in paths.items()}
    risen = sum(gain.low > 0.2 for gain in gains.values())
    worst = min(gains, key=lambda name: gains[name].value)
    criteria = [
        Criterion("methods whose success rises by 0.2, of 9", float(risen), ">=", 8.0),
        above(f"rise of the least ({worst})", gains[worst], 0.0),
        Criterion("numbers held, ppo_lm over rloo", held("ppo_lm") / held("rloo"), ">", 1.0),
    ]
    series = {"paths": {"samples": [TREES * N * t for t in range(steps + 1)]} | {
        f"{name} {what}": p[what].mean(-1) for name, p in paths.items() for what in ("success", "KL")
    }}  # fmt: skip
    metrics = {f"rise by {name}": gain.value for name, gain in gains.items()}
    said = ", ".join(f"{name} {gain.value:+.2f}" for name, gain in gains.items())
    figures = {"methods": Plot(lambda *axes: _draw(axes, series["paths"]), panels=2)}
    return Result(series, figures, criteria, f"Rise of the success rate: {said}.", metrics)


def _draw(axes: Any, table: dict[str, Any]) -> None:
    for i, name in enumerate(NAMES):
        color, style = (*COLORS, GREY)[i % len(COLORS)], "--" if i >= len(COLORS) else "-"
        axes[0].plot(table["samples"], table[f"{name} success"], style, color=color, label=name)
        axes[1].plot(table[f"{name} KL"], table[f"{name} success"], style, color=color)
    axes[0].set(xlabel="completions", ylabel="success rate", title="By completions")
    axes[1].set(xlabel="KL to the start (nats)", title="By what it costs in KL")
    axes[0].legend(fontsize=7.5)


LAB = Lab(
    id="L51",
    name="online_compare",
    title="Nine policy gradients on the same problems",
    claim="At least eight of nine raise the success rate by 0.2 and none lowers it; those without a critic hold less "
    "in memory than PPO.",
    source="Ahmadian et al. 2024, arXiv:2402.14740; Li et al. 2023, arXiv:2310.10505",
    run=run,
)
