"""L45: samples of another policy than the one that trains, and what importance weights repair.

On 256 trees the sampler is s steps behind, or adds fixed noise to every logit as an engine of low precision would.
REINFORCE with a leave-one-out baseline takes the samples as they are, or with the [correction] table: the trainer's
log-probs over the sampler's, a weight for each token or for the completion, cut at 2 and at 3. What counts is the exact
objective E[r] - beta KL at the end, as a share of what can be gained.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fiducial.config import Correction
from fiducial.core.method import KL
from fiducial.core.seeds import mix
from fiducial.evals.stats import mean_interval
from fiducial.exact.tables import TokenTree
from fiducial.labs.base import BLUE, GREEN, ORANGE, Criterion, Lab, Plot, Result, above
from fiducial.labs.online import Draws, Paths, adam, online
from fiducial.labs.tabular import normals

TREES, VOCAB, DEPTH, N, BETA = 256, 3, 3, 8, 0.2
STALE, NOISE = (0, 2, 4, 8, 16, 32), (0.5, 1.0, 2.0)
SETTINGS = {
    "none": Correction(),
    "token": Correction(mode="truncate", level="token", cap=2.0),
    "sequence": Correction(mode="truncate", level="sequence", cap=3.0),
}
COLOR = dict(zip(SETTINGS, (ORANGE, GREEN, BLUE), strict=True))


def run(seed: int, fast: bool) -> Result:
    """Every way of correcting at every staleness and noise, on the same trees and rewards."""
    steps = 80 if fast else 200
    places = [(s, 0.0) for s in STALE] + [(0, noise) for noise in NOISE]
    if fast:
        places = [(0, 0.0), (8, 0.0), (0, 1.0)]
    worth = {(way, *place): gained(way, *place, steps, seed) for place in places for way in SETTINGS}
    apart = max(float((worth[way, 0, 0.0] - worth["none", 0, 0.0]).abs().max()) for way in SETTINGS)
    criteria = [Criterion("|difference that a correction makes to samples of the policy itself|", apart, "<=", 1e-9)]
    for way in ("token", "sequence"):
        change = mean_interval((worth[way, 8, 0.0] - worth["none", 8, 0.0]).tolist())
        criteria.append(above(f"gain by {way} weights at 8 steps behind", change, -0.02))
    metrics = {f"{way}, stale {s}, noise {x:g}": float(worth[way, s, x].mean()) for way, s, x in worth}
    table: dict[str, list[Any]] = {"stale": [s for s, _ in places], "noise": [x for _, x in places]}
    for way in SETTINGS:
        found = [mean_interval(worth[way, *place].tolist()) for place in places]
        table |= {way: [f.value for f in found], f"{way} error": [(f.high - f.low) / 2 for f in found]}
    figures = {"staleness": Plot(lambda *axes: _draw(axes, table), panels=2)}
    ends = ", ".join(f"{way} {metrics[f'{way}, stale 8, noise 0']:.2f}" for way in SETTINGS)
    note = f"Share of what can be gained, 8 steps behind: {ends}."
    return Result({"worth": table}, figures, criteria, note, metrics)


def gained(way: str, stale: int, noise: float, steps: int, seed: int) -> Tensor:
    """Of each tree [S]: how far its objective has come from the reference's to the greatest, beta log Z."""
    tree = TokenTree(VOCAB, DEPTH, prompts=TREES, seed=mix(seed, "trees"))
    paths = Paths(tree)
    rewards, ref = normals(mix(seed, "rewards"), TREES, len(paths.lengths)), paths.logprobs()
    feed = Draws(tree, rewards, N, mix(seed, "draws"), stale=stale, noise=noise)
    kl = KL(BETA, "k1", "reward")
    for _ in online("rloo", tree, feed, steps, optim=adam(0.2), kl=kl, n=N, correction=SETTINGS[way], seed=seed):
        pass
    return share_gained(paths.logprobs(), ref, rewards)


def share_gained(policy: Tensor, ref: Tensor, rewards: Tensor) -> Tensor:
    """Of log-probs and rewards [S, Y], 0 at the reference and 1 at the optimum: [S]."""
    value = (policy.exp() * (rewards - BETA * (policy - ref))).sum(-1)
    start, best = (ref.exp() * rewards).sum(-1), BETA * (ref + rewards / BETA).logsumexp(-1)
    return (value - start) / (best - start)


def _draw(axes: Any, table: dict[str, list[Any]]) -> None:
    for ax, column, other in ((axes[0], "stale", "noise"), (axes[1], "noise", "stale")):
        at = [i for i, value in enumerate(table[other]) if value == 0]
        for way, color in COLOR.items():
            x, y, error = ([table[name][i] for i in at] for name in (column, way, f"{way} error"))
            ax.errorbar(x, y, error, fmt="o-", markersize=4, capsize=2, color=color, label=way)
    axes[0].set(xlabel="steps that the sampler is behind", ylabel="share of what can be gained", title="Stale samples")
    axes[1].set(xlabel="noise of the sampler's logits", title="Another engine's arithmetic")
    axes[0].legend(title="importance weights")


LAB = Lab(
    id="L45",
    name="offpolicy",
    title="Samples of another policy",
    claim="Importance weights change nothing for samples of the policy itself, and cost at most 0.02 of the objective "
    "at 8 steps behind.",
    source="Hilton et al. 2021, arXiv:2110.00641; Espeholt et al. 2018, arXiv:1802.01561",
    run=run,
)
