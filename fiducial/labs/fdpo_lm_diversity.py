"""L6: DPO under several divergences on a small language model: how accurate, how diverse.

One decoder learns a made-up language; its own replies are judged in pairs; from it each divergence trains on the same
pairs for as many steps at the same beta. Wang et al. found reverse KL the most accurate (67 %) and least diverse,
forward KL the reverse (54 %), the others between. Exact optima do not have that order at equal beta: it is one of
training, so it is reported here and not asserted. The rule: each divergence ranks held-out pairs better than chance.
"""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

from fiducial.core.seeds import mix
from fiducial.evals.diagnostics import right
from fiducial.evals.stats import wilson
from fiducial.labs.base import COLORS, GREY, Lab, Plot, Result, above
from fiducial.labs.language import Judged, Language, preference_training

FAMILIES: dict[str, dict[str, Any]] = {
    "reverse KL": {"family": "reverse_kl"},
    "JS": {"family": "js"},
    "α = 0.3": {"family": "alpha", "alpha": 0.3},
    "α = 0.5": {"family": "alpha", "alpha": 0.5},
    "α = 0.7": {"family": "alpha", "alpha": 0.7},
    "forward KL": {"family": "forward_kl"},
}
BETA, LR, PAIRS, HELD_OUT, TEMPERATURE, EACH = 0.1, 1e-3, 1000, 600, 0.3, 48
MEASURES = ("accuracy", "gold", "kl", "entropy", "distinct_1", "distinct_2", "self_bleu", "words")


def run(seed: int, fast: bool) -> Result:
    """Every divergence from one imitating model; in full, on three languages."""
    tables = [_one(mix(seed, "language", i), fast) for i in range(1 if fast else 3)]
    names = ("reference", *FAMILIES)
    mean = {name: {m: fmean(t[name][m] for t in tables) for m in MEASURES} for name in names}
    criteria = [
        above(f"accuracy on held-out pairs, {name}", wilson(sum(t[name]["right"] for t in tables),
              sum(t[name]["pairs"] for t in tables)), 0.5)
        for name in FAMILIES
    ]  # fmt: skip
    table = {"divergence": names, **{m: [mean[name][m] for name in names] for m in MEASURES}}
    first, most = (max(FAMILIES, key=lambda name: mean[name][m]) for m in ("accuracy", "entropy"))
    least = min(FAMILIES, key=lambda name: mean[name]["entropy"])
    note = (
        f"At beta {BETA:g} and equal steps {first} ranks held-out pairs best ({mean[first]['accuracy']:.0%}); {most} "
        f"keeps the most entropy, {least} the least. In the paper reverse KL is most accurate and least diverse."
    )
    figures = {"diversity": Plot(lambda *axes: _draw(axes, mean), panels=2)}
    return Result({"divergences": table}, figures, criteria, note)


def _one(seed: int, fast: bool) -> dict[str, dict[str, float]]:
    """The measures of the reference and of each divergence on one language."""
    language = Language(seed)
    ref = language.speaker(120 if fast else 300)
    pairs = language.pairs(ref, PAIRS, TEMPERATURE, mix(seed, "train"))
    held = language.pairs(ref, HELD_OUT, TEMPERATURE, mix(seed, "held out"))
    found = {"reference": _measures(language, ref, ref, held, seed)}
    for name, hparams in FAMILIES.items():
        model = copy.deepcopy(ref)
        for _ in preference_training("f_dpo", model, ref, pairs, 80 if fast else 200, seed, LR, beta=BETA, **hparams):
            pass
        found[name] = _measures(language, model, ref, held, seed)
    return found


def _measures(language: Language, model: Any, ref: Any, held: list[Judged], seed: int) -> dict[str, float]:
    """Held-out accuracy of the implicit reward, which every divergence makes an increasing function of log model / ref,
    and what the model's own replies are like."""
    ours, theirs = (language.likelihoods(network, held) for network in (model, ref))
    wins = right(ours.chosen - theirs.chosen, ours.rejected - theirs.rejected)
    replies = language.sample(model, EACH, mix(seed, "measure"))
    counts = {"accuracy": float(wins.mean()), "right": float(wins.sum()), "pairs": len(held)}
    return {**counts, **language.measured(model, ref, replies)}


def _draw(axes: Any, mean: dict[str, dict[str, float]]) -> None:
    for name, color in zip(FAMILIES, COLORS, strict=False):
        found = mean[name]
        axes[0].scatter(found["entropy"], found["accuracy"], s=55, color=color, label=name)
        axes[1].scatter(found["kl"], found["gold"], s=55, color=color)
    ref = mean["reference"]
    axes[0].axvline(ref["entropy"], color=GREY, linestyle="--", linewidth=1.2, label="before")
    axes[1].scatter(0, ref["gold"], s=55, color=GREY, marker="s")
    axes[0].axhline(0.5, color=GREY, linewidth=1)
    axes[0].set(xlabel="entropy of replies (nats a token)", ylabel="accuracy on held-out pairs (share)",
                title="Accuracy and diversity")  # fmt: skip
    axes[1].set(xlabel="KL to the reference (nats a reply)", ylabel="gold reward", title="Reward and distance")
    axes[0].legend(fontsize=7.5)


LAB = Lab(
    id="L6",
    name="fdpo_lm_diversity",
    title="Divergences in DPO: accuracy against diversity",
    claim="Reverse KL is the most accurate and the least diverse, forward KL the other way round, JS and the alpha "
    "family between them.",
    source="Wang et al. 2023, arXiv:2309.16240",
    run=run,
    observational=True,
)
