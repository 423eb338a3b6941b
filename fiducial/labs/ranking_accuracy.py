"""L10: the loss falls, the ranking hardly changes.

DPO ranks a pair right only once h passes c = log ref(y_l)/ref(y_w), i.e. once the pair's loss is below
log(1 + exp(-beta c)). Where the reference has the order wrong by much (c > 0 large), the loss can fall far below log 2
and the ranking still be wrong. Here the pairs share a policy that has fewer parameters than there are pairs. Even exact
DPO on each pair alone only reaches the idealised accuracy R*(beta), which falls from 1 to the reference's own as beta
grows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fiducial.exact.minimise import exact_minimise
from fiducial.exact.optima import idealised_ranking_accuracy
from fiducial.labs.base import BLUE, GREEN, GREY, ORANGE, RED, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import descend, normals, pair_loss
from fiducial.methods import METHODS

BETA, STEPS, LR = 0.1, 400, 60.0
BETAS = torch.logspace(-3, 2, 61, dtype=torch.float64)


class Pairs(NamedTuple):
    """ref [B, 2] log-probs of (chosen, rejected, as if there were no others); features [B, 2, d]; agreement [B]."""

    ref: Tensor
    features: Tensor
    agreement: Tensor


def pairs(seed: int, number: int) -> Pairs:
    """Pairs whose reference leans the right way for two in three; raters agree on the chosen by 50 to 100 %."""
    features = 3 * number // 8
    logits = 12 * normals(seed, number, 2) + torch.tensor([7.0, 0.0])
    uniform = torch.rand(number, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return Pairs(logits.log_softmax(-1), normals(seed + 2, number, 2, features) / features**0.5, 0.5 + uniform / 2)


def run(seed: int, fast: bool) -> Result:
    """Gradient descent on DPO's loss with shared parameters, and R* over beta."""
    made = pairs(10 * seed, 400 if fast else 2000)

    def policy(theta: Tensor) -> Tensor:
        return (made.ref + made.features @ theta).log_softmax(-1)

    def losses(theta: Tensor) -> Tensor:
        return pair_loss(METHODS["dpo"], policy(theta), made.ref, 0, 1, beta=BETA)

    path = descend(lambda theta: losses(theta).mean(), torch.zeros(made.features.shape[-1]), LR, STEPS)
    seen = sorted({round(STEPS * (i / 60) ** 2) for i in range(61)})
    logs = torch.stack([policy(path[t]) for t in seen])  # [T, B, 2]
    loss = torch.stack([losses(path[t]) for t in seen])
    margin = logs[..., 0] - logs[..., 1]
    wrong = made.ref[:, 1] - made.ref[:, 0]  # c: above 0 where the reference has the order wrong
    h = margin + wrong
    rule = ((margin > 0) != (loss < softplus(-BETA * wrong))) & (margin.abs() > 1e-9)
    training = _flips(margin, wrong, seen)
    training |= {"loss": loss.mean(-1), "reward margin": BETA * h.mean(-1)}
    training |= {"reward accuracy": (h > 0).double().mean(-1)}
    ideal = {"beta": BETAS, "R*": torch.tensor([_ideal(made, float(beta)) for beta in BETAS], dtype=torch.float64)}
    start = float((wrong < 0).double().mean())
    criteria = [
        Criterion("pairs and steps at which the flip rule fails", float(rule.sum()), "<=", 0.0),
        Criterion("|R*(beta -> 0) - 1|", abs(_ideal(made, 1e-9) - 1), "<=", 0.0),
        Criterion("|R*(beta -> infinity) - accuracy of the reference|", abs(_ideal(made, 1e9) - start), "<=", 0.0),
        Criterion("greatest rise of R* in beta", float(ideal["R*"].diff().max()), "<=", 0.0),
        Criterion("R* against exact DPO on each pair", _exact_gap(made), "<=", 1e-9),
    ]
    right = wrong < 0
    metrics = {
        "margin grown, pairs that were right": float(BETA * h[-1, right].mean()),
        "margin grown, pairs that were wrong": float(BETA * h[-1, ~right].mean()),
        "share of wrong pairs that were put right": float((margin[-1, ~right] > 0).double().mean()),
    }
    note = (
        f"The loss falls from {float(loss[0].mean()):.3f} to {float(loss[-1].mean()):.3f}; of the pairs that the "
        f"reference has wrong, {metrics['share of wrong pairs that were put right']:.0%} are put right."
    )
    figures = {"ranking": Plot(lambda *axes: _draw(axes, training, ideal, start), panels=3, width=4.0)}
    return Result({"training": training, "idealised": ideal}, figures, criteria, note, metrics)


def _flips(margin: Tensor, wrong: Tensor, seen: list[int]) -> dict[str, Any]:
    """Shares of pairs by what the reference and the policy make of them, at each step."""
    now, before = margin > 0, wrong < 0
    made = {"right→right": before & now, "wrong→right": ~before & now}
    made |= {"right→wrong": before & ~now, "wrong→wrong": ~before & ~now}
    shares = {name: where.double().mean(-1) for name, where in made.items()}
    return {"step": seen, "ranking accuracy": now.double().mean(-1), **shares}


def _ideal(made: Pairs, beta: float) -> float:
    return idealised_ranking_accuracy(made.ref[:, 0], made.ref[:, 1], made.agreement, beta)


def _exact_gap(made: Pairs) -> float:
    """The ranking accuracy of exact DPO, each pair with parameters of its own and labels by its raters, against R*."""
    share = made.agreement.clamp(max=0.999)  # a pair on which all agree has no minimum
    few = Pairs(made.ref[:50], made.features[:50], share[:50])

    def loss(theta: Tensor) -> Tensor:
        logs = (few.ref + theta).log_softmax(-1)
        first, second = (pair_loss(METHODS["dpo"], logs, few.ref, i, 1 - i, beta=1.0) for i in (0, 1))
        return (few.agreement * first + (1 - few.agreement) * second).sum()

    logs = few.ref + exact_minimise(loss, torch.zeros_like(few.ref), 1e-8)
    accuracy = float((logs[:, 0] > logs[:, 1]).double().mean())
    return abs(accuracy - _ideal(few, 1.0))


def _draw(axes: Any, training: dict[str, Any], ideal: dict[str, Tensor], start: float) -> None:
    step = training["step"]
    axes[0].plot(step, training["loss"], color=BLUE, label="loss (nats)")
    axes[0].plot(step, training["reward accuracy"], "--", color=GREY, label="reward accuracy, h > 0")
    axes[0].plot(step, training["ranking accuracy"], color=ORANGE, label="ranking accuracy")
    axes[0].set(title="The loss falls, the ranking stays", xlabel="step", ylim=(0, 1))
    flips = (("wrong→wrong", GREY), ("right→wrong", RED), ("wrong→right", GREEN))
    for name, color in flips:
        axes[1].plot(step, training[name], color=color, label=name)
    axes[1].set(title="Pairs by reference → policy", xlabel="step", ylabel="share of pairs", ylim=(0, None))
    axes[2].plot(ideal["beta"], ideal["R*"], color=BLUE, label="exact DPO on each pair, R*")
    axes[2].axhline(start, color=GREY, linestyle=":", label="the reference")
    axes[2].set(title="The best that DPO can do", xscale="log", xlabel="β", ylabel="ranking accuracy", ylim=(0, 1.05))
    for ax in axes:
        ax.legend(loc="lower left" if ax is axes[2] else "best")


LAB = Lab(
    id="L10",
    name="ranking_accuracy",
    title="Low loss, wrong ranking",
    claim="DPO's loss falls while pairs that the reference has wrong rarely flip: a pair is ranked right iff its loss "
    "is below log(1 + exp(-beta c)). The idealised accuracy R*(beta) falls from 1 to the reference's.",
    source="Chen et al. 2024, arXiv:2405.19534",
    run=run,
)
