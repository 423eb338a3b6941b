"""Reading metrics.jsonl: the curve of a metric, how far it moved, and how to write it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fiducial.evals.metrics import describe

Rows = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
Ends = tuple[float, float]  # of an interval


@dataclass(frozen=True)
class Change:
    """A metric at the start and at the end: two evaluations, or the means of the first and last tenth of the steps."""

    name: str
    before: float | None  # None if it was measured once
    after: float
    before_ends: Ends | None = None
    after_ends: Ends | None = None

    @property
    def overlaps(self) -> bool:
        """Whether the two intervals have a point in common."""
        a, b = self.before_ends, self.after_ends
        return not (a and b) or (a[0] <= b[1] and b[0] <= a[1])


def series(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric; what was not finite is NaN."""
    found = [(row["step"], row[name]) for row in rows if name in row and "step" in row]
    return [step for step, _ in found], [math.nan if value is None else float(value) for _, value in found]


def change_of(rows: Rows, name: str) -> Change | None:
    """How a metric moved, None if it was never finite. Evaluations compare the first with the last; what is measured
    each step, the first tenth with the last."""
    found = [row for row in rows if row.get(name) is not None]
    if not found:
        return None
    if name.startswith("eval/"):
        first, last = found[0], found[-1]
        before, before_ends = (first[name], interval_of(first, name)) if len(found) > 1 else (None, None)
        return Change(name, before, last[name], before_ends, interval_of(last, name))
    values = [float(row[name]) for row in found]
    tenth = max(1, len(values) // 10)
    return Change(name, fmean(values[:tenth]) if len(values) > 1 else None, fmean(values[-tenth:]))


def label(name: str) -> str:
    """A metric's name for people."""
    return name.removeprefix("eval/").removeprefix("completions/").replace("_", " ")


def show(name: str, value: float) -> str:
    """A value for people: shares in percent, the rest as a number in its own unit."""
    metric = describe(name)
    unit = metric.unit if metric else ""
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.3g}"


def interval_of(row: Mapping[str, Any], name: str) -> Ends | None:
    """The logged ends of a metric's interval, None without them."""
    low, high = row.get(f"{name}/low"), row.get(f"{name}/high")
    return None if low is None or high is None else (low, high)
