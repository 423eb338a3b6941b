"""fiducial eval --frontier RUN..."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fiducial.cli import show


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of reward against distance."""
    parser.add_argument(
        "--frontier", nargs="+", metavar="RUN", help="run folders: gold and proxy reward against the KL, with a fit"
    )
    parser.add_argument(
        "--proxy", default="", help="with --frontier: the metric trained on (default: reward or margin)"
    )
    parser.add_argument("--gold", default="", help="with --frontier: the metric that counts (default eval/gold)")
    parser.add_argument("--out", default="", metavar="FILE.html", help="with --frontier: write a page with the plots")


def eval_frontier(args: Any) -> int:
    """Read the evaluations of runs and print the frontier; returns the exit code."""
    from fiducial.evals.frontier import GOLD, read_frontier

    found = read_frontier(args.frontier, args.proxy, args.gold or GOLD)
    if args.out:
        from fiducial.evals import page
        from fiducial.evals.report import OVER_OPTIMISED, frontier_panels

        plots = page.grid(frontier_panels(found), "plots")
        title = "Reward against distance"
        Path(args.out).write_text(page.page(title, page.section(title, plots, note=OVER_OPTIMISED)), encoding="utf-8")
    if args.json:
        show.emit(found.summary())
        return 0
    rows = [
        (point.run, point.step, f"{point.distance:.4g}", f"{point.gold:+.4g}", f"{point.proxy:+.4g}")
        for point in found.points
    ]
    show.table(["run", "step", "sqrt KL", f"{found.gold} gained", f"{found.proxy} gained"], rows)
    peak, curve = found.peak, found.curve
    print(
        f"peak: {peak.gold:+.4g} at distance {peak.distance:.4g} ({peak.run}, step {peak.step}); area {found.area:.4g}"
    )
    if curve is None:
        print("no curve: two points at different distances from the reference are needed")
    else:
        print(
            f"fit d (alpha - beta log d): alpha {curve.alpha:.4g}, beta {curve.beta:.4g}, peak at d = {curve.peak:.4g}"
        )
    if args.out:
        print(f"page: {args.out}")
    return 0
