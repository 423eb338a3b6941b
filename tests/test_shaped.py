"""Rewards of a group as a recipe's [shaping] makes them, by hand."""

from dataclasses import replace

import pytest

from fiducial.config import RecipeError, Run, Shaping, from_table
from fiducial.core.types import Rollout, Score
from fiducial.train.measure import Meter
from fiducial.train.shaped import shaped


def rollout(reward, length=3, right=True, group=0, **parts):
    parts = {name: Score.of_number(value) for name, value in parts.items()}
    score = None if reward is None else Score(reward, "correct" if right else "wrong", parts=parts)
    return Rollout("p", "c", [0] * (1 + length), [False] + [True] * length, [0.0] * (1 + length), group, reward=reward,
                   score=score)  # fmt: skip


def rewards(run, rollouts, step=0):
    return [r.reward for r in shaped(run, step, rollouts, Meter())]


def test_length_reward_after_a_warm_up():
    # lengths 2, 4, 6: lambda 0.5, 0, -0.5; the wrong one at 6 gets min(0, -0.5). Weight 2.
    run = Run(shaping=Shaping(length=2.0, length_after=3))
    group = [rollout(1.0, 2), rollout(1.0, 4), rollout(0.0, 6, right=False)]
    assert rewards(run, group, step=2) == [1, 1, 0]
    assert rewards(run, group, step=3) == [2, 1, -1]


def test_groups_are_apart_and_what_has_no_reward_keeps_none():
    run = Run(shaping=Shaping(length=1.0))
    found = rewards(run, [rollout(1.0, 2), rollout(None, 9), rollout(1.0, 4), rollout(1.0, 7, group=1)])
    assert found == [1.5, None, 0.5, 1.0]  # the last is alone in its group: as long as the longest and the shortest


def test_each_source_has_the_say_of_its_weight():
    # a: 0 and 100, b: 1 and 0: each -1 and 1 after normalising (population deviation); weights 1 and 3
    run = Run(reward={"a": 1.0, "b": {"weight": 3.0}}, shaping=Shaping(each=True))
    found = rewards(run, [rollout(3.0, a=0.0, b=1.0), rollout(100.0, a=100.0, b=0.0)])
    assert found == pytest.approx([-1 + 3, 1 - 3])


def test_clip():
    run = Run(shaping=Shaping(clip=0.5))
    assert rewards(run, [rollout(3.0), rollout(-2.0), rollout(0.25)]) == [0.5, -0.5, 0.25]


def test_one_source_cannot_be_normalised_among_others():
    table = {"method": "grpo", "task": "arith", "model": {"new": {}}, "shaping": {"each": True}}
    with pytest.raises(RecipeError, match="at least two"):
        from_table(Run, table).resolved()
    assert replace(Run(), shaping=Shaping()).shaping == Shaping()
