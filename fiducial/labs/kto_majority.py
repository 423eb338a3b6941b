"""L8: contradictory labels under KTO, DPO and IPO.

Two responses; a share p > 1/2 of the labels wants the first. KTO gives it all the mass, whatever the reference thought
of it; DPO multiplies the reference's odds by (p / (1 - p))^(1 / beta), so that a skewed reference keeps the minority on
top; IPO adds (2 p - 1) / (2 beta) to the log-odds. The second picture is why: the value that a human-aware loss gives
to a gain or a loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fiducial.exact.divergences import kl
from fiducial.exact.minimise import exact_minimise
from fiducial.exact.optima import pair_margin
from fiducial.labs.base import BLUE, COLORS, GREEN, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import pair_loss
from fiducial.methods import METHODS
from fiducial.methods.halo import HALOS

SHARES = (0.55, 0.6, 0.8)
BETA = 1.0
DASHES = (":", "--", "-")


def run(seed: int, fast: bool) -> Result:
    """Each loss minimised on the exact expectation, for references from 1 % to 99 %. Nothing is random."""
    start = torch.linspace(-4.6, 4.6, 15 if fast else 47, dtype=torch.float64).sigmoid()
    ref = torch.stack([start, 1 - start], -1).log()
    rows: dict[str, list[float]] = {}
    errors = {"dpo": 0.0, "ipo": 0.0}
    for share in SHARES:
        found = {"share": torch.full_like(start, share), "ref": start, "kto": _kto(ref, share)}
        for name in errors:
            found[name] = _paired(name, ref, share)
            goal = (torch.logit(start) + pair_margin(share, BETA, name)).sigmoid()
            errors[name] = max(errors[name], float((found[name] - goal).abs().max()))
        for column, values in found.items():
            rows.setdefault(column, []).extend(values.tolist())
    criteria = [
        Criterion("KTO: least mass of the majority's response", min(rows["kto"]), ">", 0.99),
        Criterion("DPO: distance to ref odds x (p/(1-p))^(1/beta)", errors["dpo"], "<", 1e-3),
        Criterion("IPO: distance to ref odds x exp((2p-1)/(2 beta))", errors["ipo"], "<", 1e-3),
    ]
    figures = {"majority": Plot(lambda *axes: _draw(axes, rows), panels=3, width=3.7), "values": Plot(_draw_values)}
    note = "KTO is told the exact KL to the reference in place of its estimate from mismatched completions."
    return Result({"majority": rows, "values": value_curves()}, figures, criteria, note)


def _kto(ref: Tensor, share: float) -> Tensor:
    """Mass of the first response [R] after Adam on KTO's loss: of each response, `share` or the rest is wanted."""
    theta = ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.05)
    wanted = torch.tensor([True, False])
    weight = torch.tensor([[share, 1 - share], [1 - share, share]], dtype=torch.float64)  # of (response, wanted or not)
    for _ in range(600):
        policy = theta.log_softmax(-1)
        z0 = kl(policy.detach().exp(), ref.exp())[:, None, None]
        losses = METHODS["kto"].loss(policy[:, :, None], ref[:, :, None], wanted, z0, beta=BETA)
        optimizer.zero_grad()
        (weight * losses).sum().backward()
        optimizer.step()
    return theta.detach().softmax(-1)[:, 0]


def _paired(name: str, ref: Tensor, share: float) -> Tensor:
    """Mass of the first response [R] where a loss on contradictory pairs is least."""

    def loss(theta: Tensor) -> Tensor:
        policy = theta.log_softmax(-1)
        first, second = (pair_loss(METHODS[name], policy, ref, i, 1 - i, beta=BETA) for i in (0, 1))
        return (share * first + (1 - share) * second).sum()

    return exact_minimise(loss, ref, 1e-9).softmax(-1)[:, 0]


def value_curves() -> dict[str, Tensor]:
    """What the losses pay for a log-ratio z above its reference point: minus the loss of a wanted completion."""
    z = torch.linspace(-4, 4, 161, dtype=torch.float64)
    zero, wanted = torch.zeros_like(z), torch.ones_like(z, dtype=torch.bool)
    at_zero = torch.zeros((), dtype=torch.float64)
    made = {"z": z, "log σ (DPO)": -METHODS["dpo"].loss(z, zero, zero, zero, beta=1.0)}
    made["σ (KTO)"] = -METHODS["kto"].loss(z, zero, wanted, at_zero, beta=1.0)
    made["Kahneman-Tversky"] = -METHODS["halo"].loss(z, zero, wanted, at_zero, beta=1.0, value="kahneman_tversky")
    made["clip (PPO, ratio 1.5, z the advantage)"] = HALOS["ppo_clip"](torch.full_like(z, 1.5))(z, 0.0)
    return {name: v if name == "z" else v - v[len(z) // 2] for name, v in made.items()}


def _draw(axes: Any, rows: dict[str, list[float]]) -> None:
    for ax, name, color in zip(axes, ("kto", "dpo", "ipo"), (BLUE, ORANGE, GREEN), strict=True):
        for share, dashes in zip(SHARES, DASHES, strict=True):
            at = [i for i, s in enumerate(rows["share"]) if s == share]
            odds = [math.log(rows["ref"][i] / (1 - rows["ref"][i])) for i in at]
            ax.plot(odds, [rows[name][i] for i in at], dashes, color=color, label=f"p = {share:g}")
        ax.plot(odds, [rows["ref"][i] for i in at], color="#bbbbbb", linewidth=1, zorder=0, label="reference")
        ax.set(title=name.upper(), xlabel="log-odds of the majority's response in the ref", ylim=(-0.02, 1.05))
        ax.legend(loc="lower right")
    axes[0].set_ylabel("π(majority's response)")


def _draw_values(ax: Any) -> None:
    series = value_curves()
    for (name, v), color in zip(list(series.items())[1:], COLORS, strict=False):
        ax.plot(series["z"], v, color=color, label=name)
    ax.set(xlabel="log-ratio above its reference point", ylabel="value, 0 at 0", title="What a gain or a loss is worth")
    ax.set_ylim(-4, 3)
    ax.legend()


LAB = Lab(
    id="L8",
    name="kto_majority",
    title="Contradictory labels: KTO takes the majority's side",
    claim="KTO gives the response that most labels want all the mass, whatever the reference; DPO multiplies the "
    "reference's odds by (p/(1-p))^(1/beta); IPO moves the log-odds by a finite (2p-1)/(2 beta).",
    source="Ethayarajh et al. 2024, arXiv:2402.01306",
    run=run,
)
