"""L48: how many judgements a reward model needs, and what no number of them gives.

Raters prefer by Bradley-Terry on true rewards. A model with a free score for each of five responses is fitted to 100
to 20 000 pairs of each of 16 prompts: its ranking of pairs, its calibration on fresh labels and its log-odds come
closer to the truth. Where three raters go round in a circle (each pair 2 : 1) its loss stays at log 2 and scores are
equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.core.seeds import mix
from fiducial.evals.calibration import calibration_error
from fiducial.evals.stats import mean_interval
from fiducial.exact.optima import bradley_terry
from fiducial.exact.tables import ScoreTree
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result, above
from fiducial.labs.online import adam
from fiducial.labs.tabular import normals
from fiducial.labs.training import training
from fiducial.prove.problems import pairs_of

PROMPTS, RESPONSES = 16, 5
SIZES = (100, 400, 2000, 20_000)  # pairs of each prompt
FRESH = 2000  # labels of each prompt, for calibration


def fit(wins: Tensor, seed: int) -> tuple[Tensor, float]:
    """Scores [S, A], centred, of a reward model trained on counts of wins [S, A, A], and its last loss."""
    batch = pairs_of(wins / wins.sum((1, 2), keepdim=True))
    model = ScoreTree(wins.shape[-1], 1, prompts=len(wins), seed=mix(seed, "scores"))
    optim = adam(0.1, schedule="cosine")
    *_, last = training("bt_reward_model", model, lambda step: batch, optim, 300, center_coef=0.0)
    return model.table() - model.table().mean(-1, keepdim=True), last.metrics["loss"]


def judged(chance: Tensor, number: int, seed: int) -> Tensor:
    """Counts [S, A, A] of wins among `number` pairs of different responses, i over j with chance [S, A, A]."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(RESPONSES, (len(chance), number), generator=draw)
    second = (first + torch.randint(1, RESPONSES, first.shape, generator=draw)) % RESPONSES
    prompt = torch.arange(len(chance))[:, None].expand_as(first)
    won = torch.rand(first.shape, generator=draw, dtype=torch.float64) < chance[prompt, first, second]
    better, worse = torch.where(won, first, second), torch.where(won, second, first)
    counts = torch.zeros_like(chance)
    return counts.index_put((prompt, better, worse), torch.ones((), dtype=torch.float64), accumulate=True)


def run(seed: int, fast: bool) -> Result:
    """The same raters for every number of pairs; then Condorcet's circle."""
    truth = normals(mix(seed, "rewards"), PROMPTS, RESPONSES)
    chance = bradley_terry(truth)
    first, second = torch.triu_indices(RESPONSES, RESPONSES, 1)
    gaps = truth[:, first] - truth[:, second]
    fresh = judged(chance, FRESH, mix(seed, "fresh"))
    table: dict[str, list[Any]] = {"pairs": [], "accuracy": [], "calibration error": [], "log-odds error": []}
    right, errors = {}, {}
    for size in SIZES:
        scores, _ = fit(judged(chance, size, mix(seed, "pairs", size)), seed)
        found = scores[:, first] - scores[:, second]
        right[size] = ((found > 0) == (gaps > 0)).double().mean(-1)
        errors[size] = (found - gaps).abs().mean(-1)
        margins = scores[:, :, None] - scores[:, None, :]
        off = calibration_error(margins.flatten(), fresh.flatten())
        row = size, float(right[size].mean()), off, float(errors[size].mean())
        for column, value in zip(table, row, strict=True):
            table[column].append(value)
    circle = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]], dtype=torch.float64)[None]
    scores, loss = fit(circle, seed)
    gain = mean_interval((right[SIZES[-1]] - right[SIZES[0]]).tolist())
    odds = mean_interval(errors[SIZES[-1]].tolist())
    criteria = [
        above("accuracy, 20 000 pairs minus 100", gain, 0.0),
        Criterion("|log-odds - true log-odds| at 20 000 pairs, mean", odds.value, "<", 0.1, odds),
        Criterion("growth of the calibration error, 100 to 20 000 pairs", _change(table), "<", 0.0),
        Criterion("|loss - 0.693| on a circle of raters", abs(loss - 0.693), "<=", 0.005),
        Criterion("spread of the scores on a circle", float(scores.max() - scores.min()), "<=", 1e-3),
    ]
    note = f"Ranking accuracy {table['accuracy'][0]:.3f} at 100 pairs, {table['accuracy'][-1]:.3f} at 20 000."
    return Result(
        {"sizes": table}, {"sizes": Plot(lambda *axes: _draw(axes, table), panels=3, width=3.7)}, criteria, note
    )


def _change(table: dict[str, list[Any]]) -> float:
    return table["calibration error"][-1] - table["calibration error"][0]


def _draw(axes: Any, table: dict[str, list[Any]]) -> None:
    for ax, name, color in zip(axes, list(table)[1:], (BLUE, ORANGE, GREY), strict=True):
        ax.plot(table["pairs"], table[name], "o-", markersize=4, color=color)
        ax.set(xscale="log", xlabel="pairs of a prompt", title=name.capitalize())
    axes[0].set_ylim(None, 1.01)
    for ax in axes[1:]:
        ax.set_ylim(0, None)


LAB = Lab(
    id="L48",
    name="rm",
    title="How many judgements a reward model needs",
    claim="Accuracy and calibration improve with the number of pairs and log-odds are recovered; on a cycle the loss "
    "stays at log 2.",
    source="Ouyang et al. 2022, arXiv:2203.02155; Bradley and Terry 1952",
    run=run,
)
