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
from fiducial.rewards.worker import Call, Outcome, Pool, RewardError, Target

POSITIONAL = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL")


class UserReward:
    """The reward `path/file.py:function`, a function `(completion, **fields) -> float | bool | Score | None`.

    It receives the fields of the row that its parameters name, or all of them if it takes `**fields`. A number above 0
    has the verdict "correct", any other "wrong"; None means that it does not apply, "skipped". It runs in a process of
    its own, one call after the other unless `workers` says otherwise, and its file is loaded once per process.

    Raises RewardError, which stops the run, when the function raises, dies, or takes more than `timeout` seconds for
    one completion; ValueError when it returns something that is not a finite number. Neither becomes a reward.
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
        parameters = self.pool.parameters()  # loads the file, so that a mistake in it shows before the run starts
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
                scores[order[number]] = replace(self._score(order[number], outcome), seconds=outcome.seconds)
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

    def _score(self, row: int, outcome: Outcome) -> Score:
        if outcome.status == "timeout":
            raise RewardError(
                f"{self.spec} took more than {self.pool.timeout:g} s on row {row}; make it faster or raise its limit"
            )
        if outcome.status == "crashed":
            raise RewardError(f"{self.spec} failed on row {row}: {outcome.why}\n{outcome.trace}".rstrip())
        result = outcome.value
        if result is None:
            return Score(None, "skipped", f"{self.name} returned None")
        if isinstance(result, Score):
            self._number(row, 0.0 if result.value is None else result.value)
            return result
        value = self._number(row, result)
        return Score(value, "correct" if value > 0 else "wrong")

    def _number(self, row: int, result: Any) -> float:
        """The result as a float; numbers of numpy and tensors of one element count as numbers."""
        where = f"{self.spec} on row {row}"
        if isinstance(result, str | bytes) or not hasattr(result, "__float__"):
            kind = type(result).__name__
            raise ValueError(f"{where} returned {kind}; a reward returns a number, a bool, a Score or None")
        try:
            value = float(result)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where} returned a {type(result).__name__} that is not one number") from error
        if not math.isfinite(value):
            raise ValueError(f"{where} returned {value}; a reward must be finite, or None where it does not apply")
        return value
