"""L13: what a loss that pushes the rejected side down is worth, on fixed pairs and on the policy's own.

Two by two on bandits with 50 arms and Bradley-Terry labels: pairs of the reference (400, in minibatches) or fresh ones
of the policy; the likelihood of the chosen side alone (sft) or both sides (ipo). Nothing pulls the likelihood back to
the reference, so on its own samples it moves until one arm is left: it is compared with ipo at the same KL only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fiducial.core.seeds import mix
from fiducial.core.types import Tokens
from fiducial.evals.stats import mean_interval
from fiducial.labs.bandits import Bandits, at_kl
from fiducial.labs.base import BLUE, GREEN, ORANGE, RED, Lab, Plot, Result, above

ARMS, PAIRS, BATCH, LR, BETA, STEPS = 50, 400, 16, 0.1, 0.1, 200
COLORS = {"on-policy ipo": BLUE, "on-policy sft": ORANGE, "offline ipo": GREEN, "offline sft": RED}
LABELS = {"ipo": "IPO", "sft": "chosen likelihood"}
SWEPT = (4, 16, 64)  # pairs a round


@dataclass(frozen=True)
class Path:
    """Every fifth policy, the reference first, [T, S]: gold reward, KL, log-prob of the worse half of the arms."""

    gold: Tensor
    kl: Tensor
    bad: Tensor


def run(seed: int, fast: bool) -> Result:
    """The four cells, then on-policy IPO with each round of B pairs used for T updates."""
    bandits = Bandits(48 if fast else 128, ARMS, mix(seed, "bandits"))
    paths = {cell: _path(bandits, cell, seed) for cell in COLORS}
    last = {cell: path.gold[-1] for cell, path in paths.items()}
    own, likelihood = paths["on-policy ipo"], paths["on-policy sft"]
    level = own.kl.amax(0).minimum(likelihood.kl.amax(0))  # of each bandit, the furthest that both come
    matched = at_kl(own.kl, own.gold, level) - at_kl(likelihood.kl, likelihood.gold, level)
    gains = {
        "gold reward, offline: ipo minus chosen likelihood": last["offline ipo"] - last["offline sft"],
        "gold reward, ipo: on-policy minus offline": last["on-policy ipo"] - last["offline ipo"],
        "gold reward, on-policy at equal KL: ipo minus chosen likelihood": matched,
    }
    reuse = (1, 8, 64) if fast else (1, 4, 16, 64)
    sweep = {size: [_reused(bandits, size, times, seed) for times in reuse] for size in SWEPT}
    series = {
        "cells": _table(paths),
        "reuse": {"updates a round": reuse, **{f"{size} pairs": values for size, values in sweep.items()}},
    }
    metrics = {"KL of the comparison": float(level.mean())}
    metrics |= {f"{name} at the end, {c}": float(getattr(p, name)[-1].mean()) for c, p in paths.items()
                for name in ("gold", "kl", "bad")}  # fmt: skip
    return Result(
        series,
        {
            "cells": Plot(lambda *axes: _draw(axes, series["cells"]), panels=3, width=3.9),
            "reuse": Plot(lambda axis: _draw_reuse(axis, series["reuse"])),
        },
        [above(name, mean_interval(gain.tolist()), 0.0) for name, gain in gains.items()],
        f"Means over {len(bandits.gold)} bandits after {STEPS} updates. The likelihood of its own chosen samples has "
        f"no brake: it ends at a KL of {metrics['kl at the end, on-policy sft']:.2f} nats, IPO at "
        f"{metrics['kl at the end, on-policy ipo']:.2f}.",
        metrics,
    )


def _path(bandits: Bandits, cell: str, seed: int) -> Path:
    where, method = cell.split()
    draw = torch.Generator().manual_seed(mix(seed, where, method))
    fixed = bandits.pairs(bandits.ref, PAIRS, torch.Generator().manual_seed(mix(seed, "offline")))

    def make(step: int, policy: Tensor) -> Tokens:
        pairs = bandits.pairs(policy, BATCH, draw) if where == "on-policy" else fixed.some(BATCH, draw)
        return pairs.tokens(chosen_only=method == "sft")

    hparams = {"beta": BETA} if method == "ipo" else {}
    policies = [bandits.ref, *bandits.train(method, make, LR, STEPS, **hparams)][::5]
    worse = (bandits.gold < bandits.gold.median(-1, keepdim=True).values).double()
    stacked = torch.stack(policies)
    bad = (stacked.log() * worse).sum(-1) / worse.sum(-1)
    return Path(bandits.value(stacked), bandits.kl(stacked), bad)


def _reused(bandits: Bandits, size: int, times: int, seed: int) -> float:
    """Mean gold reward after `STEPS` updates of on-policy IPO with `times` updates on each round of `size` pairs."""
    draw = torch.Generator().manual_seed(mix(seed, "reuse", size, times))
    held: Any = None

    def make(step: int, policy: Tensor) -> Tokens:
        nonlocal held
        if step % times == 0:
            held = bandits.pairs(policy, size, draw)
        return held.tokens()

    *_, policy = bandits.train("ipo", make, LR, STEPS, beta=BETA)
    return float(bandits.value(policy).mean())


def _table(paths: dict[str, Path]) -> dict[str, Tensor]:
    columns = {"step": torch.arange(len(paths["offline ipo"].gold)) * 5}
    for cell, path in paths.items():
        columns |= {f"{cell} {name}": getattr(path, name).mean(-1) for name in ("gold", "kl", "bad")}
    return columns


def _draw(axes: Any, table: dict[str, Tensor]) -> None:
    for cell, color in COLORS.items():
        where, method = cell.split()
        label, dashes = f"{where}, {LABELS[method]}", "-" if method == "ipo" else "--"
        axes[0].plot(table["step"], table[f"{cell} gold"], dashes, color=color)
        axes[1].plot(table[f"{cell} kl"], table[f"{cell} gold"], dashes, color=color)
        axes[2].plot(table["step"], table[f"{cell} bad"], dashes, color=color, label=label)
    axes[0].set(xlabel="update", ylabel="gold reward", title="Reward by update")
    axes[1].set(xlabel="KL to the reference (nats)", ylabel="gold reward", title="Reward by KL")
    axes[2].set(xlabel="update", ylabel="mean log-prob (nats)", title="The worse half of the arms")
    axes[2].legend(fontsize=8, loc="lower left")


def _draw_reuse(axis: Any, table: dict[str, Any]) -> None:
    for size, color in zip(SWEPT, (RED, BLUE, GREEN), strict=True):
        axis.plot(table["updates a round"], table[f"{size} pairs"], "o-", color=color, label=f"{size} pairs a round")
    axis.set(xscale="log", xlabel="updates on each round", ylabel=f"gold reward after {STEPS} updates")
    axis.set_xticks(table["updates a round"], map(str, table["updates a round"]))
    axis.minorticks_off()
    axis.set_title("Reuse of on-policy pairs (IPO)")
    axis.legend()


LAB = Lab(
    id="L13",
    name="negative_gradient",
    title="Pushing the rejected side down, and drawing one's own pairs",
    claim="A contrastive loss beats the likelihood of the chosen side, the policy's own pairs beat fixed ones, and at "
    "equal KL the combination is best.",
    source="Tajwar et al. 2024, arXiv:2404.14367",
    run=run,
)
