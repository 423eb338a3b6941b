"""L7: a reward that is wrong where the data are thin, and what two regularisers make of it.

Bandits of 50 responses whose rewards are estimated from 200 draws of the reference: the fewer draws a response had, the
larger its error. DPO's optimum follows an overrated rare response up to the ratio exp(R / beta), chi-PO's only up to
1 + R / beta, so that at small beta chi-PO keeps more of the true reward. At larger beta DPO is the better one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.evals.stats import mean_interval, paired_difference
from fiducial.exact.divergences import f_optimum
from fiducial.exact.optima import rlhf_optimum
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result, above
from fiducial.labs.tabular import normals

BANDITS, ARMS, DRAWS = 200, 50, 200
BETAS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
AT = 0.02


def bandits(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reference, true rewards, estimates, [200, 50] each; after n draws an error has deviation 1 / sqrt(n + .25)."""
    ref = normals(seed, BANDITS, ARMS).softmax(-1)
    gold = normals(seed + 1, BANDITS, ARMS)
    drawn = torch.multinomial(ref, DRAWS, replacement=True, generator=torch.Generator().manual_seed(seed + 2))
    counts = torch.zeros_like(ref).scatter_add(-1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return ref, gold, gold + normals(seed + 3, BANDITS, ARMS) / (counts + 0.25).sqrt()


def run(seed: int, fast: bool) -> Result:
    """Exact optima of both losses for the estimated rewards, over beta."""
    ref, gold, estimated = bandits(10 * seed)
    spread = estimated.amax(-1) - estimated.amin(-1)
    rows: dict[str, list[float]] = {"beta": list(BETAS)}
    excess, golds = [], {}
    for beta in BETAS:
        policies = {"DPO": rlhf_optimum(ref, estimated, beta), "χPO": f_optimum(ref, estimated, beta, "chi2_kl").policy}
        for name, policy in policies.items():
            ratio = (policy / ref).amax(-1)
            golds[name, beta] = (policy * gold).sum(-1).tolist()
            mean = mean_interval(golds[name, beta])
            found = {"gold": mean.value, "low": mean.low, "high": mean.high, "ratio": float(ratio.median())}
            for column, value in found.items():
                rows.setdefault(f"{name} {column}", []).append(value)
            if name == "χPO":
                excess.append(float((ratio / (1 + spread / beta)).max()))
        rows.setdefault("bound 1 + R/beta", []).append(float((1 + spread / beta).median()))
    gain = paired_difference(golds["DPO", AT], golds["χPO", AT])
    criteria = [
        Criterion("greatest π/ref of χPO over its bound 1 + R/beta", max(excess), "<=", 1 + 1e-9),
        above(f"mean gold reward at beta = {AT:g}: χPO - DPO", gain, 0.0),
    ]
    note = (
        f"At beta = {AT:g} χPO earns {rows['χPO gold'][BETAS.index(AT)]:.2f} and DPO "
        f"{rows['DPO gold'][BETAS.index(AT)]:.2f} of the true reward; from beta = 0.1 on DPO may well be ahead."
    )
    figures = {"coverage": Plot(lambda *axes: _draw(axes, rows), panels=2)}
    return Result({"coverage": rows}, figures, criteria, note)


def _draw(axes: Any, rows: dict[str, list[float]]) -> None:
    for name, color in (("χPO", BLUE), ("DPO", ORANGE)):
        axes[0].plot(rows["beta"], rows[f"{name} ratio"], "o-", markersize=3, color=color, label=name)
        axes[1].plot(rows["beta"], rows[f"{name} gold"], "o-", markersize=3, color=color, label=name)
        axes[1].fill_between(rows["beta"], rows[f"{name} low"], rows[f"{name} high"], color=color, alpha=0.18)
    axes[0].plot(rows["beta"], rows["bound 1 + R/beta"], ":", color=GREY, label="1 + R/β")
    axes[0].set(
        yscale="log", ylabel="greatest π/ref, median of 200 bandits", title="How far the optimum leaves the ref"
    )
    axes[1].set(ylabel="true reward, mean and 95 % interval", title="What it is worth")
    for ax in axes:
        ax.set(xscale="log", xlabel="β")
        ax.legend()


LAB = Lab(
    id="L7",
    name="chi_po_coverage",
    title="Rarely seen responses: chi-PO against DPO",
    claim="With rewards that are wrong where data are thin, chi-PO's ratio to the reference stays below 1 + R/beta "
    "while DPO's is exponential, and at small beta chi-PO keeps more of the true reward.",
    source="Huang et al. 2024, arXiv:2407.13399",
    run=run,
)
