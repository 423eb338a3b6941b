"""L41: where GRPO's success rate goes, one iteration after another.

With a reward of 0 or 1 and a KL penalty, the policy that maximises GRPO's objective is the reference with its correct
answers raised and its wrong ones lowered, by weights that depend on the last success rate p alone. So p_n = h(p_n-1),
h(p) = sigmoid(logit(p_ref) + 1 / (beta sqrt(p (1 - p) + epsilon))), and the fixed points of h are where it can stay.
The exponent is positive: each of them lies above p_ref, whatever beta is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.core.credit import group_normalized
from fiducial.exact.divergences import kl
from fiducial.exact.minimise import exact_minimise
from fiducial.labs.base import BLUE, COLORS, GREY, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import normals
from fiducial.methods import METHODS

D = torch.float64
EPSILON = 1e-4  # that the variance is smoothed by
STARTS = (0.05, 0.2, 0.5, 0.8)
BETAS = (0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
KNOWN = {(0.05, 1.0): 0.31265, (0.05, 5.0): 0.09442, (0.2, 1.0): 0.68113, (0.2, 5.0): 0.28064, (0.5, 5.0): 0.60068,
         (0.8, 5.0): 0.88124, (0.5, 1.0): 1.0}  # fmt: skip
GROUP = 20  # whose successes, k of 20, give the p of the trained iterations


def h(p: Tensor, p_ref: Tensor, beta: Tensor | float, epsilon: float = EPSILON) -> Tensor:
    """The success rate after an iteration from p.

    >>> h(torch.tensor(0.5), torch.tensor(0.5), 2.0, 0.0)  # sigmoid(1 / (2 x 0.5))
    tensor(0.7311)
    """
    return torch.sigmoid(p_ref.logit() + 1 / (beta * (p * (1 - p) + epsilon).sqrt()))


def slope(p: Tensor, p_ref: Tensor, beta: Tensor | float, epsilon: float = EPSILON) -> Tensor:
    """h'(p): below 1 in size, a fixed point there draws its neighbours in."""
    now = h(p, p_ref, beta, epsilon)
    return now * (1 - now) * (2 * p - 1) / (2 * beta * (p * (1 - p) + epsilon) ** 1.5)


def weights(p: Tensor, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """Of a correct answer, and of a wrong one: what each is raised and lowered by, times beta."""
    spread = (p * (1 - p) + epsilon).sqrt()
    return (1 - p) / spread, p / spread


def tilted(ref: Tensor, correct: Tensor, p: Tensor, beta: float, epsilon: float = EPSILON) -> Tensor:
    """The maximiser itself, log-probs [A] of answers whose reward is `correct`."""
    up, down = weights(p, epsilon)
    return (ref + (up * correct - down * (1 - correct)) / beta).log_softmax(-1)


def trained(ref: Tensor, correct: Tensor, old: Tensor, advantages: Tensor, beta: float) -> Tensor:
    """The minimiser of the catalogue's own GRPO loss without clipping, every answer weighted by its chance when it was
    drawn, plus beta KL to the reference: log-probs [A]."""
    method = METHODS["grpo"]
    settings = method.settings({"clip_low": 1.0, "clip_high": 1e6})

    def objective(theta: Tensor) -> Tensor:
        logprobs = theta.log_softmax(-1)
        tensors = {"logprobs": logprobs[:, None], "old_logprobs": old[:, None], "advantages": advantages[:, None]}
        tensors["mask"] = torch.ones_like(tensors["logprobs"], dtype=torch.bool)
        loss = method.call_loss(tensors, settings)[:, 0]
        return (old.exp() * loss).sum() + beta * kl(logprobs.exp(), ref.exp())

    return exact_minimise(objective, ref, 1e-12).log_softmax(-1)


def run(seed: int, fast: bool) -> Result:
    """The grid of starts and betas by the recurrence and by the maximiser; then iterations of the real loss."""
    grid = torch.cartesian_prod(torch.tensor(STARTS, dtype=D), torch.tensor(BETAS, dtype=D))
    p_ref, beta = grid.T
    path = [p_ref]
    for _ in range(400):
        path.append(h(path[-1], p_ref, beta))
    p = torch.stack(path)
    series = {
        "iterations": {f"p_ref={a:g} beta={b:g}": p[:41, i] for i, (a, b) in enumerate(grid.tolist())},
        "fixed_points": {"p_ref": p_ref, "beta": beta, "p*": p[-1], "h'(p*)": slope(p[-1], p_ref, beta)},
    }
    still = (p[-1] - p[-2]).abs() < 1e-12
    off = max(abs(_fixed(a, b) - value) for (a, b), value in KNOWN.items())
    criteria = [
        Criterion("least p* - p_ref over the grid", float((p[-1] - p_ref).min()), ">", 0.0),
        Criterion("starts at which the smallest beta does not come to p* > 0.99", _missed(grid, p[-1]), "<=", 0.0),
        Criterion("|p* - reference value|, the greatest of 7", off, "<=", 1e-4),
        Criterion("|p of the maximiser - h(p)| along the iterations", _tilt_error(seed), "<=", 1e-10),
        Criterion("|p of the trained loss - h(p)|, the greatest", _trained_error(seed, fast), "<=", 1e-6),
        Criterion("|rate of approach / |h'(p*)| - 1|, the greatest", _rate_error(p, grid, still), "<=", 1e-2),
    ]
    figures = {"dynamics": Plot(lambda *axes: _draw(axes, series, grid, p), panels=3, width=4.0)}
    note = f"{int(still.sum())} of {len(grid)} iterations stand still after 400."
    return Result(series, figures, criteria, note)


def _fixed(p_ref: float, beta: float) -> float:
    p = start = torch.tensor(p_ref, dtype=D)
    for _ in range(400):
        p = h(p, start, beta)
    return float(p)


def _missed(grid: Tensor, final: Tensor) -> float:
    return float((final[grid[:, 1] == min(BETAS)] <= 0.99).sum())


def _answers(seed: int, p_ref: float) -> tuple[Tensor, Tensor]:
    """Ten answers, three of them correct: log-probs of a reference whose success rate is p_ref, and the rewards."""
    correct = (torch.arange(10) < 3).double()
    free = normals(seed, 10)
    share = torch.where(correct > 0, p_ref * (free + torch.log(correct)).softmax(-1), 0.0)
    wrong = torch.where(correct > 0, 0.0, (1 - p_ref) * (free + torch.log(1 - correct)).softmax(-1))
    return (share + wrong).log(), correct


def _tilt_error(seed: int) -> float:
    worst = 0.0
    for start in STARTS:
        ref, correct = _answers(seed, start)
        for beta in BETAS:
            p = predicted = (ref.exp() * correct).sum()
            for _ in range(12):
                p = (tilted(ref, correct, p, beta).exp() * correct).sum()
                predicted = h(predicted, torch.tensor(start, dtype=D), beta)
                worst = max(worst, abs(float(p - predicted)))
    return worst


def _trained_error(seed: int, fast: bool) -> float:
    """A policy that succeeds with k / 20, advantages of a group in which k of 20 succeed, and the loss minimised."""
    worst = 0.0
    for k in (2, 10, 17) if fast else range(1, GROUP):
        rewards = (torch.arange(GROUP) < k).double()
        advantages = group_normalized(rewards, torch.zeros(GROUP, dtype=torch.long), std_epsilon=0.0)
        old, correct = _answers(seed + 1, k / GROUP)
        ref, _ = _answers(seed, 0.2)
        given = torch.where(correct > 0, advantages[0], advantages[-1])
        for beta in (1.0, 5.0):
            p = (trained(ref, correct, old, given, beta).exp() * correct).sum()
            expected = h(torch.tensor(k / GROUP, dtype=D), torch.tensor(0.2, dtype=D), beta, 0.0)
            worst = max(worst, abs(float(p - expected)))
    return worst


def _rate_error(p: Tensor, grid: Tensor, still: Tensor) -> float:
    """Of every iteration that comes to rest: what the last visible steps shrink by, against h'(p*)."""
    worst = 0.0
    for i in still.nonzero()[:, 0].tolist():
        gap = (p[:, i] - p[-1, i]).abs()
        seen = ((gap < 1e-5) & (gap > 1e-9)).nonzero()[:, 0].tolist()
        goal = abs(float(slope(p[-1, i], grid[i, 0], grid[i, 1])))
        if len(seen) >= 2 and seen[1] == seen[0] + 1:
            worst = max(worst, abs(float(gap[seen[1]] / gap[seen[0]]) / goal - 1))
    return worst


def _draw(axes: Any, series: dict[str, dict[str, Tensor]], grid: Tensor, p: Tensor) -> None:
    for beta, color in zip(BETAS, COLORS, strict=False):
        axes[0].plot(series["iterations"][f"p_ref=0.2 beta={beta:g}"][:16], "o-", markersize=3, color=color,
                     label=f"β = {beta:g}")  # fmt: skip
        here = grid[:, 1] == beta
        axes[2].plot(grid[here, 0], p[-1, here], "o-", markersize=3.5, color=color)
    axes[0].set(title="Success rate from p_ref = 0.2", xlabel="iteration", ylabel="p", ylim=(0, 1.03))
    axes[0].legend(ncols=2, fontsize=7.5)
    _cobweb(axes[1], 0.2, 1.0)
    axes[2].axline((0, 0), slope=1, color=GREY, linewidth=0.9)
    axes[2].set(title="Fixed points lie above the start", xlabel="p_ref", ylabel="p*", xlim=(0, 1), ylim=(0, 1.03))


def _cobweb(ax: Any, p_ref: float, beta: float) -> None:
    x, start = torch.linspace(0, 1, 201).double(), torch.tensor(p_ref, dtype=D)
    ax.plot(x, h(x, start, beta), color=BLUE, label="h(p)")
    ax.axline((0, 0), slope=1, color=GREY, linewidth=0.9)
    p, corners = start, [(p_ref, 0.0)]
    for _ in range(8):
        after = h(p, start, beta)
        corners += [(float(p), float(after)), (float(after), float(after))]
        p = after
    ax.plot(*zip(*corners, strict=True), color=COLORS[1], linewidth=1.0, label="iterations")
    ax.set(title=f"h at p_ref = {p_ref:g}, β = {beta:g}", xlabel="p", ylabel="next p", xlim=(0, 1), ylim=(0, 1.03))
    ax.legend(loc="lower right")


LAB = Lab(
    id="L41",
    name="grpo_dynamics",
    title="Where GRPO's success rate goes",
    claim="With binary rewards an iteration of GRPO takes the success rate p to h(p). It converges above p_ref for "
    "every beta, to 1 for a small one, at the rate |h'(p*)|.",
    source="Mroueh 2025, arXiv:2503.06639",
    run=run,
)
