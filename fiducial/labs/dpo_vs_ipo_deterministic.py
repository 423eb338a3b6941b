"""L2: a certain pair under DPO and IPO.

One prompt, three responses, and a pair that every rater orders the same way. DPO's loss has no minimum: h = log-ratio
of chosen over rejected grows like log(t) / beta, and the rejected response dies out however large beta is. IPO stops at
h = 1 / (2 beta).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fiducial.labs.base import COLORS, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import descend, pair_loss
from fiducial.methods import METHODS

REF = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64).log()
BETAS = (0.1, 1.0, 10.0)
CHOSEN, REJECTED = 0, 1


def run(seed: int, fast: bool) -> Result:
    """Gradient descent on both losses for each beta. Nothing is random."""
    steps = 1000 if fast else 10_000
    paths = {(name, beta): _path(name, beta, steps) for name in ("dpo", "ipo") for beta in BETAS}
    h = {key: (path - REF)[:, CHOSEN] - (path - REF)[:, REJECTED] for key, path in paths.items()}
    seen = sorted({round(10 ** (i / 40)) for i in range(int(40 * math.log10(steps)) + 1)} | {steps})
    series: dict[str, Any] = {"step": seen}
    for (name, beta), path in paths.items():
        series[f"{name} beta={beta:g} h"] = h[name, beta][seen]
        series[f"{name} beta={beta:g} rejected"] = path[seen, REJECTED].exp()
    return Result(
        {"paths": series}, {"paths": Plot(lambda *axes: _draw(axes, series), panels=2)}, _criteria(paths, h, steps),
        "At each beta DPO goes on pushing the pair apart by the logarithm of the steps; IPO stops at its target.",
        {f"slope of beta h in log t, beta={beta:g}": _slope(beta * h["dpo", beta]) for beta in BETAS},
    )  # fmt: skip


def _path(name: str, beta: float, steps: int) -> Tensor:
    """Log-probs at every step, [steps + 1, 3]. DPO's loss has curvature of order beta^2: its steps are 1 / beta^2."""

    def loss(theta: Tensor) -> Tensor:
        policy = theta.log_softmax(-1)[None]
        return pair_loss(METHODS[name], policy, REF[None], CHOSEN, REJECTED, beta=beta).sum()

    return descend(loss, REF, 1 / beta**2 if name == "dpo" else 0.1, steps).log_softmax(-1)


def _criteria(paths: dict[Any, Tensor], h: dict[Any, Tensor], steps: int) -> list[Criterion]:
    found = []
    for beta in BETAS:
        last = {name: float(paths[name, beta][-1, REJECTED].exp()) for name in ("dpo", "ipo")}
        gap = abs(float(h["ipo", beta][-1]) - 1 / (2 * beta))
        growth = float(h["dpo", beta][steps // 2 :].diff().min())
        found += [
            Criterion(f"|h - 1/(2 beta)| of IPO, beta = {beta:g}", gap, "<", 1e-3),
            Criterion(f"least growth of DPO's h a step, last half, beta = {beta:g}", growth, ">", 0.0),
            Criterion(f"pi(rejected): DPO's over IPO's, beta = {beta:g}", last["dpo"] / last["ipo"], "<", 1.0),
        ]
    return found


def _slope(values: Tensor) -> float:
    """Of the values in log(step), over the last half of the steps on a log scale."""
    end = len(values) - 1
    start = round(math.sqrt(end))
    return float(values[end] - values[start]) / math.log(end / start)


def _draw(axes: Any, series: dict[str, Any]) -> None:
    for beta, color in zip(BETAS, COLORS, strict=False):
        for name, dashes in (("dpo", "-"), ("ipo", "--")):
            key = f"{name} beta={beta:g}"
            label = f"{name.upper()}, β = {beta:g}"
            axes[0].plot(series["step"], series[f"{key} rejected"], dashes, color=color, label=label)
            axes[1].plot(series["step"], series[f"{key} h"], dashes, color=color)
    axes[0].set(
        xscale="log", yscale="log", ylim=(1e-12, 3), ylabel="π(rejected)", title="DPO lets the rejected response die"
    )
    axes[1].set(xscale="log", yscale="log", ylabel="h (nats)", title="h: DPO grows like log(t)/β, IPO stops at 1/(2β)")
    for ax in axes:
        ax.set_xlabel("step (of size 1/β² for DPO, 0.1 for IPO)")
    axes[0].legend(loc="lower right")


LAB = Lab(
    id="L2",
    name="dpo_vs_ipo_deterministic",
    title="A certain pair: DPO does not stop, IPO does",
    claim="With a preference that never flips, DPO drives the rejected response to nothing at every beta, "
    "h growing like log(t) / beta; IPO stops at h = 1 / (2 beta).",
    source="Azar et al. 2023, arXiv:2310.12036; Rafailov et al. 2023, arXiv:2305.18290",
    run=run,
)
