"""What goes wrong when a policy or a reward model learns from preferences: the rules of `evals.health` about that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fiducial.evals.evidence import LONGER, Evidence, Finding, Severity
from fiducial.evals.frontier import GOLD, PROXIES
from fiducial.evals.history import Change, change_of, interval_of, show
from fiducial.evals.metrics import is_healthy
from fiducial.methods.kto import balancing_weights

WANTED_TO_UNWANTED = 1.5  # the most that wanted completions should weigh, where unwanted ones weigh 1
LENGTH_GAP = 0.2  # between a reward model's accuracies on longer and on shorter chosen sides
HELD_OUT_QUALITY = ("eval/gold", "eval/reward", "eval/pass@1", "eval/ranking_accuracy")  # the first that was logged
SIDES = (  # implicit rewards of what is wanted and of what is not
    ("rewards/chosen", "rewards/rejected"),
    ("rewards/real", "rewards/generated"),
    ("rewards/desirable", "rewards/undesirable"),
)


def unbalanced(labels: Mapping[str, float], hparams: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with the weights of wanted and unwanted completions, and what to set, where it is.

    KTO's paper wants lambda_d n_d / (lambda_u n_u) in [1, 3/2] (4/3 in its early versions). A method without these
    weights, and data without labels, have nothing to balance.

    >>> unbalanced({"wanted": 100, "unwanted": 400}, {"lambda_d": 1.0, "lambda_u": 1.0})[1]
    'set hparams.lambda_d = 4 and hparams.lambda_u = 1'
    """
    if not labels or not {"lambda_d", "lambda_u"} <= hparams.keys():
        return None
    wanted, unwanted = labels["wanted"], labels["unwanted"]
    if not (wanted and unwanted):
        side, other = ("wanted", "unwanted") if wanted else ("unwanted", "wanted")
        return f"all completions are {side}", f"the method learns from both kinds: add some that are {other}"
    sides = [hparams["lambda_d"] * wanted, hparams["lambda_u"] * unwanted]
    if sides[1] * (1 - 1e-9) <= sides[0] <= WANTED_TO_UNWANTED * sides[1] * (1 + 1e-9):
        return None
    what = (
        f"{wanted:,.10g} wanted and {unwanted:,.10g} unwanted completions weigh {sides[0]:,.4g} to {sides[1]:,.4g} "
        "(lambda_d n_d to lambda_u n_u); the paper wants 1 to 1.5 times as much on the wanted side"
    )
    cure = balancing_weights(wanted, unwanted)
    return what, f"set hparams.lambda_d = {cure[0]:.4g} and hparams.lambda_u = {cure[1]:.4g}"


def labels_are_unbalanced(run: Evidence) -> Iterator[Finding]:
    """Wanted and unwanted completions that do not weigh about the same."""
    if found := unbalanced(run.data.get("labels") or {}, run.config.get("hparams") or {}):
        yield Finding("warning", found[0], "data.json", found[1])


def displacement(run: Evidence) -> Iterator[Finding]:
    """The margin grows while both sides become less likely than they were: the mass goes to neither of them."""
    for wanted, unwanted in SIDES:
        good, bad = run.trend(wanted), run.trend(unwanted)
        if good is None or bad is None or good.last >= -good.noise or bad.last >= -bad.noise:
            continue
        if (good.last - bad.last) - (good.first - bad.first) <= math.hypot(good.noise, bad.noise):
            continue
        other = dict(run.smooth(unwanted))
        below = next((step for step, value in run.smooth(wanted) if value < 0 and other.get(step, 0) < 0), 0)
        side = wanted.rpartition("/")[2]
        what = (
            f"displacement: {side} completions became less likely too (implicit rewards {good.last:.3g} and "
            f"{bad.last:.3g}) while the margin rose"
        )
        advice = (
            "raise beta, lower optim.lr, add a likelihood term (dpo_nll, dpop, c3dpo), or drop pairs whose sides are "
            "nearly equal"
        )
        yield Finding("warning", what, f"{wanted}, step {below}", advice)


def over_optimised(run: Evidence) -> Iterator[Finding]:
    """Goodhart: what is trained on goes up, and what it stands for, which nothing trains on, has turned down."""
    held = [row for row in run.rows if row.get(GOLD) is not None]
    if len(held) < 3:
        return
    best, last = max(held, key=lambda row: row[GOLD]), held[-1]
    halves = [ends[1] - row[GOLD] for row in (best, last) if (ends := interval_of(row, GOLD))]
    if best[GOLD] - last[GOLD] <= math.hypot(*halves):
        return
    for proxy in PROXIES:
        points = [(step, value) for step, value in run.smooth(proxy) if step >= best["step"]]
        if len(points) > 1 and points[-1][1] > points[0][1]:
            what = (
                f"over-optimisation: {GOLD} fell from {show(GOLD, best[GOLD])} to {show(GOLD, last[GOLD])} while "
                f"{proxy} rose from {show(proxy, points[0][1])} to {show(proxy, points[-1][1])}"
            )
            advice = (
                "take the checkpoint of this step (checkpoint.every keeps some), hold the policy closer with beta or "
                "kl.weight, or train a better reward model"
            )
            yield Finding("warning", what, f"{GOLD}, step {best['step']}", advice)
            return


def accuracy_is_chance(run: Evidence) -> Iterator[Finding]:
    """Pairs that are told apart no better than by a coin."""
    for name in ("rewards/accuracies", "accuracy"):
        trend = run.trend(name)
        if trend and not is_healthy(name, trend.last):
            what = f"{name} is {show(name, trend.last)} in the last quarter: chance is 50 %"
            advice = "check that chosen and rejected are not swapped or equal; try a higher optim.lr or more steps"
            yield Finding("warning", what, f"{name}, step {run.finite(name)[-1][0]}", advice)


def held_out_accuracy_is_chance(run: Evidence) -> Iterator[Finding]:
    """Held-out pairs on which chance is not excluded, although the training pairs are told apart."""
    for name in ("rewards/accuracies", "accuracy"):
        trained, change = run.trend(name), change_of(run.rows, f"eval/{name}")
        if not change or change.before is None or not change.after_ends or change.after_ends[0] > 0.5:
            continue
        if trained and not is_healthy(name, trained.last):
            continue  # told by the rule before
        low, high = (show(name, end) for end in change.after_ends)
        what = f"{change.name} is {show(name, change.after)} ({low} to {high}): chance is not excluded"
        advice = "hold out more pairs (eval.n, data.eval_path); a gap to the training pairs is memorising: fewer epochs"
        severity: Severity = "info" if is_healthy(name, change.after) else "warning"
        yield Finding(severity, what, f"{change.name}, step {run.finite(change.name)[-1][0]}", advice)


def reward_model_likes_length(run: Evidence) -> Iterator[Finding]:
    """A reward model that is right where the chosen side is longer, and not where it is shorter (Singhal et al.
    2023)."""
    longer, shorter = run.trend("accuracy/longer"), run.trend("accuracy/shorter")
    if longer is None or shorter is None:
        return
    gap = longer.last - shorter.last
    if gap > max(LENGTH_GAP, math.hypot(longer.noise, shorter.noise)):
        ends = [show("accuracy", side.last) for side in (longer, shorter)]
        what = f"right on {ends[0]} of pairs whose chosen side is longer, {ends[1]} where it is shorter"
        advice = "it counts words: balance the pairs by length, or a policy trained on it will write at length"
        yield Finding("warning", what, f"accuracy/shorter, step {run.finite('accuracy/shorter')[-1][0]}", advice)


def held_out_length_inflates(run: Evidence) -> Iterator[Finding]:
    """Samples of held-out prompts that grow while nothing held out gets better; for methods that train on no samples,
    whose completions are measured nowhere else."""
    name = "eval/completions/mean_length"
    length = change_of(run.rows, name)
    quality = next((change for metric in HELD_OUT_QUALITY if (change := change_of(run.rows, metric))), None)
    if run.finite("completions/mean_length") or length is None or length.before is None or quality is None:
        return
    if length.after <= LONGER * length.before or quality.before is None or _improved(quality):
        return
    first = next(step for step, value in run.finite(name) if value > LONGER * length.before)
    before, after = (show(quality.name, value) for value in (quality.before, quality.after))
    what = (
        f"length inflation: samples grew from {length.before:.0f} to {length.after:.0f} tokens, and {quality.name} did "
        f"not get better ({before}, then {after})"
    )
    advice = (
        "balance the pairs by length (fiducial data inspect tells which side is longer), or take a method that divides "
        "by length (simpo; length_average of others)"
    )
    yield Finding("warning", what, f"{name}, step {first}", advice)


def _improved(change: Change) -> bool:
    """Whether a metric of which more is better rose, beyond chance where its interval is known."""
    assert change.before is not None
    known = change.before_ends is not None and change.after_ends is not None
    return change.after > change.before and not (known and change.overlaps)


PREFERENCE_RULES: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    labels_are_unbalanced,
    displacement,
    over_optimised,
    held_out_length_inflates,
    accuracy_is_chance,
    held_out_accuracy_is_chance,
    reward_model_likes_length,
)
