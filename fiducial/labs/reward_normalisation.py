"""L31: what centring and scaling a reward changes, and what not.

Rewards are known up to a constant per prompt. Centring them, per prompt or with one bias, changes neither a
Bradley-Terry probability nor the optimum under a KL penalty; dividing them by their standard deviation s is the same
as spending beta s in place of beta.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fiducial.data.preferences.normalisation import calibrate, normalise
from fiducial.exact.optima import bradley_terry, rlhf_optimum
from fiducial.labs.base import BLUE, GREEN, GREY, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import normals

PROMPTS, RESPONSES, BETA = 20, 6, 1.0
COLOR = {"raw": GREY, "per_prompt": BLUE, "global": GREEN, "global_std": ORANGE}


def run(seed: int, fast: bool) -> Result:
    """Random references and rewards, every prompt with a shift of its own."""
    ref = normals(seed, PROMPTS, RESPONSES).softmax(-1)
    raw = 2 * normals(seed + 1, PROMPTS, RESPONSES) + 3 * normals(seed + 2, PROMPTS, 1)
    rewards = {"raw": raw, **{mode: normalise(raw, mode) for mode in ("per_prompt", "global", "global_std")}}
    _, scale = calibrate(raw, "global_std")
    wins = {mode: bradley_terry(r) for mode, r in rewards.items()}
    optima = {mode: rlhf_optimum(ref, r, BETA) for mode, r in rewards.items()}
    rescaled = rlhf_optimum(ref, raw, BETA * float(scale))
    criteria = [Criterion("|mean| after per_prompt", float(rewards["per_prompt"].mean(-1).abs().max()), "<", 1e-6)]
    for mode in ("global", "global_std"):
        criteria.append(Criterion(f"|mean| after {mode}", abs(float(rewards[mode].mean())), "<", 1e-6))
    for mode in ("per_prompt", "global"):
        criteria += [
            Criterion(f"change of pairwise probabilities by {mode}", _gap(wins[mode], wins["raw"]), "<=", 1e-10),
            Criterion(f"change of the optimum by {mode}", _gap(optima[mode], optima["raw"]), "<=", 1e-10),
        ]
    gap = _gap(optima["global_std"], rescaled)
    criteria.append(Criterion("optimum by global_std: distance to that of beta x s", gap, "<=", 1e-10))
    pick = wins["raw"] > 0.5
    series = {
        "pairs": {mode: w[pick] for mode, w in wins.items()},
        "optima": {mode: pi.flatten() for mode, pi in {**optima, "raw, beta x s": rescaled}.items()},
    }
    figures = {"before_and_after": Plot(lambda *axes: _draw(axes, series), panels=3, width=3.9, height=3.7)}
    note = f"s = {float(scale):.2f} here: after global_std the policy stays nearer to the reference."
    return Result(series, figures, criteria, note, {"standard deviation s": float(scale)})


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _draw(axes: Any, series: dict[str, dict[str, Tensor]]) -> None:
    for ax, name in zip(axes, ("pairs", "optima", "optima"), strict=True):
        before = series[name]["raw, beta x s" if ax is axes[2] else "raw"]
        for mode, mark in (("global_std", "s"), ("global", "o"), ("per_prompt", ".")):
            if ax is not axes[2] or mode == "global_std":
                ax.plot(before, series[name][mode], mark, markersize=4, alpha=0.8, color=COLOR[mode], label=mode)
        ax.axline((0.5, 0.5), slope=1, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes[0].set(xlabel="before", ylabel="after", title="P(better response wins)")
    axes[1].set(xlabel="before, at the same β", ylabel="after", title="The optimum's probabilities")
    axes[2].set(xlabel="before, at β s", ylabel="after, at β", title="Scaling spends β s in place of β")
    axes[0].legend()


LAB = Lab(
    id="L31",
    name="reward_normalisation",
    title="Centring and scaling a reward",
    claim="Centring changes neither preferences nor the KL-regularised optimum; dividing by s is spending beta x s.",
    source="Ziegler et al. 2019, arXiv:1909.08593",
    run=run,
)
