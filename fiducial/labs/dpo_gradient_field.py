"""L3: DPO's slopes in the ratios of the two responses.

With x1 = pi/ref of the chosen response and x2 of the rejected one, DPO's loss is -log(x1^beta / (x1^beta + x2^beta)),
and its two slopes differ by the factor x2 / x1: past the diagonal the rejected ratio falls faster than the chosen one
rises. That is below 1 only where the margin is positive, x1 > x2, not for any pair (Feng et al. 2024). In log-probs the
two slopes are always equal and opposite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.labs.base import Criterion, Lab, Plot, Result
from fiducial.methods import METHODS

BETA = 0.5


def slopes(x1: Tensor, x2: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """DPO's loss and its derivatives in the ratios: [B], [B] -> three [B]."""
    x1, x2 = (x.clone().requires_grad_() for x in (x1, x2))
    zero = torch.zeros_like(x1)
    loss = METHODS["dpo"].loss(x1.log(), x2.log(), zero, zero, beta=beta)
    first, second = torch.autograd.grad(loss.sum(), (x1, x2))
    return loss.detach(), first, second


def run(seed: int, fast: bool) -> Result:
    """A grid on (0, 2] x (0, 2], differentiated by autograd. Nothing is random."""
    points = 40 if fast else 200
    axis = torch.arange(1, points + 1, dtype=torch.float64) * 2 / points
    x1, x2 = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="xy"))
    criteria = []
    for beta in (0.1, BETA, 2.0):
        _, first, second = slopes(x1, x2, beta)
        power = x1**beta + x2**beta
        closed = -beta * x2**beta / (x1 * power), beta * x2 ** (beta - 1) / power
        for name, found, expected in (
            ("|slope ratio| = x2/x1", (first / second).abs(), x2 / x1),
            ("slope in x1", first, closed[0]),
            ("slope in x2", second, closed[1]),
        ):
            error = float((found / expected - 1).abs().max())
            criteria.append(Criterion(f"relative error of {name}, beta = {beta:g}", error, "<=", 1e-8))
    loss, first, second = slopes(x1, x2, BETA)
    series = {"x1": x1, "x2": x2, "loss": loss, "slope_x1": first, "slope_x2": second}
    note = "Below the diagonal the arrows point down: the rejected ratio falls faster than the chosen one rises."
    return Result({"field": series}, {"field": Plot(lambda ax: _draw(ax, axis), width=5.4, height=4.4)}, criteria, note)


def _draw(ax: Any, axis: Tensor) -> None:
    x1, x2 = torch.meshgrid(axis, axis, indexing="xy")
    loss, _, _ = slopes(x1.flatten(), x2.flatten(), BETA)
    filled = ax.contourf(axis, axis, loss.view(x1.shape), levels=14, cmap="cividis")
    ax.figure.colorbar(filled, ax=ax, label="loss (nats)")
    coarse = torch.arange(1, 13, dtype=torch.float64) * 2 / 12
    u1, u2 = (grid.flatten() for grid in torch.meshgrid(coarse, coarse, indexing="xy"))
    _, first, second = slopes(u1, u2, BETA)
    length = (first.square() + second.square()).sqrt()  # arrows show the direction; colour shows the rest
    ax.quiver(u1, u2, -first / length, -second / length, color="white", scale=22, width=0.005, pivot="mid")
    ax.plot([0, 2], [0, 2], color="white", linewidth=1, linestyle=":")
    ax.set(xlabel="x1 = π/ref of the chosen", ylabel="x2 = π/ref of the rejected", xlim=(0, 2), ylim=(0, 2))
    ax.set_title(f"Downhill on DPO's loss, β = {BETA:g}")
    ax.grid(visible=False)


LAB = Lab(
    id="L3",
    name="dpo_gradient_field",
    title="DPO's slopes in the ratios",
    claim="The slopes of DPO's loss in the ratios x1 (chosen) and x2 (rejected) differ by the factor x2 / x1: the "
    "rejected side dominates below the diagonal, and both are equal on it.",
    source="Feng et al. 2024, arXiv:2404.04626",
    run=run,
)
