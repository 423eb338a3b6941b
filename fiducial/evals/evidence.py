"""What a run left behind, as the rules that look for trouble read it, and what they find."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from fiducial.evals.history import Rows, series
from fiducial.evals.stats import mean_interval
from fiducial.store import RunFolder

Severity = Literal["error", "warning", "info"]
ENOUGH = 20  # steps from which on a trend is judged
LONGER = 1.5  # times as long is inflation, unless something got better


@dataclass(frozen=True)
class Finding:
    """What looks wrong, the metric and step it shows at, and what to do."""

    severity: Severity
    what: str
    where: str
    advice: str


@dataclass(frozen=True)
class Evidence:
    """What a run left behind."""

    folder: RunFolder
    config: dict[str, Any]
    rows: Rows
    data: dict[str, Any]

    def smooth(self, name: str) -> list[tuple[int, float]]:
        """Steps and means over the last tenth of the points up to each, at most ten; not finite values left out."""
        points = self.finite(name)
        width = min(max(len(points) // 10, 1), 10)
        means = (fmean(value for _, value in points[max(0, i - width + 1) : i + 1]) for i in range(len(points)))
        return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]

    def finite(self, name: str) -> list[tuple[int, float]]:
        steps, values = series(self.rows, name)
        return [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]

    def trend(self, name: str) -> Trend | None:
        """First against last quarter of the run, None if it is too short to tell."""
        values = [value for _, value in self.finite(name)]
        if len(values) < ENOUGH:
            return None
        quarter = len(values) // 4
        first, last = mean_interval(values[:quarter]), mean_interval(values[-quarter:])
        noise = math.hypot(first.high - first.value, last.high - last.value)
        return Trend(first.value, last.value, noise)


@dataclass(frozen=True)
class Trend:
    """Means of the first and the last quarter, and by how much they may differ by chance."""

    first: float
    last: float
    noise: float

    @property
    def rose(self) -> bool:
        return self.last - self.first > self.noise

    @property
    def fell(self) -> bool:
        return self.first - self.last > self.noise
