"""L29: raters who like length, the reward model that is fitted to them, and what optimising it does.

Responses differ in quality and, independently, in length. Two pools of simulated raters judge pairs of them by quality;
the second also adds 0.02 for each word. A Bradley-Terry reward model with a free score for every response is fitted to
each pool by the trainer, and the policy is the exact optimum of score minus beta KL from a uniform reference. The
penalty takes out the slope of score on length within prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from fiducial.config import Optim
from fiducial.core.seeds import mix
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Tokens
from fiducial.data.preferences.length_bias import LengthBias, accuracy_by_length, heat_map, spearman
from fiducial.data.preferences.raters import Rater, simulate
from fiducial.evals.stats import mean_interval
from fiducial.exact.optima import rlhf_optimum
from fiducial.exact.tables import ScoreTree
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result, above
from fiducial.labs.training import training

RESPONSES, PAIRS, BETA, PER_WORD, RATERS = 24, 300, 0.5, 0.02, 5
POOLS = {"unbiased": 0.0, "biased": PER_WORD}
COLORS = {"unbiased": BLUE, "biased": ORANGE}
BUCKETS = {"longer": "the better is longer", "shorter": "the better is shorter"}


@dataclass(frozen=True)
class World:
    """`quality` and `lengths` in words of every response, [S, N]."""

    quality: Tensor
    lengths: Tensor

    @staticmethod
    def draw(prompts: int, seed: int) -> World:
        """Quality standard normal; lengths log-normal around 40 words, from 5 to 200."""
        draw = torch.Generator().manual_seed(mix(seed, "responses"))
        quality, spread = torch.randn(2, prompts, RESPONSES, generator=draw, dtype=torch.float64)
        return World(quality, (40 * (0.7 * spread).exp()).clamp(5, 200).round())

    def fit(self, per_word: float, judgements: int, seed: int) -> Tensor:
        """Scores [S, N], centred by prompt, of a reward model fitted to a pool of raters."""
        raters = [
            Rater(f"rater {i}", self.quality, length_bias=per_word, noise=0.02 * i, weight=1 + i) for i in range(RATERS)
        ]
        prompts = [f"prompt {s}" for s in range(len(self.quality))]
        responses = [[f"response {j}" + " word" * (int(n) - 2) for j, n in enumerate(row)] for row in self.lengths]
        batch = _batch([(int(j.prompt.split()[1]), _number(j.response_a), _number(j.response_b), (j.rating or 0) > 0)
                        for j in simulate(raters, prompts, responses, judgements, seed)
                        if isinstance(j.prompt, str)])  # fmt: skip
        model = ScoreTree(RESPONSES, 1, prompts=len(prompts))
        optim = Optim(lr=0.1, schedule="cosine", clip=0.0, rows_per_pass=1_000_000)
        for _ in training("bt_reward_model", model, lambda step: batch, optim, 100, center_coef=0.01):
            pass
        return model.table() - model.table().mean(-1, keepdim=True)


def _number(response: Any) -> int:
    return int(response.split()[1])


def _batch(judged: Sequence[tuple[int, int, int, bool]]) -> Tokens:
    """Pairs of (prompt, a, b, whether a won)."""
    sides = [(s, a if won else b) for s, a, b, won in judged], [(s, b if won else a) for s, a, b, won in judged]
    rows = [Encoded([s, y], [False, True]) for side in sides for s, y in side]
    batch = collate(rows, pairs=True, dtype=torch.float64)
    batch.extra["margin"] = torch.zeros(len(rows), dtype=torch.float64)
    return batch


@dataclass(frozen=True)
class Found:
    """What became of one pool's reward model: its scores [S, N], Spearman's correlation of score and length in each
    prompt, accuracy by bucket, and the optimised policies [S, N] without and with the penalty."""

    scores: Tensor
    within: list[float]
    accuracy: dict[str, float]
    policies: dict[str, Tensor]

    @staticmethod
    def of(world: World, scores: Tensor) -> Found:
        uniform = torch.full_like(scores, 1 / RESPONSES)
        optimised = {"plain": scores, "penalised": penalised(scores, world.lengths)}
        within = [spearman(score, length) for score, length in zip(scores, world.lengths, strict=True)]
        policies = {way: rlhf_optimum(uniform, reward, BETA) for way, reward in optimised.items()}
        return Found(scores, [rho for rho in within if rho is not None], _accuracy(scores, world), policies)

    @property
    def z(self) -> float:
        """The mean correlation over its standard error."""
        return fmean(self.within) / (stdev(self.within) / math.sqrt(len(self.within)))


def run(seed: int, fast: bool) -> Result:
    """Both pools judge the same responses."""
    world = World.draw(60 if fast else 200, seed)
    found = {
        name: Found.of(world, world.fit(bias, PAIRS * len(world.quality), mix(seed, name)))
        for name, bias in POOLS.items()
    }
    inflation = {
        (name, way): (policy * world.lengths).sum(-1) / world.lengths.mean(-1)
        for name, pool in found.items()
        for way, policy in pool.policies.items()
    }
    more = inflation["biased", "plain"] - inflation["unbiased", "plain"]
    criteria = [
        Criterion("within-prompt Spearman of score and length in standard errors, biased", found["biased"].z, ">", 3.0),
        Criterion("the same, absolute, unbiased", abs(found["unbiased"].z), "<", 3.0),
        above("length inflation by optimisation, biased minus unbiased", mean_interval(more.tolist()), 0.0),
    ]
    before = torch.full_like(world.quality, 1 / RESPONSES)
    drawn = {"before": before, "after": found["biased"].policies["plain"]}
    samples = {when: _sampled(policy, world.lengths, found["biased"].scores, seed) for when, policy in drawn.items()}
    figures = {
        "heat_maps": Plot(lambda *axes: _draw_maps(axes, samples), panels=2),
        "inflation": Plot(lambda *axes: _draw_bars(axes, inflation, found), panels=2),
    }
    note = (
        f"{len(world.quality)} prompts with {RESPONSES} responses, {PAIRS} judgements of each prompt's. Length and "
        "quality are independent, so what optimisation adds to length is the raters' taste."
    )
    return Result(_series(world, found, inflation), figures, criteria, note, _metrics(world, found, inflation))


def _series(world: World, found: dict[str, Found], inflation: dict[tuple[str, str], Tensor]) -> dict[str, Any]:
    responses = {"length": world.lengths, "quality": world.quality}
    responses |= {f"{name} score": pool.scores for name, pool in found.items()}
    prompt = torch.arange(len(world.quality)).repeat_interleave(RESPONSES)
    return {
        "responses": {"prompt": prompt, **{name: values.flatten() for name, values in responses.items()}},
        "inflation": {
            "pool": [pool for pool, _ in inflation],
            "way": [way for _, way in inflation],
            "length after over before": [float(ratio.mean()) for ratio in inflation.values()],
        },
        "accuracy": {
            "pair": list(BUCKETS),
            **{name: [pool.accuracy[bucket] for bucket in BUCKETS] for name, pool in found.items()},
        },
    }


def _metrics(world: World, found: dict[str, Found], inflation: dict[tuple[str, str], Tensor]) -> dict[str, float]:
    metrics = {}
    for name, pool in found.items():
        metrics[f"within-prompt Spearman, {name}"] = fmean(pool.within)
        metrics[f"pooled Spearman, {name}"] = LengthBias.of(pool.scores, world.lengths).spearman or 0.0
        for way, policy in pool.policies.items():
            metrics[f"length inflation, {name}, {way}"] = float(inflation[name, way].mean())
            metrics[f"gold reward, {name}, {way}"] = float((policy * world.quality).sum(-1).mean())
    return metrics


def penalised(scores: Tensor, lengths: Tensor) -> Tensor:
    """Scores [S, N] less what a line through score and length explains within prompts."""
    centred = lengths - lengths.mean(-1, keepdim=True)
    slope = (centred * scores).sum() / centred.square().sum()
    return scores - slope * centred


def _accuracy(scores: Tensor, world: World) -> dict[str, float]:
    """How often the better of two responses to a prompt scores higher, by which of them is longer."""
    first, second = torch.triu_indices(RESPONSES, RESPONSES, 1)
    better = torch.where(world.quality[:, first] > world.quality[:, second], first, second)
    worse = first + second - better
    sides = (x.gather(1, side).flatten() for x in (scores, world.lengths) for side in (better, worse))
    found = accuracy_by_length(*sides)
    return {bucket: found[bucket] or 0.0 for bucket in BUCKETS}


def _sampled(policy: Tensor, lengths: Tensor, scores: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Scores and lengths of 200 responses to each prompt, [S, 200]."""
    drawn = torch.multinomial(policy, 200, True, generator=torch.Generator().manual_seed(mix(seed, "heat map")))
    return scores.gather(1, drawn), lengths.gather(1, drawn)


def _draw_maps(axes: Any, samples: dict[str, tuple[Tensor, Tensor]]) -> None:
    from matplotlib.colors import LogNorm

    norm, (low, high) = LogNorm(1, 500), samples["before"][0].aminmax()
    for ax, (when, (scores, lengths)) in zip(axes, samples.items(), strict=True):
        counts, length_edges, score_edges = heat_map(scores, lengths)
        shown = counts.double().masked_fill(counts == 0, float("nan"))
        mesh = ax.pcolormesh(length_edges.numpy(), score_edges.numpy(), shown.T.numpy(), norm=norm, cmap="viridis")
        ax.axvline(float(lengths.mean()), color="black", linewidth=1.2, linestyle="--", label="mean length")
        ax.set(xscale="log", xlim=(5, 200), ylim=(float(low), float(high)), xlabel="length (words)",
               title=f"{when.capitalize()} optimisation, biased pool")  # fmt: skip
        ax.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
        ax.minorticks_off()
        ax.grid(False)
    axes[0].set_ylabel("reward model's score")
    axes[0].legend(loc="lower right")
    axes[1].figure.colorbar(mesh, ax=axes[1], label="samples")


def _draw_bars(axes: Any, inflation: dict[tuple[str, str], Tensor], found: dict[str, Found]) -> None:
    for i, ((pool, way), ratio) in enumerate(inflation.items()):
        mean = mean_interval(ratio.tolist())
        plain = way == "plain"
        axes[0].bar(i, mean.value, color=COLORS[pool], alpha=1 if plain else 0.45, label=pool if plain else None)
        axes[0].plot([i, i], [mean.low, mean.high], color="black", linewidth=1.2)
    axes[0].axhline(1, color=GREY, linewidth=1)
    axes[0].set_xticks(range(len(inflation)), [way for _, way in inflation])
    axes[0].set(ylabel="mean length, after over before", title="Optimisation inflates length")
    axes[0].legend(loc="upper left", title="raters", alignment="left")
    for shift, (name, pool) in zip((-0.2, 0.2), found.items(), strict=True):
        places = [i + shift for i in range(len(BUCKETS))]
        axes[1].bar(places, [pool.accuracy[bucket] for bucket in BUCKETS], 0.36, color=COLORS[name])
    axes[1].axhline(0.5, color=GREY, linewidth=1)
    axes[1].set_xticks(range(len(BUCKETS)), list(BUCKETS.values()))
    axes[1].set(ylabel="pairs ranked as by quality (share)", ylim=(0, 1), title="Accuracy by length")


LAB = Lab(
    id="L29",
    name="length_bias",
    title="Raters who like length",
    claim="A reward model fitted to raters who like length correlates with length within prompts, and optimising it "
    "inflates length; with raters who do not, neither happens.",
    source="Singhal et al. 2023, arXiv:2310.03716",
    run=run,
)
