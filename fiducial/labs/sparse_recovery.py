"""L15: a sparse reward is learnt from few pairs, the dense one that DPO is left with is not.

Of d features only k = 3 matter. A reward model may know that and pay an l1 penalty: its error grows with k log(d) / n.
DPO's reward carries the soft value of what comes after in every feature, and its error grows with d / n however it is
fitted. Both errors are squared, in the norm that the data induce, of logistic fits to Gaussian pairs.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from fiducial.exact.sparse import data_error, l1_weight, logistic_fit, sparse_pairs
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result

K, N, D = 3, 2000, 40
DIMENSIONS = (20, 40, 80, 160, 320)
SIZES = (500, 1000, 2000, 4000, 8000)
WAYS = {"sparse, l1": BLUE, "sparse, no penalty": GREY, "dense, the better of both": ORANGE}


def errors(n: int, d: int, seed: int) -> dict[str, float]:
    """Of each way on one sample."""
    sparse, dense = (sparse_pairs(n, d, K, seed, dense=dense) for dense in (False, True))
    weight = l1_weight(n, d)

    def error(pairs: Any, l1: float) -> float:
        return data_error(pairs.x, logistic_fit(pairs.x, pairs.wins, l1), pairs.theta)

    found = error(sparse, weight), error(sparse, 0.0), min(error(dense, l1) for l1 in (0.0, weight))
    return dict(zip(WAYS, found, strict=True))


def run(seed: int, fast: bool) -> Result:
    """Errors over d at n = 2000 and over n at d = 40, averaged over samples."""
    samples = 3 if fast else 10
    over_d = _means("d", [(N, d) for d in DIMENSIONS], samples, seed)
    over_n = _means("n", [(n, D) for n in SIZES], samples, seed)
    first, last = DIMENSIONS.index(40), DIMENSIONS.index(320)
    grown = {way: over_d[way][last] / over_d[way][first] for way in WAYS}
    criteria = [
        Criterion("dense: error at d = 320 over d = 40", grown["dense, the better of both"], ">=", 5.0),
        Criterion("sparse, l1: error at d = 320 over d = 40", grown["sparse, l1"], "<=", 2.5),
    ]
    metrics = {f"slope in log n, {way}": _slope(over_n["n"], over_n[way]) for way in WAYS}
    metrics |= {f"slope in log d, {way}": _slope(over_d["d"], over_d[way]) for way in WAYS}
    figures = {"errors": Plot(lambda *axes: _draw(axes, over_d, over_n), panels=2)}
    note = "The l1 error is nearly flat in d; both fall with n."
    return Result({"over_d": over_d, "over_n": over_n}, figures, criteria, note, metrics)


def _means(name: str, sizes: list[tuple[int, int]], samples: int, seed: int) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {name: [float(d if name == "d" else n) for n, d in sizes]}
    for n, d in sizes:
        found = [errors(n, d, 1000 * seed + i) for i in range(samples)]
        for way in WAYS:
            rows.setdefault(way, []).append(fmean(one[way] for one in found))
    return rows


def _slope(x: list[float], y: list[float]) -> float:
    """Of log y in log x, by least squares."""
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mean_u, mean_v = fmean(u), fmean(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)


def _draw(axes: Any, over_d: dict[str, list[float]], over_n: dict[str, list[float]]) -> None:
    for ax, rows, name in ((axes[0], over_d, "d"), (axes[1], over_n, "n")):
        for way, color in WAYS.items():
            ax.plot(rows[name], rows[way], "o-", markersize=3.5, color=color, label=way)
        x, anchor = rows[name], rows["dense, the better of both"][1]
        line = [anchor * (v / x[1]) ** (1 if name == "d" else -1) for v in x]
        ax.plot(x, line, ":", color="#aaaaaa", label="slope 1" if name == "d" else "slope −1")
        ax.set(xscale="log", yscale="log", ylabel="squared error in the data's norm")
        ax.set_xticks(x, [f"{v:g}" for v in x], minor=False)
        ax.set_xticks([], minor=True)
        ax.legend()
    axes[0].set(xlabel="features d", title=f"n = {N} pairs: dense grows with d, l1 hardly")
    axes[1].set(xlabel="pairs n", title=f"d = {D} features: all fall with n")


LAB = Lab(
    id="L15",
    name="sparse_recovery",
    title="Sparse rewards are learnt from few pairs",
    claim="With k of d features in use, the error of an l1-penalised reward is nearly flat in d, that of the dense "
    "reward which DPO fits is linear in d; both fall like 1/n.",
    source="Shi et al. 2025, arXiv:2505.19770",
    run=run,
)
