"""Reward against distance: what a policy's moving away from its reference buys, in the proxy that it is trained on and
in a gold reward that nothing trains on (Gao et al. 2022, arXiv:2210.10760; Rafailov et al. 2024, arXiv:2406.02900)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fiducial.evals.history import Rows
from fiducial.exact.curves import OveroptimisationCurve, fit_overoptimisation
from fiducial.store import RunFolder

DISTANCES = ("eval/kl/exact", "eval/kl/k3", "eval/kl/k1")  # the first that was logged
PROXIES = ("eval/reward", "eval/rewards/margins", "reward", "rewards/margins")  # likewise
GOLD = "eval/gold"


@dataclass(frozen=True)
class Point:
    """A checkpoint: sqrt of its KL to the reference, and both rewards' gain since the run's first evaluation."""

    run: str
    step: int
    distance: float
    gold: float
    proxy: float


@dataclass(frozen=True)
class Frontier:
    """Points by distance, and the curve d (alpha - beta log d) through their gold gains, None where none can be fitted.

    `proxy` and `gold` are the metrics' names.
    """

    points: list[Point]
    proxy: str
    gold: str
    curve: OveroptimisationCurve | None

    @property
    def peak(self) -> Point:
        """The point of the greatest gold gain, the nearest of several."""
        return max(self.points, key=lambda point: (point.gold, -point.distance))

    @property
    def area(self) -> float:
        """Area under the gold gains over the distance, from the first point to the last, by trapezoids.

        >>> points = [Point("run", i, d, g, 0.0) for i, (d, g) in enumerate([(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)])]
        >>> Frontier(points, "", "", None).area
        4.0
        """
        pairs = zip(self.points, self.points[1:], strict=False)
        return math.fsum((b.distance - a.distance) * (a.gold + b.gold) / 2 for a, b in pairs)

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON."""
        curve = self.curve and {**asdict(self.curve), "peak": _finite(self.curve.peak)}
        return {
            "proxy": self.proxy,
            "gold": self.gold,
            "points": [asdict(point) for point in self.points],
            "peak": asdict(self.peak),
            "area": self.area,
            "fit": curve,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def frontier_of(runs: Sequence[tuple[str, Rows]], proxy: str = "", gold: str = GOLD) -> Frontier | None:
    """The frontier of the evaluations of runs (name, lines of metrics.jsonl); None where none has all three numbers.

    `proxy` is a metric's name, by default the first of `PROXIES` that a run logged.
    """
    logged = {name for _, rows in runs for row in rows for name in row}
    proxy = proxy or next((name for name in PROXIES if name in logged), PROXIES[0])
    points = [point for name, rows in runs for point in _points(name, rows, proxy, gold)]
    points.sort(key=lambda point: point.distance)
    return Frontier(points, proxy, gold, _fitted(points)) if points else None


def read_frontier(folders: Sequence[str | Path], proxy: str = "", gold: str = GOLD) -> Frontier:
    """The frontier of run folders. ValueError names a folder that has no evaluation with all three numbers."""
    runs = []
    for path in folders:
        folder = RunFolder(path)
        folder.read_config()  # says so where this is no run's folder
        runs.append((str(path), folder.read_metrics()))
    found = frontier_of(runs, proxy, gold)
    there = {point.run for point in found.points} if found else set()
    missing = [name for name, _ in runs if name not in there]
    if found is None or missing:
        where = missing[0]
        proxy = proxy or " or ".join(PROXIES[:2])
        raise ValueError(
            f"{where} has no evaluation with {DISTANCES[0]}, {proxy} and {gold}: a run that has a reference logs the "
            "first, and eval.gold names what judges its held-out samples"
        )
    return found


def _points(name: str, rows: Rows, proxy: str, gold: str) -> list[Point]:
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        steps.setdefault(row.get("step") or 0, {}).update(row)
    distance = next((kl for kl in DISTANCES if any(row.get(kl) is not None for row in steps.values())), "")
    known = [
        (step, row) for step, row in steps.items() if all(row.get(key) is not None for key in (distance, proxy, gold))
    ]
    if not known:
        return []
    start = known[0][1]
    return [
        Point(name, step, math.sqrt(max(row[distance], 0.0)), row[gold] - start[gold], row[proxy] - start[proxy])
        for step, row in known
    ]


def _fitted(points: Sequence[Point]) -> OveroptimisationCurve | None:
    distances = torch.tensor([point.distance for point in points], dtype=torch.float64)
    if len(distances[distances > 0].unique()) < 2:
        return None
    return fit_overoptimisation(distances, torch.tensor([point.gold for point in points], dtype=torch.float64))
