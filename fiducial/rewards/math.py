"""Mathematical equality by math-verify, in processes with a hard time limit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fiducial.core.answers import Percent
from fiducial.core.types import Score
from fiducial.rewards.verdicts import CHECK_MEMORY, gold_of, outcome_score
from fiducial.rewards.worker import CHILD, Pool, Target


class Math:
    """Whether the completion's answer is mathematically the row's `answer` (gold first: the relation is not symmetric).

    The answer is the completion's last tag or box, `####`, "the answer is", else a lone or last formula, else the last
    number. "skipped" when the gold answer cannot be parsed, "unparseable" when the completion's cannot. Several
    candidate answers for a single gold are wrong. With `percent="hundredth"` 50% equals 1/2 only, otherwise also 50.
    """

    name = "math"

    def __init__(self, *, timeout: float = 10.0, percent: Percent = "either", workers: int | None = None):
        if percent not in ("either", "hundredth"):
            raise ValueError(f"percent must be 'either' or 'hundredth'; it is {percent!r}")
        self.percent: Percent = percent
        target = Target(str(CHILD.with_name("checks.py")), "math", prepare="prepare_math", memory=CHECK_MEMORY)
        self.pool = Pool(target, timeout=timeout, workers=workers or min(8, os.cpu_count() or 1))

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        golds = [gold_of(row) for row in rows]
        calls = [
            ((completion, gold, self.percent), {})
            for completion, gold in zip(completions, golds, strict=True)
            if isinstance(gold, str)
        ]
        judged = iter(self.pool.map(calls))
        return [outcome_score(next(judged)) if isinstance(gold, str) else gold for gold in golds]
