"""A task's verifier as the worker processes run it: other people's code, at work on a model's text."""

from __future__ import annotations

from functools import cache
from typing import Any

from fiducial.core.types import Score
from fiducial.data import tasks

_task = cache(tasks.get)


def prepare() -> None:
    """Import the tasks' packages, so that no row pays for it."""
    tasks.task_ids()


def verify(id: str, completion: str, fields: dict[str, Any]) -> Score:
    """The score of one completion by the task of this id."""
    return _task(id).verify(completion, fields)
