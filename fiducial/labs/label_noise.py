"""L33: labels that flip at a rate epsilon.

DPO, IPO, KTO and robust DPO, each minimised on the whole population of pairs of one prompt. DPO and IPO see preferences
that shrink towards 1/2 and earn less and less of the true reward; KTO takes the majority's side, which flips below 1/2
do not change; robust DPO, told the right epsilon, sees through the noise exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.exact.divergences import kl
from fiducial.exact.minimise import exact_minimise
from fiducial.exact.optima import bradley_terry, smoothed_preference
from fiducial.labs.base import BLUE, GREEN, GREY, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import expected_pair_loss, normals
from fiducial.methods import METHODS

ARMS, BETA = 6, 0.2
RATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.49)
COLOR = {"robust DPO": BLUE, "DPO": ORANGE, "IPO": GREEN, "KTO": GREY}


def run(seed: int, fast: bool) -> Result:
    """A random reference and random rewards; pairs are drawn from the reference."""
    ref, rewards = normals(seed, ARMS).log_softmax(-1), normals(seed + 1, ARMS)
    law, clean = ref.exp(), bradley_terry(rewards)
    rates = RATES[::2] if fast else RATES
    rows: dict[str, list[float]] = {"flip rate": list(rates), "reference": [float(law @ rewards)] * len(rates)}
    policies: dict[str, list[Tensor]] = {name: [] for name in COLOR}
    for rate in rates:
        noisy = smoothed_preference(clean, rate)
        policies["DPO"].append(_paired("dpo", ref, noisy, law))
        policies["IPO"].append(_paired("ipo", ref, noisy, law))
        policies["robust DPO"].append(_paired("dpo", ref, noisy, law, label_smoothing=rate, robust=True))
        policies["KTO"].append(_kto(ref, noisy, law))
    for name, found in policies.items():
        rows[f"{name} gold"] = [float(policy @ rewards) for policy in found]
        rows[f"{name} KL"] = [float(kl(policy, law)) for policy in found]
    robust = max(float((policy - policies["DPO"][0]).abs().max()) for policy in policies["robust DPO"])
    drops = [before - after for before, after in zip(rows["DPO gold"], rows["DPO gold"][1:], strict=False)]
    criteria = [
        Criterion("robust DPO: distance to the minimiser on clean labels", robust, "<=", 1e-5),
        Criterion("DPO: least drop of gold from one flip rate to the next", min(drops), ">=", 0.0),
    ]
    figures = {"noise": Plot(lambda *axes: _draw(axes, rows), panels=2)}
    note = (
        "These are whole populations. That robust DPO is unbiased does not make it cheap: with few labels its "
        "variance grows like 1 / (1 - 2 epsilon)^2."
    )
    return Result({"noise": rows}, figures, criteria, note)


def _paired(name: str, ref: Tensor, preference: Tensor, law: Tensor, **hparams: Any) -> Tensor:
    """The policy [A] at which a loss on pairs is least."""

    def loss(theta: Tensor) -> Tensor:
        return expected_pair_loss(METHODS[name], theta.log_softmax(-1), ref, preference, law, beta=BETA, **hparams)

    return exact_minimise(loss, ref, 1e-9).softmax(-1)


def _kto(ref: Tensor, preference: Tensor, law: Tensor) -> Tensor:
    """The policy [A] after Adam on KTO's loss: a response is wanted as often as it beats one of the law."""
    theta = ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.05)
    share = preference @ law
    weight = law[:, None] * torch.stack([share, 1 - share], -1)
    wanted = torch.tensor([True, False])
    for _ in range(800):
        policy = theta.log_softmax(-1)
        z0 = kl(policy.detach().exp(), law)
        losses = METHODS["kto"].loss(policy[:, None], ref[:, None], wanted, z0, beta=BETA)
        optimizer.zero_grad()
        (weight * losses).sum().backward()
        optimizer.step()
    return theta.detach().softmax(-1)


def _draw(axes: Any, rows: dict[str, list[float]]) -> None:
    for name, color in COLOR.items():
        for ax, what in zip(axes, ("gold", "KL"), strict=True):
            ax.plot(rows["flip rate"], rows[f"{name} {what}"], "o-", markersize=3.5, color=color, label=name)
    axes[0].plot(rows["flip rate"], rows["reference"], ":", color="#888888")
    axes[0].annotate("reference", (0, rows["reference"][0]), va="bottom", fontsize=8.5)
    axes[0].set(ylabel="expected true reward", title="Robust DPO is not misled")
    axes[1].set(ylabel="KL(π || ref) (nats)", title="How far each moves")
    for ax in axes:
        ax.set_xlabel("flip rate ε")
    axes[1].legend()


LAB = Lab(
    id="L33",
    name="label_noise",
    title="Labels that flip",
    claim="As labels flip more often the true reward of DPO and IPO decays gracefully, and KTO keeps to the majority; "
    "robust DPO with the right flip rate has the minimiser of clean labels.",
    source="Chowdhury et al. 2024, arXiv:2403.00409",
    run=run,
)
