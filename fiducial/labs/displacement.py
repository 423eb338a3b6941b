"""L4: both responses lose likelihood while the margin grows, and what stops it.

Three responses share one parameter: their logits are theta times 0.5 (chosen), 0 (rejected) and 2 (a third that no pair
mentions), the reference is uniform. Raising theta is the only way to part the pair, and it feeds the third response.
A likelihood term (DPO + NLL) turns this round once its weight alpha is above beta / 2 x 0.5 / (1/3) = 0.075 for
beta = 0.1; DPOP and C3DPO hold theta near 0, where the chosen response keeps its likelihood.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fiducial.labs.base import BLUE, COLORS, GREY, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import descend, pair_loss
from fiducial.methods import METHODS

FEATURES = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)  # chosen, rejected, other
REF = torch.full((3,), -math.log(3), dtype=torch.float64)
BETA = 0.1
REMEDIES: dict[str, tuple[str, dict[str, Any]]] = {
    "DPO": ("dpo", {}),
    "DPO + NLL": ("dpo_nll", {"alpha": 1.0}),
    "DPOP": ("dpop", {"lam": 50.0}),
    "C3DPO (log)": ("c3dpo", {"lam": 1.0, "phi": "log"}),
}
STEPS, LR = 2000, 0.05


def loss_at(theta: Tensor, name: str, **hparams: Any) -> Tensor:
    """The method's loss of the pair at theta []."""
    policy = (theta * FEATURES).log_softmax(-1)[None]
    return pair_loss(METHODS[name], policy, REF[None], 0, 1, beta=BETA, **hparams).sum()


def log_ratios(theta: Tensor) -> Tensor:
    """log pi/ref of chosen, rejected and other: [...] -> [..., 3]."""
    return (theta[..., None] * FEATURES).log_softmax(-1) - REF


def critical_alpha() -> float:
    """The weight of the likelihood term at which descent from theta = 0 turns round, by bisection on the slope."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss_at(theta, "dpo_nll", alpha=middle), theta)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return low


def run(seed: int, fast: bool) -> Result:
    """Gradient descent from the reference on each loss. Nothing is random."""
    start = torch.zeros((), dtype=torch.float64)
    steps = STEPS if fast else 4 * STEPS
    ratios = {
        label: log_ratios(descend(lambda t, name=name, given=given: loss_at(t, name, **given), start, LR, steps))
        for label, (name, given) in REMEDIES.items()
    }
    at_one = log_ratios(torch.ones((), dtype=torch.float64))
    chosen, rejected, other = ratios["DPO"][-1].tolist()
    criteria = [
        Criterion("DPO: implicit reward of the chosen at the end", BETA * chosen, "<", 0.0),
        Criterion("DPO: implicit reward of the rejected at the end", BETA * rejected, "<", 0.0),
        Criterion("DPO: margin at the end", BETA * (chosen - rejected), ">", 0.0),
        Criterion("log-ratios at theta = 1 against -.708, -1.208", _distance(at_one), "<", 5e-4),
        Criterion("|critical alpha - 0.075|", abs(critical_alpha() - 0.075), "<=", 1e-9),
        *(
            Criterion(f"{label}: log-ratio of the chosen at the end", float(ratios[label][-1, 0]), ">=", -0.02)
            for label in REMEDIES
            if label != "DPO"
        ),
    ]
    seen = list(range(0, steps + 1, max(1, steps // 200)))
    series: dict[str, Any] = {"step": seen}
    for label, path in ratios.items():
        for column, side in enumerate(("chosen", "rejected", "other")):
            series[f"{label} {side}"] = path[seen, column]
    note = (
        f"DPO ends with {math.exp(other) / 3:.0%} of the mass on the response that no pair mentions. In this family "
        "the chosen response can only gain where the margin is negative: the likelihood term gives up the margin, "
        "DPOP and C3DPO keep the pair where it was."
    )
    return Result({"paths": series}, {"paths": Plot(lambda *axes: _draw(axes, series), panels=2)}, criteria, note)


def _distance(found: Tensor) -> float:
    return float((found[:2] - torch.tensor([-0.708, -1.208])).abs().max())


def _draw(axes: Any, series: dict[str, Any]) -> None:
    for side, color in (("chosen", BLUE), ("rejected", ORANGE), ("other", GREY)):
        axes[0].plot(series["step"], BETA * series[f"DPO {side}"], color=color, label=side)
    margin = BETA * (series["DPO chosen"] - series["DPO rejected"])
    axes[0].plot(series["step"], margin, "--", color="black", label="margin")
    axes[0].set(title="DPO: both fall, the margin grows", ylabel="implicit reward β log π/ref (nats)")
    for label, color in zip(REMEDIES, COLORS, strict=False):
        axes[1].plot(series["step"], series[f"{label} chosen"], color=color, label=label)
    axes[1].set(title="What keeps the chosen response", ylabel="log π/ref of the chosen (nats)")
    for ax in axes:
        ax.axhline(0, color="#888888", linewidth=0.8, zorder=0)
        ax.set_xlabel("step")
        ax.legend()


LAB = Lab(
    id="L4",
    name="displacement",
    title="Likelihood displacement and its remedies",
    claim="DPO lowers both implicit rewards while the margin grows, and a third response takes the mass; a likelihood "
    "term (above alpha = 0.075 here), DPOP and C3DPO stop it.",
    source="Razin et al. 2024, arXiv:2410.08847; remedies arXiv:2404.19733, 2402.13228, 2502.17507",
    run=run,
)
