"""L26: rounds of SPIN, each solved exactly.

A round plays the demonstrations against the last round's policy, which is the reference too. Its minimiser is
pi (data / pi)^(1 / beta) / Z, so the centred log-ratio to the data shrinks by |1 - 1 / beta| a round: at once for
beta = 1, by halves for beta = 2, alternating for beta below 1, and not at all below 1/2, where it grows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.exact.minimise import exact_minimise
from fiducial.labs.base import COLORS, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import normals, pair_loss
from fiducial.methods import METHODS

RESPONSES = 4
BETAS = (0.4, 0.6, 1.0, 2.0)
FLOOR = 1e-5  # of the log-ratio, below which the minimiser's own tolerance shows


def round_of(policy: Tensor, data: Tensor, beta: float) -> Tensor:
    """The log-probs [A] at which SPIN's loss is least, over every pair of a demonstration and a sample of `policy`."""
    real, generated = torch.cartesian_prod(torch.arange(len(data)), torch.arange(len(data))).T
    weight = data[real] * policy.exp()[generated]
    many = len(weight), len(data)

    def loss(theta: Tensor) -> Tensor:
        logs = theta.log_softmax(-1).expand(many)
        losses = pair_loss(METHODS["spin"], logs, policy.expand(many), real, generated, beta=beta)
        return (weight * losses).sum()

    return exact_minimise(loss, policy, 1e-12).log_softmax(-1)


def run(seed: int, fast: bool) -> Result:
    """The same demonstrations and the same start for every beta."""
    data = (0.5 * normals(2 * seed, RESPONSES)).softmax(-1)
    start = (data.log() + 0.2 * normals(2 * seed + 1, RESPONSES)).log_softmax(-1)
    rows: dict[str, list[Any]] = {"beta": [], "round": [], "total variation": [], "log-ratio": []}
    criteria = []
    for beta in BETAS:
        policy, norms = start, []
        for number in range((7 if fast else 9) if beta < 0.5 else (9 if fast else 20)):
            norms.append(_norm(data, policy))
            distance = float((policy.exp() - data).abs().sum()) / 2
            for column, value in zip(rows, (beta, number, distance, norms[-1]), strict=True):
                rows[column].append(value)
            if norms[-1] < FLOOR:
                break
            policy = round_of(policy, data, beta)
        criteria += _criteria(beta, norms)
    figures = {"rounds": Plot(lambda *axes: _draw(axes, rows), panels=2)}
    note = "At beta = 0.4 each round overshoots the data by more than it was off before."
    return Result({"rounds": rows}, figures, criteria, note)


def _norm(data: Tensor, policy: Tensor) -> float:
    """Of log(data / policy), centred."""
    ratio = data.log() - policy
    return float((ratio - ratio.mean()).norm())


def _criteria(beta: float, norms: list[float]) -> list[Criterion]:
    expected = abs(1 - 1 / beta)
    if expected == 0:
        return [Criterion("log-ratio after one round, beta = 1", norms[1] / norms[0], "<=", 0.01)]
    rates = [after / before for before, after in zip(norms, norms[1:], strict=False) if after > FLOOR]
    worst = max(abs(rate / expected - 1) for rate in rates)
    found = [Criterion(f"rate a round against |1 - 1/beta| = {expected:.3g}, beta = {beta:g}", worst, "<=", 0.01)]
    if expected > 1:
        found.append(Criterion(f"growth over all rounds, beta = {beta:g}", norms[-1] / norms[0], ">", 1.0))
    return found


def _draw(axes: Any, rows: dict[str, list[Any]]) -> None:
    for beta, color in zip(BETAS, COLORS, strict=False):
        at = [i for i, b in enumerate(rows["beta"]) if b == beta]
        x = [rows["round"][i] for i in at]
        for ax, name in zip(axes, ("total variation", "log-ratio"), strict=True):
            ax.plot(x, [max(rows[name][i], 1e-7) for i in at], "o-", markersize=3.5, color=color, label=f"β = {beta:g}")
    axes[0].set(ylabel="total variation to the data", title="One round at β = 1, divergence below 1/2")
    axes[1].set(ylabel="norm of the centred log-ratio (nats)", title="A round multiplies it by |1 − 1/β|")
    for ax in axes:
        ax.set(yscale="log", xlabel="round", ylim=(3e-8, None))
    axes[1].legend()


LAB = Lab(
    id="L26",
    name="spin",
    title="Rounds of self-play fine-tuning",
    claim="The centred log-ratio to the demonstrations shrinks by |1 - 1/beta| a round: in one round at beta = 1, not "
    "at all below 1/2, where rounds diverge.",
    source="Chen et al. 2024, arXiv:2401.01335",
    run=run,
)
