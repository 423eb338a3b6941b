"""L12: DPO on a fixed set of pairs against DPO on pairs of its own samples.

Bandits with 50 arms, standard normal gold rewards and Bradley-Terry labels by them. Offline: minibatches of 400 pairs
that the reference drew. Online: as many pairs a step, drawn afresh from the policy. Both take the same steps of the
real trainer. Fresh pairs are also more labels, so a third path has the offline one's 400, in 25 rounds of 16 pairs that
are each used 16 times; no criterion is about it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.core.seeds import mix
from fiducial.core.types import Tokens
from fiducial.evals.stats import mean_interval
from fiducial.labs.bandits import Bandits, at_kl
from fiducial.labs.base import BLUE, GREY, ORANGE, Lab, Plot, Result, above

BETAS = (0.05, 0.1, 0.5)
ARMS, PAIRS, BATCH, REUSE, LR = 50, 400, 16, 16, 0.1
LEVELS = (0.25, 0.5, 1.0, 1.5)  # nats of KL at which the paths are compared
WAYS = {"online": BLUE, "offline": ORANGE, "online, 400 labels": GREY}


def run(seed: int, fast: bool) -> Result:
    """All bandits at once, and each beta and way of getting pairs in turn."""
    bandits = Bandits(96 if fast else 256, ARMS, mix(seed, "bandits"))
    steps = 400 if fast else 600
    paths = {(way, beta): _path(bandits, way, beta, steps, seed) for beta in BETAS for way in WAYS}
    criteria, metrics = [], {}
    for beta in BETAS:
        peaks = {way: paths[way, beta][0].amax(0) for way in WAYS}
        gain = mean_interval((peaks["online"] - peaks["offline"]).tolist())
        criteria.append(above(f"peak gold reward, online minus offline, beta = {beta:g}", gain, 0.05))
        metrics |= {f"peak of {way}, beta = {beta:g}": float(peak.mean()) for way, peak in peaks.items()}
        metrics |= _matched(paths, beta)
    series = {f"beta={beta:g}": _series(paths, beta) for beta in BETAS}
    ends = ", ".join(f"{metrics[f'peak of {way}, beta = 0.1']:.2f} {way}" for way in WAYS)
    note = f"Means over {len(bandits.gold)} bandits. Peaks of the gold reward at beta = 0.1: {ends}."
    return Result(series, {"frontier": Plot(lambda *axes: _draw(axes, series), 3, 3.7)}, criteria, note, metrics)


def _path(bandits: Bandits, way: str, beta: float, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gold reward and KL of every fifth policy, the reference first: [T, S] each."""
    draw = torch.Generator().manual_seed(mix(seed, way))
    fixed = bandits.pairs(bandits.ref, PAIRS, draw)
    held = fixed

    def make(step: int, policy: Tensor) -> Tokens:
        nonlocal held
        if way == "offline":
            held = fixed.some(BATCH, draw)
        elif step % (1 if way == "online" else REUSE) == 0:
            held = bandits.pairs(policy, BATCH, draw)
        return held.tokens()

    number = steps if way != "online, 400 labels" else PAIRS // BATCH * REUSE
    every = [p for step, p in enumerate(bandits.train("dpo", make, LR, number, beta=beta)) if step % 5 == 4]
    policies = torch.stack([bandits.ref, *every])
    return bandits.value(policies), bandits.kl(policies)


def _matched(paths: dict[Any, tuple[Tensor, Tensor]], beta: float) -> dict[str, float]:
    """Mean gold of online minus offline where both paths come to a KL."""
    found = {}
    for level in LEVELS:
        online, offline = (at_kl(paths[way, beta][1], paths[way, beta][0], level) for way in ("online", "offline"))
        found[f"online minus offline at KL {level:g}, beta = {beta:g}"] = float((online - offline).nanmean())
    return found


def _series(paths: dict[Any, tuple[Tensor, Tensor]], beta: float) -> dict[str, Tensor]:
    length = min(len(paths[way, beta][0]) for way in WAYS)
    table = {"step": torch.arange(length) * 5}
    for way in WAYS:
        for name, values in zip(("gold", "kl"), paths[way, beta], strict=True):
            table[f"{way} {name}"] = values[:length].mean(-1)
    return table


def _draw(axes: Any, series: dict[str, dict[str, Tensor]]) -> None:
    for ax, beta in zip(axes, BETAS, strict=True):
        table = series[f"beta={beta:g}"]
        for way, color in WAYS.items():
            ax.plot(table[f"{way} kl"], table[f"{way} gold"], color=color, label=way)
        ax.set(title=f"β = {beta:g}", xlabel="KL to the reference (nats)", xlim=(0, None), ylim=(0, 2.3))
    axes[0].set_ylabel("gold reward")
    axes[0].legend(loc="lower right")


LAB = Lab(
    id="L12",
    name="online_offline_frontier",
    title="Online DPO reaches further than offline DPO",
    claim="At equal KL from the reference DPO on its own samples has the higher gold reward, and its peak is higher.",
    source="Tang et al. 2024, arXiv:2405.08448; Gao et al. 2022, arXiv:2210.10760",
    run=run,
)
