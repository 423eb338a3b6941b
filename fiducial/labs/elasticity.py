"""L34: a large data set and a small one, and which of them a model forgets when it is trained the other way.

A decoder learns D1, replies to two topics, and D2, a k-th as many replies to two other topics, from batches of their
union, until it has seen D2 several times at every k. Then it trains on D3: replies to D2's topics with every preference
of D2's speakers turned round. The compression rate of a data set is its log-loss a token over the log of the
vocabulary; what grows has been forgotten. In a second part D1 is learned first, a larger D2 is then taught for more or
fewer steps, and D3 follows.

The rule: on the way D2's rate rises by more than D1's at every k. How much more is reported: the claim is k times.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from fiducial.core.seeds import mix
from fiducial.core.tokens import collate, masked_logprobs
from fiducial.core.types import Encoded
from fiducial.labs.base import BLUE, GREEN, GREY, ORANGE, RED, Criterion, Lab, Plot, Result
from fiducial.labs.language import WORDS, Language, imitation

LARGE, SMALL = (0, 1), (2, 3)  # topics of D1; of D2 and D3
RATIOS = (2, 8, 32)
ROWS, DEEP_ROWS = 60, 500  # of D2, in the first part and in the second
DEPTHS = (10, 30, 90)  # steps of alignment
LR, REVERSED_LR, REVERSED = 4e-3, 5e-4, 40  # the last: steps on D3
COLORS = (BLUE, ORANGE, GREEN)


def run(seed: int, fast: bool) -> Result:
    """Both parts, on one language."""
    language = Language(mix(seed, "elasticity"))
    longer = 1 if fast else 3
    paths = {k: _sized(language, k, longer * (60 + 12 * k), seed) for k in RATIOS}
    depths = _deepened(language, longer * 150, seed)
    risen = {k: {name: path[name][-1] - path[name][0] for name in ("D1", "D2")} for k, path in paths.items()}
    times = {k: both["D2"] / both["D1"] for k, both in risen.items()}
    rebound = {depth: path["D2"][-1] - path["D2"][0] for depth, path in depths.items()}
    criteria = [
        Criterion(f"rise of the compression rate on D3: D2's less D1's, k = {k}", both["D2"] - both["D1"], ">", 0.0)
        for k, both in risen.items()
    ]
    metrics = {f"D2's rise over D1's, k = {k}": value for k, value in times.items()}
    metrics |= {f"D2's rise after {depth} steps of alignment": rise for depth, rise in rebound.items()}
    note = (
        f"D2's rate rises by D1's times {_told(times, ' at k = ')}. In the same {REVERSED} steps on D3 it "
        f"rises by {_told(rebound, ' after ')} steps of alignment."
    )
    series = {f"k={k}": path for k, path in paths.items()} | {f"depth={d}": path for d, path in depths.items()}
    figures = {"elasticity": Plot(lambda *axes: _draw(axes, paths, times, depths), panels=3, width=4.0)}
    return Result(series, figures, criteria, note, metrics)


def _told(values: dict[int, float], between: str) -> str:
    return ", ".join(f"{value:.2g}{between}{key}" for key, value in values.items())


def _sized(language: Language, k: int, steps: int, seed: int) -> dict[str, list[float]]:
    """Rates on D3 after D1 and D2 were learned together, D1 k times as large."""
    d1, d2 = language.demos(k * ROWS, LARGE), language.demos(ROWS, SMALL)
    model = _taught(language.fresh(), [*d1, *d2], steps, seed)
    return _reversed(language, model, {"D1": d1[:200], "D2": d2}, seed)


def _deepened(language: Language, steps: int, seed: int) -> dict[int, dict[str, list[float]]]:
    """Rates on D3 after D1 was learned first and D2 then, for each depth."""
    d1, d2 = language.demos(8 * ROWS, LARGE), language.demos(DEEP_ROWS, SMALL)
    pretrained = _taught(language.fresh(), d1, steps, seed)
    found = {}
    for depth in DEPTHS:
        aligned = _taught(copy.deepcopy(pretrained), d2, depth, seed)
        found[depth] = _reversed(language, aligned, {"D1": d1[:200], "D2": d2[:200]}, seed)
    return found


def _taught(model: Any, rows: Sequence[Encoded], steps: int, seed: int) -> Any:
    for _ in imitation(model, rows, steps, mix(seed, "taught"), LR):
        pass
    return model


def _reversed(
    language: Language, model: Any, measured: dict[str, Sequence[Encoded]], seed: int
) -> dict[str, list[float]]:
    """Compression rates of the measured data sets along the steps on D3."""
    rows = language.demos(500, SMALL, tilt=-1.0)
    path: dict[str, list[float]] = {"step": [0.0], **{name: [_rate(model, data)] for name, data in measured.items()}}
    for report in imitation(model, rows, REVERSED, mix(seed, "reversed"), REVERSED_LR, final=1.0):
        if (report.step + 1) % 4 == 0:
            path["step"].append(report.step + 1.0)
            for name, data in measured.items():
                path[name].append(_rate(model, data))
    return path


@torch.inference_mode()
def _rate(model: Any, rows: Sequence[Encoded]) -> float:
    """Log-loss a token over that of a uniform code of the words and the end."""
    batch = collate(rows)
    logprobs = masked_logprobs(model.hidden(batch.input_ids), model.head, batch.input_ids, batch.mask)["logprobs"]
    return -float(logprobs.sum()) / int(batch.mask.sum()) / math.log(len(WORDS) + 1)


def _draw(axes: Any, paths: dict[int, Any], times: dict[int, float], depths: dict[int, Any]) -> None:
    for (k, path), color in zip(paths.items(), COLORS, strict=True):
        for name, dashes in (("D1", "--"), ("D2", "-")):
            change = [rate - path[name][0] for rate in path[name]]
            axes[0].plot(path["step"], change, dashes, color=color, label=f"{name}, k = {k}")
    axes[0].set(xlabel="step on D3", ylabel="change of the compression rate", title="The small set is forgotten")
    axes[0].legend(fontsize=7.5)
    axes[1].plot(list(times), list(times.values()), "o-", color=RED, label="measured")
    axes[1].plot(RATIOS, RATIOS, "--", color=GREY, label="claimed: k")
    axes[1].set(xscale="log", yscale="log", xlabel="k, size of D1 over D2", ylabel="D2's change over D1's")
    axes[1].set_title("By how much faster")
    axes[1].set_xticks(RATIOS, map(str, RATIOS))
    axes[1].set_yticks((1, 2, 4, 8, 16, 32), ("1", "2", "4", "8", "16", "32"))
    axes[1].minorticks_off()
    axes[1].legend()
    for (depth, path), color in zip(depths.items(), COLORS, strict=True):
        axes[2].plot(path["step"], path["D2"], color=color, label=f"after {depth} steps on D2")
    axes[2].set(xlabel="step on D3", ylabel="compression rate of D2", title="More or less deeply aligned")
    axes[2].legend(fontsize=7.5)


LAB = Lab(
    id="L34",
    name="elasticity",
    title="Elasticity: the small data set is forgotten first",
    claim="Trained the other way, a model loses the small alignment set about k times as fast as a pretraining set k "
    "times its size, and deeper alignment rebounds faster.",
    source="Ji et al. 2024, arXiv:2406.06144",
    run=run,
    observational=True,
)
