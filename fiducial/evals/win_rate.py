"""Which of two models does better: the win rate under a judge, with its intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean

import torch

from fiducial.core.types import Decoding, Problem
from fiducial.data.feedback.comparing import Comparison, PairJudge, both_orders, position_bias
from fiducial.data.feedback.writer import Writer
from fiducial.evals.stats import LEVEL, Interval, proportion_interval

FEW = 20  # prompts; the bootstrap of fewer is too narrow


@dataclass(frozen=True)
class WinRate:
    """Share of comparisons that the first model wins, a tie being half, and how sure that is.

    `wilson` and `bootstrap` are intervals over prompts. A comparison is decided where the averaged probability is not
    1/2; `unjudged` counts those without a verdict, by reason. `identical` are ties because both wrote the same.
    """

    n: int  # prompts with a verdict
    wins: int
    ties: int
    losses: int
    wilson: Interval
    bootstrap: Interval
    position_bias: float | None = None
    identical: int = 0
    unjudged: dict[str, int] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The win rate, averaged over prompts."""
        return self.wilson.value

    @property
    def share_unjudged(self) -> float:
        """Share of all comparisons that have no verdict."""
        unjudged = sum(self.unjudged.values())
        return unjudged / (unjudged + self.wins + self.ties + self.losses)


def win_rate(judge: PairJudge, groups: Sequence[Sequence[Comparison]], *, seed: int = 0) -> WinRate:
    """How often side a wins, over groups of comparisons [prompts][samples], one group for each prompt.

    Equal completions are ties without asking. ValueError if nothing could be judged.
    """
    flat = [(number, comparison) for number, group in enumerate(groups) for comparison in group]
    differing = [comparison for _, comparison in flat if comparison.a != comparison.b]
    judgements = both_orders(judge, differing) if differing else []
    waiting = iter(judgements)
    outcomes: list[list[float]] = [[] for _ in groups]
    for number, comparison in flat:
        outcome = 0.5 if comparison.a == comparison.b else next(waiting).outcome
        if outcome is not None:
            outcomes[number].append(outcome)
    unjudged = Counter(judgement.why for judgement in judgements if judgement.outcome is None)
    counts = Counter(outcome for group in outcomes for outcome in group)
    means = [fmean(group) for group in outcomes if group]
    if not means:
        told = ", ".join(f"{number} {reason}" for reason, number in unjudged.items()) or "there are none"
        raise ValueError(f"{judge.name} judged none of the {len(flat)} comparisons: {told}")
    return WinRate(
        n=len(means),
        wins=counts[1.0],
        ties=counts[0.5],
        losses=counts[0.0],
        wilson=proportion_interval(means, samples=max(map(len, outcomes))),
        bootstrap=bootstrap_interval(means, seed=seed),
        position_bias=position_bias(judgements),
        identical=len(flat) - len(differing),
        unjudged=dict(unjudged),
    )


def bootstrap_interval(values: Sequence[float], *, level: float = LEVEL, draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile interval of a mean of values in [0, 1]: the quantiles of the means of `draws` resamples with
    replacement (Efron 1979).

    Fewer than `FEW` values, and values that are all the same, cannot stand for what was not seen: resampling them is
    too narrow, or has no width at all. Their interval is Wilson's. ValueError for no values or values outside.
    """
    if len(values) < FEW or min(values) == max(values):
        return proportion_interval(values, level=level)
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    size = len(sample)
    parts = torch.full((draws,), size).split(max(1, 2**20 // size))  # a million numbers at a time
    means = torch.cat([sample[torch.randint(size, (len(p), size), generator=generator)].mean(1) for p in parts])
    ends = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(float(sample.mean()), *ends)


def head_to_head(
    first: Writer,
    second: Writer,
    problems: Sequence[Problem],
    judge: PairJudge,
    *,
    k: int = 1,
    seed: int = 0,
    decoding: Decoding | None = None,
) -> tuple[WinRate, dict[str, float]]:
    """k completions of each problem's prompt by both models, compared one by one; and how long both write.

    Both draw with the same seeds, so that a model against itself writes the same and ties. ValueError for no problems.
    """
    if not problems:
        raise ValueError("there is nothing to compare on: the list of problems is empty")
    settings = asdict(decoding or Decoding())
    prompts = [problem.prompt for problem in problems]
    ours, theirs = (policy.sample(prompts, k, seed, **settings) for policy in (first, second))
    compared = [
        Comparison(problems[i // k].prompt, a.completion, b.completion, problems[i // k].fields)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]
    groups = [compared[i : i + k] for i in range(0, len(compared), k)]
    lengths = {
        "completions/mean_length": fmean(rollout.num_tokens for rollout in ours),
        "against/mean_length": fmean(rollout.num_tokens for rollout in theirs),
    }
    return win_rate(judge, groups, seed=seed), lengths
