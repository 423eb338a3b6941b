"""What a recipe's [shaping] makes of the rewards of one prompt's completions, before credit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from fiducial.config import Run
from fiducial.core.shaping import length_reward, normalise_then_sum
from fiducial.core.types import Rollout
from fiducial.train.measure import Meter


def shaped(run: Run, step: int, rollouts: Sequence[Rollout], meter: Meter) -> list[Rollout]:
    """The completions with the rewards that train; those without a reward keep none."""
    settings = run.shaping
    if not (settings.each or settings.length or settings.clip):
        return list(rollouts)
    groups: dict[int, list[int]] = {}
    for place, r in enumerate(rollouts):
        if r.reward is not None:
            groups.setdefault(r.group, []).append(place)
    found = list(rollouts)
    for places in groups.values():
        for place, reward in zip(places, group_rewards(run, step, [rollouts[p] for p in places]), strict=True):
            found[place] = replace(found[place], reward=reward)
            meter.add("reward/shaped", reward, 1.0)
    return found


def group_rewards(run: Run, step: int, members: Sequence[Rollout]) -> list[float]:
    """The rewards of one prompt's completions, all of which have one: each source normalised, then lengths added, then
    clipped."""
    settings = run.shaping
    rewards = [float(r.reward or 0.0) for r in members]
    if settings.each:
        rewards = sources_normalised(run, members)
    if settings.length and step >= settings.length_after:
        right = [r.score is not None and r.score.verdict == "correct" for r in members]
        added = length_reward([r.num_tokens for r in members], right)
        rewards = [reward + settings.length * more for reward, more in zip(rewards, added, strict=True)]
    if settings.clip:
        rewards = [min(max(reward, -settings.clip), settings.clip) for reward in rewards]
    return rewards


def sources_normalised(run: Run, members: Sequence[Rollout]) -> list[float]:
    """Each source of a weighted reward normalised within the group, so that its weight is its say; then added."""
    assert isinstance(run.reward, dict)
    weights = {name: part["weight"] if isinstance(part, dict) else part for name, part in run.reward.items()}
    scores = [r.score.parts if r.score else {} for r in members]
    table = [[run.verdicts.reward(parts[name]) if name in parts else None for parts in scores] for name in weights]
    values = torch.tensor([[math.nan if x is None else x for x in row] for row in table], dtype=torch.float64)
    total = normalise_then_sum(values, torch.tensor(list(weights.values()), dtype=torch.float64))
    return torch.where(total.isnan(), 0.0, total).tolist()
