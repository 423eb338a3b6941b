"""Plots as inline SVG that takes its colours and its font from the page, so that light and dark both fit.

matplotlib draws with stand-in colours, which are then replaced by CSS variables: see `_THEME`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04")
_THEME = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    color: f"var(--series-{i + 1})" for i, color in enumerate(SERIES)
}
SMOOTH_FROM = 20  # points; fewer are drawn as they are


@dataclass(frozen=True)
class Line:
    """One curve. `low` and `high` bound a band; `marked` draws the points and does not smooth (evaluations)."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    marked: bool = False


def line_plot(lines: Sequence[Line], label: str, share: bool = False) -> str:
    """Curves over steps: the raw values faint, a moving average over them. `share` writes the axis in percent."""
    figure, axes = _figure(4.4, 2.3)
    for line, color in zip(lines, SERIES, strict=False):
        if line.marked:
            axes.plot(line.steps, line.values, color=color, marker="o", markersize=3.5, linewidth=1.6, label=line.name)
        else:
            smooth = moving_average(line.values)
            raw = dict(color=color, linewidth=0.8, alpha=0.35) if smooth != list(line.values) else dict(alpha=0)
            axes.plot(line.steps, line.values, **raw)
            axes.plot(line.steps, smooth, color=color, linewidth=1.8, label=line.name)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.steps, line.low, line.high, color=color, alpha=0.16, linewidth=0)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9.5, borderpad=0, handlelength=1.2)
    _ticks(axes, share)
    axes.set_xlabel("step", color=MUTED, fontsize=9)
    return _svg(figure, label)


def distance_plot(
    distances: Sequence[float],
    values: Sequence[float],
    label: str,
    curve: Callable[[Tensor], Tensor] | None = None,
) -> str:
    """Points over the square root of a KL, and a curve through them: of distances [n] to values [n]."""
    figure, axes = _figure(4.4, 2.3)
    axes.plot(distances, values, color=SERIES[0], marker="o", markersize=4, linewidth=0)
    if curve is not None:
        among = torch.linspace(max(min(distances), 1e-3), max(distances), 100, dtype=torch.float64)
        axes.plot(among.tolist(), curve(among).tolist(), color=SERIES[1], linewidth=1.6)
    _ticks(axes, share=False)
    axes.xaxis.get_major_locator().set_params(integer=False)
    axes.set_xlabel("square root of the KL to the reference", color=MUTED, fontsize=9)
    return _svg(figure, label)


def bar_plot(
    names: Sequence[str],
    sides: Sequence[str],
    values: Sequence[Sequence[float]],
    ends: Sequence[Sequence[tuple[float, float] | None]],
    label: str,
) -> str:
    """Shares as grouped bars with error bars: values[side][name], ends[side][name] = (low, high)."""
    figure, axes = _figure(8.6, 2.7)
    width = 0.8 / len(sides)
    for s, side in enumerate(sides):
        places = [i + (s - (len(sides) - 1) / 2) * width for i in range(len(names))]
        color = MUTED if s < len(sides) - 1 else SERIES[0]  # the last side is what the page is about
        axes.bar(places, values[s], width=width * 0.92, color=color, alpha=0.85, label=side)
        for place, value, end in zip(places, values[s], ends[s], strict=True):
            low, high = end or (value, value)
            axes.plot([place, place], [low, high], color=INK, linewidth=1.2)
            axes.text(place, high + 0.02, f"{value:.0%}", ha="center", va="bottom", fontsize=9, color=INK)
    _ticks(axes, share=True)
    axes.set_ylim(0, 1.1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xticks(range(len(names)), names, color=INK, fontsize=9)
    axes.legend(
        frameon=False, labelcolor=INK, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(sides)
    )
    return _svg(figure, label)


def moving_average(values: Sequence[float], share: float = 0.08) -> list[float]:
    """Mean over a window of about `share` of the points around each; values that are not finite are left out.

    >>> moving_average([1.0, 5.0])
    [1.0, 5.0]
    """
    n = len(values)
    if n < SMOOTH_FROM:
        return list(values)
    half = max(1, round(n * share / 2))
    windows = ([v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)] for i in range(n))
    return [sum(window) / len(window) if window else math.nan for window in windows]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9.5, length=0)
    return figure, axes


def _ticks(axes: Any, share: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %" if share else f"{y:.4g}"))
    low, high = axes.get_ylim()
    if share:  # no share lies outside, however little the line moves
        axes.set_ylim(max(low, -0.01), min(high, 1.01))


def _svg(figure: Any, label: str) -> str:
    """The figure as an <svg> for the middle of a page: no prologue, no links, no fixed size, colours of the page."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box
    body = text[text.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # names that repeat from plot to plot
    body = re.sub(r"\n\s*", "\n", body)
    for stand_in, color in _THEME.items():
        body = body.replace(stand_in, color)
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(label)}">{body}'.rstrip()
