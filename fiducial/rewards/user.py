"""A user's own reward: a function in a Python file."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiducial.core.types import Score
from fiducial.rewards.verdicts import told
from fiducial.rewards.worker import Call, Outcome, Pool, RewardError, Target

POSITIONAL = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL")


class UserReward:
    """The reward `path/file.py:function`, a function `(completion, **fields) -> float | bool | Score | None`.

    It receives the fields of the row that its parameters name, or all of them if it takes `**fields`. 1 and True have
    the verdict "correct", 0 and False "wrong"; any other number is graded (`Score.of_number`); None means that it does
    not apply, "skipped". It runs in a process of its own, one call after the other unless `workers` says otherwise, and
    its file is loaded once per process.

    Raises RewardError, which stops the run, when the function raises, dies, takes more than `timeout` seconds for one
    completion, or returns something that is not a finite number: none of that becomes a reward. ValueError when there
    is no such function, or its file does not load.
    """

    def __init__(self, spec: str, *, timeout: float = 30.0, workers: int = 1):
        path, _, function = spec.rpartition(":")
        if not path or not function.isidentifier():
            raise ValueError(f"reward {spec!r}: write a function of your own as path/file.py:function")
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise ValueError(f"reward {spec!r}: there is no file {path}")
        self.name = function
        self.spec = spec
        target = Target(str(file), function, path=[str(file.parent), *sys.path])
        self.pool = Pool(target, timeout=timeout, workers=workers)
        try:
            parameters = self.pool.parameters()  # loads the file, so that a mistake in it shows before the run starts
        except RewardError as error:
            raise ValueError(str(error)) from error
        if not parameters or parameters[0].kind not in POSITIONAL:
            raise ValueError(f"reward {spec!r}: the function must take the completion as its first argument")
        fields = parameters[1:] if parameters[0].kind != "VAR_POSITIONAL" else parameters
        self.completion_name = parameters[0].name
        self.takes_all = any(p.kind == "VAR_KEYWORD" for p in fields)
        self.fields = [p.name for p in fields if not p.kind.startswith("VAR_")]
        self.required = [p.name for p in fields if p.required]

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        scores: list[Score | None] = [self._missing(row) for row in rows]
        pairs = zip(completions, rows, strict=True)
        calls = {i: self._call(completion, row) for i, (completion, row) in enumerate(pairs) if scores[i] is None}
        order = list(calls)
        with closing(self.pool.each(list(calls.values()))) as outcomes:
            for number, outcome in outcomes:
                row = order[number]
                where = told(completions[row], rows[row].get("prompt"))
                scores[row] = replace(self._score(where, outcome), seconds=outcome.seconds)
        return [score for score in scores if score is not None]

    def _missing(self, row: dict[str, Any]) -> Score | None:
        missing = [name for name in self.required if name not in row]
        if not missing:
            return None
        return Score(None, "skipped", f"the row has no field {missing[0]!r}, which {self.name} needs")

    def _call(self, completion: str, row: dict[str, Any]) -> Call:
        if self.takes_all:
            return (completion,), {name: value for name, value in row.items() if name != self.completion_name}
        return (completion,), {name: row[name] for name in self.fields if name in row}

    def _score(self, where: str, outcome: Outcome) -> Score:
        if outcome.status == "timeout":
            limit = f"{self.pool.timeout:g}"
            raise RewardError(
                f"{self.spec} took more than {limit} s on {where}; make it faster, or raise verdicts.timeout = {limit} "
                "(--timeout of fiducial score)"
            )
        if outcome.status == "crashed":
            raise RewardError(f"{self.spec} failed on {where}: {outcome.why}\n{outcome.trace}".rstrip())
        result = outcome.value
        if result is None:
            return Score(None, "skipped", f"{self.name} returned None")
        if isinstance(result, Score):
            self._number(where, 0.0 if result.value is None else result.value)
            return result
        return Score.of_number(self._number(where, result))

    def _number(self, where: str, result: Any) -> float:
        """The result as a float; numbers of numpy and tensors of one element count as numbers."""
        if isinstance(result, str | bytes) or not hasattr(result, "__float__"):
            kind = type(result).__name__
            raise RewardError(
                f"{self.spec} returned {kind} on {where}; a reward returns a number, a bool, a Score or None"
            )
        try:
            value = float(result)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(result).__name__
            raise RewardError(f"{self.spec} returned a {kind} that is not one number on {where}") from error
        if not math.isfinite(value):
            raise RewardError(
                f"{self.spec} returned {value} on {where}; a reward must be finite, or None where it does not apply"
            )
        return value
