"""L11: ranking accuracy and win rate while DPO moves away from where it began, and with a scaled reference.

One decoder learns a made-up language and trains by DPO on few pairs for long. At points of the way: the distance of
its weights, the ranking accuracy (how often it finds the chosen side likelier, the reference left out) on the pairs it
trains on and on held-out ones, and how often its replies beat the reference's by the gold reward. "Near" is the nearer
half of the way, "far" the rest. Then DPO with gamma times the reference's log-ratio, gamma from 0 to 1, all for as many
steps.

The rule: near, ranking accuracy on the trained pairs and win rate are positively correlated, and the win rate at its
best is above one half.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from fiducial.core.seeds import mix
from fiducial.data.feedback.comparing import Comparison
from fiducial.data.preferences.length_bias import pearson
from fiducial.evals.diagnostics import squared_distance, weights_distance
from fiducial.evals.pairs import ranking
from fiducial.evals.stats import wilson
from fiducial.evals.win_rate import WinRate, win_rate
from fiducial.judges.of_rewards import ScoreJudge
from fiducial.labs.base import BLUE, GREY, ORANGE, SKY, Criterion, Lab, Plot, Result, above
from fiducial.labs.language import TOPICS, Gold, Judged, Language, preference_training

BETA, LR, PAIRS, HELD_OUT, TEMPERATURE, EACH = 0.1, 1e-3, 250, 600, 0.3, 96
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
TRAINED, HELD = "ranking_accuracy, trained pairs", "ranking_accuracy, held-out pairs"


class Way:
    """One language, its reference and pairs, and measures of models that train on them."""

    def __init__(self, seed: int, fast: bool):
        self.language, self.seed = Language(seed), seed
        self.ref = self.language.speaker(120 if fast else 300)
        self.train = self.language.pairs(self.ref, PAIRS, TEMPERATURE, mix(seed, "train"))
        self.held = self.language.pairs(self.ref, HELD_OUT, TEMPERATURE, mix(seed, "held out"))
        self.judge = ScoreJudge(Gold(self.language), "sign")
        self.theirs = self.language.sample(self.ref, EACH, mix(seed, "reference"))

    def steps(self, number: int, every: int, gamma: float = 1.0) -> list[dict[str, Any]]:
        """What is measured before the first of `number` steps of DPO, after every `every`-th, and after the last."""
        model = copy.deepcopy(self.ref)
        found = [self.measured(model, 0)]
        run = preference_training("dpo", model, self.ref, self.train, number, self.seed, LR, beta=BETA, gamma_ref=gamma)
        for report in run:
            if (report.step + 1) % every == 0 or report.step + 1 == number:
                found.append(self.measured(model, report.step + 1))
        return found

    def measured(self, model: Any, step: int) -> dict[str, Any]:
        """Distance of the weights, ranking accuracies, and the win rate against the reference."""
        start = [weight.detach() for weight in self.ref.parameters()]
        moved = weights_distance([squared_distance(model.parameters(), start)])
        wins = self.wins(model)
        return {
            "step": step,
            "distance": moved["weights_distance"],
            TRAINED: self.accuracy(model, self.train),
            HELD: self.accuracy(model, self.held),
            "win_rate": wins.value,
            "win_rate low": wins.wilson.low,
            "win_rate high": wins.wilson.high,
        }

    def accuracy(self, model: Any, pairs: list[Judged]) -> float:
        """The share of pairs whose chosen side the model finds likelier."""
        return float(ranking(self.language.likelihoods(model, pairs))["ranking_accuracy"].mean())

    def wins(self, model: Any) -> WinRate:
        """How often the model's replies have the greater gold reward."""
        ours = self.language.sample(model, EACH, mix(self.seed, "policy"))
        pairs = [(a, b) for x, y in zip(ours, self.theirs, strict=True) for a, b in zip(x, y, strict=True)]
        return win_rate(self.judge, [[Comparison(a.prompt, a.completion, b.completion)] for a, b in pairs])


def run(seed: int, fast: bool) -> Result:
    """The way of plain DPO, then each gamma's end."""
    way = Way(mix(seed, "way"), fast)
    points = way.steps(150 if fast else 600, 10 if fast else 20)
    scaled = [way.steps(50 if fast else 200, 10_000, gamma)[-1] for gamma in GAMMAS]
    path = {name: [point[name] for point in points] for name in points[0]}
    gammas = {"gamma": GAMMAS, **{name: [point[name] for point in scaled] for name in points[0]}}
    half = max(path["distance"]) / 2
    parts = {
        "near": [i for i, d in enumerate(path["distance"]) if d <= half],
        "far": [i for i, d in enumerate(path["distance"]) if d > half],
    }
    found = {(part, of): _correlation(path, of, places) for part, places in parts.items() for of in (TRAINED, HELD)}
    best, number = max(path["win_rate"]), len(TOPICS) * EACH
    criteria = [
        Criterion("correlation of ranking accuracy and win rate, near", found["near", TRAINED], ">", 0.0),
        above("best win rate on the way", wilson(best * number, number), 0.5),
    ]
    note = (
        f"Pearson's correlation of ranking accuracy on the trained pairs and win rate is {found['near', TRAINED]:.2f} "
        f"in the nearer half of the way and {found['far', TRAINED]:.2f} in the farther one."
    )
    metrics = {f"correlation with win_rate, {part}, {of}": value for (part, of), value in found.items()}
    series = {"path": path, "gammas": gammas}
    figures = {"distance": Plot(lambda *axes: _draw(axes, path, gammas, half), panels=2)}
    return Result(series, figures, criteria, note, {**metrics, "half of the way": half})


def _correlation(path: dict[str, list[float]], of: str, places: list[int]) -> float:
    """Of a ranking accuracy and the win rate over some of the points; NaN where one of them does not vary."""
    accuracy, wins = (torch.tensor([path[name][i] for i in places]) for name in (of, "win_rate"))
    found = pearson(accuracy, wins)
    return math.nan if found is None else found


def _draw(axes: Any, path: dict[str, Any], gammas: dict[str, Any], half: float) -> None:
    for ax, table, x in ((axes[0], path, "distance"), (axes[1], gammas, "gamma")):
        ax.plot(table[x], table[TRAINED], "o-", markersize=3.5, color=BLUE, label="ranking accuracy, trained pairs")
        ax.plot(table[x], table[HELD], "^-", markersize=3.5, color=SKY, label="ranking accuracy, held-out pairs")
        ax.plot(table[x], table["win_rate"], "s-", markersize=3.5, color=ORANGE, label="win rate over the reference")
        ax.fill_between(table[x], table["win_rate low"], table["win_rate high"], color=ORANGE, alpha=0.2, linewidth=0)
        ax.set(ylim=(0.3, 1), ylabel="share")
    axes[0].axvline(half, color=GREY, linestyle="--", linewidth=1)
    axes[0].set(xlabel="distance of the weights from their start (L2)", title="Along one run of DPO: near | far")
    axes[1].set(xlabel="γ, scale of the reference (1: DPO)", title="Scaled references, equal steps")
    axes[1].legend(loc="upper left")


LAB = Lab(
    id="L11",
    name="distance_winrate",
    title="Ranking accuracy and win rate part far from the start",
    claim="Ranking accuracy and win rate rise together near the reference and come apart far from it.",
    source="Chen et al. 2024, arXiv:2405.19534",
    run=run,
    observational=True,
)
