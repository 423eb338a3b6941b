"""A regular expression on the completion, in a process that is killed when the pattern backtracks without end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from fiducial.core.types import Score
from fiducial.rewards.verdicts import CHECK_MEMORY, outcome_score, score
from fiducial.rewards.worker import CHILD, Pool, Target


class Regex:
    """Whether a pattern matches the completion: the given one, else the row's field `pattern`, else its `answer`.

    `mode` is "search" (anywhere) or "fullmatch" (the whole completion). A row over the time limit is "timeout"; a row
    whose pattern does not compile is "skipped".
    """

    name = "regex"

    def __init__(
        self,
        pattern: str | None = None,
        *,
        mode: Literal["search", "fullmatch"] = "search",
        flags: int = 0,
        timeout: float = 10.0,
        workers: int = 1,
    ):
        if mode not in ("search", "fullmatch"):
            raise ValueError(f"mode must be 'search' or 'fullmatch'; it is {mode!r}")
        if pattern is not None:
            try:
                re.compile(pattern, flags)
            except re.error as error:
                raise ValueError(f"the pattern {pattern!r} is not a regular expression: {error}") from error
        self.pattern, self.mode, self.flags = pattern, mode, int(flags)
        target = Target(str(CHILD.with_name("checks.py")), "regex", memory=CHECK_MEMORY)
        self.pool = Pool(target, timeout=timeout, workers=workers)

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        patterns = [self._pattern(row) for row in rows]
        calls = [
            ((completion, pattern, self.mode, self.flags), {})
            for completion, pattern in zip(completions, patterns, strict=True)
            if isinstance(pattern, str)
        ]
        judged = iter(self.pool.map(calls))
        return [outcome_score(next(judged)) if isinstance(pattern, str) else pattern for pattern in patterns]

    def _pattern(self, row: dict[str, Any]) -> str | Score:
        pattern = self.pattern or row.get("pattern", row.get("answer"))
        if isinstance(pattern, str) and pattern:
            return pattern
        return score("skipped", "the row has no field 'pattern' (or 'answer') that holds a regular expression")
