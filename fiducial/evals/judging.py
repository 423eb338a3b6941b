"""Which of two models does better: judges that compare completions, and the win rate with its intervals.

Anything that scores completions compares them too: a reward model by the sigmoid of the score difference
(Bradley-Terry), a verifier or a function of one completion by which score is higher. A language model is an AI judge,
and `file.py:function` with parameters `a` and `b` judges itself. All but those that cannot care about the order are
asked in both orders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch

from fiducial.config import Verdicts
from fiducial.core.types import Decoding, Problem, Reward, Score
from fiducial.data.feedback.ai_feedback import AIJudge
from fiducial.data.feedback.comparing import Comparison, Judgement, PairJudge, both_orders, position_bias, sigmoid
from fiducial.data.feedback.writer import Side
from fiducial.evals.judges import judge as reward_named
from fiducial.evals.stats import LEVEL, Interval, proportion_interval
from fiducial.models.folder import is_reward_model, read_config
from fiducial.rewards import UserReward
from fiducial.sampling.policy import Policy
from fiducial.sampling.scorer import PairScorer, load_scorer


class ScoreJudge:
    """A reward as a judge: "sigmoid" of the score difference, or "sign", by which the higher score wins.

    Each different completion of a prompt is scored once. `reward_of` is what a score is worth, by default as a recipe's
    [verdicts] has it; a comparison with a side that has no worth is not judged.
    """

    symmetric = True

    def __init__(
        self,
        reward: Reward,
        link: Literal["sigmoid", "sign"],
        reward_of: Callable[[Score], float | None] | None = None,
    ):
        self.reward, self.link, self.name = reward, link, reward.name
        self.reward_of = reward_of or Verdicts().reward

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        different = {
            _key(c, side): (side, {"prompt": c.prompt, **c.fields}) for c in comparisons for side in (c.a, c.b)
        }
        if not all(isinstance(side, str) for side, _ in different.values()):
            raise ValueError(f"{self.name} scores completions that are text, but one is a list of messages")
        scores = self.reward([str(side) for side, _ in different.values()], [row for _, row in different.values()])
        found = dict(zip(different, scores, strict=True))
        return [self._compare(found[_key(c, c.a)], found[_key(c, c.b)]) for c in comparisons]

    def _compare(self, a: Score, b: Score) -> Judgement:
        first, second = self.reward_of(a), self.reward_of(b)
        if first is None or second is None:
            return Judgement(None, a.verdict if first is None else b.verdict)
        gap = first - second
        probability = sigmoid(gap) if self.link == "sigmoid" else 0.5 + 0.5 * ((gap > 0) - (gap < 0))
        return Judgement(probability, details={"scores": sorted((first, second), reverse=True)})


def _key(comparison: Comparison, side: Side) -> str:
    return repr((side, comparison.prompt, comparison.fields))


class UserJudge:
    """A user's `file.py:function` with parameters `a` and `b`, the two completions; the others, `prompt` or fields of
    the row, it gets by name. It returns how probable it is that a is better (a bool is a probability too), or None.

    Runs as rewards do, in a process of its own; ValueError for a number outside [0, 1].
    """

    symmetric = False

    def __init__(self, reward: UserReward):
        self.reward, self.name = reward, reward.name

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        rows = [{"prompt": c.prompt, **c.fields, "a": c.a, "b": c.b} for c in comparisons]
        scores = self.reward([row[self.reward.completion_name] for row in rows], rows)
        return [Judgement(s.value, "" if s.value is not None else s.verdict) for s in scores]


class ModelJudge:
    """A preference model as a judge: it reads both completions, in both orders."""

    symmetric = True

    def __init__(self, scorer: PairScorer):
        self.scorer, self.name = scorer, scorer.name

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        found = self.scorer.probabilities([(c.prompt, c.a, c.b) for c in comparisons])
        return [Judgement(p, "" if p is not None else "skipped") for p in found]


def pair_judge(
    name: str,
    *,
    timeout: float | None = None,
    mode: Literal["logprobs", "text"] = "logprobs",
    reasoning: bool = False,
    chat: bool = False,
    seed: int = 0,
) -> PairJudge:
    """What a name stands for when two completions are compared: the folder of a reward model or of a language model
    (the AI judge; `mode`, `reasoning` and `chat` are its), `file.py:function` of two completions or of one, a verifier
    or a task's id. ValueError if there is no such thing."""
    if Path(name).is_dir():
        if is_reward_model(read_config(Path(name))):
            scorer = load_scorer(name)
            return ModelJudge(scorer) if isinstance(scorer, PairScorer) else ScoreJudge(scorer, "sigmoid")
        policy = Policy.load(name)
        return AIJudge(policy, mode, reasoning, chat=chat, seed=seed, fits=policy.fits, name=Path(name).name)
    reward = reward_named(name, timeout)
    if isinstance(reward, UserReward) and {"a", "b"} <= {reward.completion_name, *reward.fields}:
        return UserJudge(reward)
    return ScoreJudge(reward, "sign")


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
    """Percentile interval of a mean: the quantiles of the means of `draws` resamples with replacement (Efron 1979).

    ValueError for no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    size = len(sample)
    parts = torch.full((draws,), size).split(max(1, 2**20 // size))  # a million numbers at a time
    means = torch.cat([sample[torch.randint(size, (len(p), size), generator=generator)].mean(1) for p in parts])
    ends = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(float(sample.mean()), *ends)


def head_to_head(
    first: Policy,
    second: Policy,
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
