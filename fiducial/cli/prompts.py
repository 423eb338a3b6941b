"""Prompts for verbs that sample: a task's problems, or the rows of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fiducial.cli import show
from fiducial.core.types import Problem
from fiducial.data import BadRow, open_rows, parse, tasks


def is_task(what: str) -> bool:
    """Whether this names a task rather than a file."""
    return what in tasks.TASKS or not Path(what).suffix


def problems(
    what: str, n: int | None, seed: int, split: str, flags: Sequence[str], chat: bool = False
) -> tuple[list[Problem], Counter[str]]:
    """Up to n problems (all of a file, 100 of a task where n is None), and rows without a prompt by reason.

    flags: a task's settings (--n-people 3), or for a file --prompt-field and its like. chat: a prompt that is text
    becomes what a user says. ValueError if there is none.
    """
    over = show.overrides(flags)
    counted: Counter[str] = Counter()
    if is_task(what):
        found = tasks.problems(tasks.get(what), n or 100, cast(Any, split), seed, **over)
    else:
        fields = {name.removesuffix("_field"): value for name, value in over.items()}
        rows, found = open_rows(what), []
        for index in range(min(n or len(rows), len(rows))):
            try:
                found += parse(rows[index], "problems", fields, index)
            except BadRow as bad:
                counted[bad.reason] += 1
    if not found:
        told = ", ".join(f"{number} {reason}" for reason, number in counted.items())
        raise ValueError(f"{what}: no row has a prompt to use: {told}")
    return [as_chat(problem) if chat else problem for problem in found], counted


def as_chat(problem: Problem) -> Problem:
    """A prompt that is text becomes what a user says."""
    if not isinstance(problem.prompt, str):
        return problem
    return replace(problem, prompt=[{"role": "user", "content": problem.prompt}])
