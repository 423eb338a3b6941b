"""L9: DPO against a reference that follows the policy, run by the trainer itself on a table.

A hard update makes the policy its own reference: the loss jumps back to log 2 and the next solve spends beta again, so
that n rounds of exact solves end at ref exp(n r / beta) / Z. A soft update lets the reference drift. Either way the
divergence to where it all began grows past that of plain DPO.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fiducial.config import Optim
from fiducial.exact.divergences import kl
from fiducial.exact.optima import bradley_terry, moving_reference_optimum
from fiducial.exact.tables import SoftmaxTable
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result
from fiducial.methods import METHODS
from fiducial.prove.problems import FixedFeed, exact_run, make_parts, preference_pairs
from fiducial.train.loop import steps
from fiducial.train.parts import State

BETA, ROUNDS = 1.0, 4
REF = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
REWARDS = torch.tensor([[0.0, 0.7, 1.0]], dtype=torch.float64)
LAW = torch.full((1, 3), 1 / 3, dtype=torch.float64)
KINDS = {"plain": {"alpha": 0.0}, "soft": {"alpha": 0.05, "sync_steps": 1}, "hard": {"alpha": 1.0}}


def run(seed: int, fast: bool) -> Result:
    """Gradient descent by the trainer on exact Bradley-Terry pairs, for each kind of update. Nothing is random."""
    length = 60 if fast else 150
    paths = {kind: _train(given, length) for kind, given in KINDS.items()}
    loss, policies = paths["hard"]["loss"], paths["hard"]["policies"]
    jumps = [abs(loss[start] - math.log(2)) for start in range(0, ROUNDS * length, length)]
    errors = [
        float((policies[(n + 1) * length - 1] - moving_reference_optimum(REF, REWARDS, BETA, n + 1)[0]).abs().max())
        for n in range(ROUNDS)
    ]
    far = {kind: path["KL to the start"][-1] for kind, path in paths.items()}
    criteria = [
        Criterion("|loss - log 2| right after a hard update", max(jumps), "<=", 1e-6),
        Criterion("policy after n rounds: distance to ref exp(n r/beta)/Z", max(errors), "<=", 1e-4),
        Criterion("KL to the start at the end: hard - plain", far["hard"] - far["plain"], ">", 0.0),
        Criterion("KL to the start at the end: soft - plain", far["soft"] - far["plain"], ">", 0.0),
    ]
    series: dict[str, Any] = {"step": list(range(1, ROUNDS * length + 1))}
    for kind, path in paths.items():
        series |= {f"{kind} {name}": values for name, values in path.items() if name != "policies"}
    figures = {"paths": Plot(lambda *axes: _draw(axes, series), panels=3, width=4.0)}
    note = "Plain DPO stands still at ref exp(r/beta)/Z; each hard update lets it go as far again."
    return Result({"paths": series}, figures, criteria, note, {f"KL to the start, {k}": v for k, v in far.items()})


def _train(given: dict[str, Any], length: int) -> dict[str, Any]:
    """Loss and margin of each step, and after it the KL to the start and the policy."""
    method = METHODS["tr_dpo"]
    model, ref = SoftmaxTable(REF.log()), SoftmaxTable(REF.log())
    run = exact_run(method, steps=ROUNDS * length, hparams={"beta": BETA, "sync_steps": length, **given})
    run = replace(run, optim=Optim(lr=1.0, schedule="constant", clip=0.0, rows_per_pass=1000))
    parts = make_parts(method, model, FixedFeed(preference_pairs(bradley_terry(REWARDS), LAW)), ref)
    path: dict[str, Any] = {"loss": [], "margin": [], "KL to the start": [], "policies": []}
    state = State(torch.optim.SGD(parts.learner.parameters(), lr=run.optim.lr))
    for report in steps(run, method, parts, state):
        policy: Tensor = model.probabilities()[0]
        path["loss"].append(report.metrics["loss"])
        path["margin"].append(report.metrics["rewards/margins"])
        path["KL to the start"].append(float(kl(policy, REF[0])))
        path["policies"].append(policy)
    return path


def _draw(axes: Any, series: dict[str, Any]) -> None:
    kinds = (("hard", BLUE), ("soft", ORANGE), ("plain", GREY))
    titles = ("Loss: back to log 2 at each hard update", "Mean reward margin β h", "KL(π || ref at the start)")
    for ax, name, title in zip(axes, ("loss", "margin", "KL to the start"), titles, strict=True):
        for kind, color in kinds:
            ax.plot(
                series["step"], series[f"{kind} {name}"], color=color, label=f"{kind} updates".replace("plain", "no")
            )
        ax.set(title=title, xlabel="step", ylabel="" if name == "margin" else "nats")
    axes[0].axhline(math.log(2), color="#bbbbbb", linewidth=0.8, zorder=0)
    axes[1].set_ylabel("β h (nats)")
    axes[2].legend(loc="upper left")


LAB = Lab(
    id="L9",
    name="tr_dpo",
    title="A reference that follows the policy",
    claim="Right after a hard update the loss is log 2; n rounds of exact solves end at ref exp(n r/beta)/Z; the KL to "
    "the start grows past that of plain DPO.",
    source="Gorbatovski et al. 2024, arXiv:2404.09656; Xiong et al. 2024, arXiv:2409.02392",
    run=run,
)
