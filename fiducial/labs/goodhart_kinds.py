"""L17: four ways in which a measure ceases to be a good one (Goodhart's law).

Regressional: the proxy is the true reward plus noise, and selection keeps only a part of its excess. Extremal: the
relation turns round in the tail. Causal: the proxy is an effect of the true reward, and pushing it moves nothing else.
Adversarial: others move effort from the true reward into the proxy, the more the proxy counts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fiducial.core.seeds import mix
from fiducial.exact.curves import GOODHART, regressional, regressional_slope
from fiducial.labs.base import BLUE, ORANGE, Criterion, Lab, Plot, Result

PRESSURES = tuple(0.25 * step for step in range(11))
THRESHOLDS = tuple(0.5 * step - 2.25 for step in range(11))  # of the selection that is regressional's pressure
NOISE = 1.5
TITLES = {
    "regressional": "Regressional: shrinks",
    "extremal": "Extremal: turns round",
    "causal": "Causal: stays flat",
    "adversarial": "Adversarial: collapses",
}


class Slope(NamedTuple):
    """Least-squares slope and its standard error."""

    value: float
    error: float


def slope(x: Tensor, y: Tensor) -> Slope:
    """Of y in x, with an intercept."""
    dx, dy = x - x.mean(), y - y.mean()
    value = float((dx @ dy) / (dx @ dx))
    rest = dy - value * dx
    return Slope(value, math.sqrt(float(rest @ rest) / (len(x) - 2) / float(dx @ dx)))


def run(seed: int, fast: bool) -> Result:
    """Mean gold and proxy as the pressure on the proxy grows, each pressure on a draw of its own."""
    n = 20_000 if fast else 500_000
    found = {
        kind: [make(n, mix(seed, "goodhart", kind, step), pressure=p) for step, p in enumerate(_pressures(kind))]
        for kind, make in GOODHART.items()
    }
    rows: dict[str, Any] = {}
    for kind, measured in found.items():
        rows[f"{kind} pressure"] = list(_pressures(kind))
        rows[f"{kind} gold"] = [float(m.gold.mean()) for m in measured]
        rows[f"{kind} proxy"] = [float(m.proxy.mean()) for m in measured]
    observed = regressional(n, mix(seed, "goodhart", "slope"), noise=NOISE)
    shrinks = slope(observed.proxy, observed.gold)
    pushed = torch.tensor(PRESSURES, dtype=torch.float64).repeat_interleave(n)
    flat = slope(pushed, torch.cat([m.gold for m in found["causal"]]))
    off = abs(shrinks.value - regressional_slope(NOISE))
    criteria = [
        Criterion("regressional: |slope - 1/(1 + noise^2)| in standard errors", off / shrinks.error, "<=", 3.0),
        Criterion("causal: |slope of gold in the push| in standard errors", abs(flat.value) / flat.error, "<=", 3.0),
    ]
    metrics = {"regressional slope": shrinks.value, "in theory": regressional_slope(NOISE), "causal slope": flat.value}
    figures = {"kinds": Plot(lambda *axes: _draw(axes, rows), panels=4, width=3.2, height=3.2)}
    note = "Only in the first of the four does more pressure still buy some of the true reward."
    return Result({"kinds": rows}, figures, criteria, note, metrics)


def _pressures(kind: str) -> tuple[float, ...]:
    return THRESHOLDS if kind == "regressional" else PRESSURES


def _draw(axes: Any, rows: dict[str, Any]) -> None:
    for ax, kind in zip(axes, GOODHART, strict=True):
        ax.plot(rows[f"{kind} pressure"], rows[f"{kind} proxy"], color=ORANGE, label="proxy")
        ax.plot(rows[f"{kind} pressure"], rows[f"{kind} gold"], color=BLUE, label="gold (true)")
        ax.set(title=TITLES[kind], xlabel="pressure on the proxy (s.d.)")
    axes[0].set_xlabel("least proxy that is kept (s.d.)")
    axes[0].set_ylabel("mean reward (s.d. of gold)")
    axes[0].legend()


LAB = Lab(
    id="L17",
    name="goodhart_kinds",
    title="Four kinds of Goodhart's law",
    claim="Under pressure on the proxy the true reward shrinks to 1/(1 + noise^2) of it (regressional), turns round "
    "(extremal), does not move (causal) or collapses (adversarial).",
    source="Manheim & Garrabrant 2018, arXiv:1803.04585",
    run=run,
)
