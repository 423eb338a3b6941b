"""A task's own verifier as a reward."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiducial.core.types import Score
from fiducial.data import tasks
from fiducial.rewards.worker import Outcome, Pool, Target

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
