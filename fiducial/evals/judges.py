"""What a name in a recipe or a command stands for, when something has to judge completions."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiducial import rewards
from fiducial.core.types import Reward, Score
from fiducial.data import tasks
from fiducial.data.feedback.ai_score import AIScore
from fiducial.rewards.worker import Outcome, Pool, Target
from fiducial.sampling.policy import Policy
from fiducial.sampling.scorer import load_scorer

ISOLATED_MEMORY = 16 << 30  # bytes of address space of a process that verifies: torch, which tasks need, maps many


class TaskReward:
    """A task's own verifier as a reward. One that says `isolate` runs in processes that are killed at `timeout` s."""

    def __init__(self, task: tasks.Task, timeout: float = 10.0):
        self.name, self.task, self.pool = task.id, task, None
        if task.isolate:
            file = str(Path(__file__).with_name("isolated.py"))
            target = Target(file, "verify", prepare="prepare", memory=ISOLATED_MEMORY)
            self.pool = Pool(target, timeout=timeout, workers=min(8, os.cpu_count() or 1))

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        if self.pool is not None:
            needed = [{name: row[name] for name in self.task.needs if name in row} for row in rows]
            calls = [((self.task.id, *pair), {}) for pair in zip(completions, needed, strict=True)]
            return [_score(outcome) for outcome in self.pool.map(calls)]
        scores = []
        for completion, row in zip(completions, rows, strict=True):
            began = time.perf_counter()
            score = self.task.verify(completion, row)
            scores.append(replace(score, seconds=time.perf_counter() - began))
        return scores


def _score(outcome: Outcome) -> Score:
    found = outcome.value if outcome.status == "result" else Score(None, outcome.status, outcome.why)
    return replace(found, seconds=outcome.seconds)


def ai_score(folder: str) -> AIScore:
    """The language model in a folder as a reward; one with a chat template is asked as a user asks it."""
    policy = Policy.load(folder)
    return AIScore(policy, chat=bool(policy.tokenizer.chat_template), fits=policy.fits, name=Path(folder).name)


def judge(name: str | Mapping[str, float], timeout: float | None = None) -> Reward:
    """A verifier, a task's own by its id, `file.py:function`, the folder of a reward or preference model, `ai:FOLDER`
    (the rating of a language model), or {name: weight} of these.

    `timeout` is in seconds per row; None means 10 for a verifier and 30 for a user's function. ValueError if there is
    no such thing.
    """
    if not isinstance(name, str):
        if not name:
            raise ValueError("reward: name at least one verifier and its weight")
        return rewards.Weighted({part: (judge(part, timeout), weight) for part, weight in name.items()})
    if name in tasks.TASKS or name.startswith("rg/"):
        return TaskReward(tasks.get(name), 10.0 if timeout is None else timeout)
    if name.startswith("ai:"):
        return ai_score(name.removeprefix("ai:"))
    if name not in rewards.VERIFIERS and Path(name).is_dir():
        return load_scorer(name)
    if ":" not in name and name not in rewards.VERIFIERS:
        known = ", ".join([*rewards.VERIFIERS, *tasks.TASKS])
        raise ValueError(f"there is no verifier {name!r}: {known}, a reward model's folder, or path/file.py:function")
    return rewards.build(name, timeout)
