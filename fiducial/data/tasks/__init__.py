"""Verifiable tasks: problems without end, their worked solutions, and verdicts on completions.

>>> from random import Random
>>> problem = problems(get("arith"), 1, "test", seed=0, steps=2)[0]
>>> get("arith").verify(get("arith").trace(problem, Random(0)), problem.fields).verdict
'correct'
"""

from __future__ import annotations

from difflib import get_close_matches

from fiducial.data.tasks import arith, countdown, kk, reasoning_gym
from fiducial.data.tasks.base import SPLITS, Setting, Split, Task, problems, split_of

__all__ = ["SPLITS", "TASKS", "Setting", "Split", "Task", "get", "list_tasks", "problems", "split_of", "task_ids"]

TASKS: dict[str, Task] = {task.id: task for task in (arith.TASK, countdown.TASK, kk.TASK)}


def get(id: str) -> Task:
    """The task with this id: a built-in one, or `rg/<name>` of reasoning-gym."""
    if id in TASKS:
        return TASKS[id]
    if id.startswith(reasoning_gym.PREFIX):
        name = id.removeprefix(reasoning_gym.PREFIX)
        if name in reasoning_gym.names() or name in reasoning_gym.UNUSABLE:
            return reasoning_gym.task(name)
    near = get_close_matches(id, task_ids(), n=3) or list(TASKS)
    raise ValueError(f"there is no task {id!r}; did you mean {' or '.join(near)}? `fiducial tasks` lists them all")


def task_ids() -> list[str]:
    """The ids of all tasks, built-in ones first; those of reasoning-gym where it is installed."""
    adapted = reasoning_gym.names() if reasoning_gym.installed() else []
    return [*TASKS, *(reasoning_gym.PREFIX + name for name in adapted)]


def list_tasks() -> list[Task]:
    """All tasks, in the order of `task_ids`. Generates nothing."""
    return [get(id) for id in task_ids()]
