"""Judges of two completions that are made of something else: a reward, a user's function, a preference model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from fiducial.config import Verdicts
from fiducial.core.types import Reward, Score
from fiducial.data.feedback.comparing import Comparison, Judgement, sigmoid
from fiducial.data.feedback.labelling import TOO_LONG
from fiducial.data.feedback.writer import Side
from fiducial.rewards import UserReward
from fiducial.sampling.scorer import PairScorer


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
        return [Judgement(p, "" if p is not None else TOO_LONG) for p in found]
