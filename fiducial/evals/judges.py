"""What a name in a recipe or a command stands for, when something has to judge completions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiducial import rewards
from fiducial.core.types import Reward, Score
from fiducial.data import tasks
from fiducial.sampling.scorer import ModelReward


class TaskReward:
    """A task's own verifier as a reward."""

    def __init__(self, task: tasks.Task):
        self.name, self.task = task.id, task

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        scores = []
        for completion, row in zip(completions, rows, strict=True):
            began = time.perf_counter()
            score = self.task.verify(completion, row)
            scores.append(replace(score, seconds=time.perf_counter() - began))
        return scores


def judge(name: str | Mapping[str, float], timeout: float | None = None) -> Reward:
    """A verifier, a task's own by its id, `file.py:function`, a reward model's folder, or {name: weight} of these.

    `timeout` is in seconds per row; None means 10 for a verifier and 30 for a user's function. ValueError if there is
    no such thing.
    """
    if not isinstance(name, str):
        if not name:
            raise ValueError("reward: name at least one verifier and its weight")
        return rewards.Weighted({part: (judge(part, timeout), weight) for part, weight in name.items()})
    if name in tasks.TASKS or name.startswith("rg/"):
        return TaskReward(tasks.get(name))
    if name not in rewards.VERIFIERS and Path(name).is_dir():
        return ModelReward.load(name)
    if ":" not in name and name not in rewards.VERIFIERS:
        known = ", ".join([*rewards.VERIFIERS, *tasks.TASKS])
        raise ValueError(f"there is no verifier {name!r}: {known}, a reward model's folder, or path/file.py:function")
    return rewards.build(name, timeout)
