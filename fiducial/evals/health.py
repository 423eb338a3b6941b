"""Reads a run and names what looks wrong: the metric, the step, and what to do about it.

Rules are thresholds on what was logged; the healthy ranges are those of `evals.metrics`. A finding is a reason to look,
not a proof, and silence proves nothing either: a policy that fools its verifier looks healthy in every log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from fiducial.core.types import FAILED
from fiducial.evals.evidence import ENOUGH, LONGER, Evidence, Finding, Severity
from fiducial.evals.history import show
from fiducial.evals.metrics import METRICS, is_healthy
from fiducial.evals.preference_health import PREFERENCE_RULES
from fiducial.store import RunFolder

MOSTLY = 0.5  # a larger share of steps, or of rows, that come to nothing is an error
ROLLOUT_STEPS = 10  # steps at each end of the run whose rollouts are read


def read_run(path: str | Path | RunFolder) -> list[Finding]:
    """What looks wrong in a run folder: first why it stopped, if it did, then errors before warnings. ValueError if it
    is not one."""
    folder = path if isinstance(path, RunFolder) else RunFolder(path)
    evidence = Evidence(folder, folder.read_config(), folder.read_metrics(), folder.read_json("data.json") or {})
    findings = [finding for rule in RULES for finding in rule(evidence)]
    order = ("error", "warning", "info")
    return [*stopped(folder), *sorted(findings, key=lambda finding: order.index(finding.severity))]


# -- is there anything to read -----------------------------------------------------------------------------------


def stopped(folder: RunFolder) -> Iterator[Finding]:
    """What ended the run before its time, as it said itself."""
    if stop := folder.read_stop():
        severity: Severity = "warning" if stop["kind"] == "KeyboardInterrupt" else "error"
        yield Finding(severity, f"the run stopped: {stop['reason']}", f"step {stop['step']}", stop["advice"])


def unfinished(run: Evidence) -> Iterator[Finding]:
    """Did the run reach its end? Said here only of a run that could not say it: it was killed, or is still running."""
    if run.folder.read_stop():
        return
    done, wanted = run.folder.last_step(), run.config.get("steps")
    if not done:
        yield Finding("warning", "no step was finished", "metrics.jsonl", "start it again with --resume")
    elif wanted and done < wanted:
        what = f"the run stopped at step {done} of {wanted}"
        yield Finding("info", what, f"step {done}", "go on with --resume, unless it is still running")


def not_finite(run: Evidence) -> Iterator[Finding]:
    """Numbers that are NaN or infinite."""
    bad = [row for row in run.rows if row.get("nonfinite")]
    if bad:
        names = sorted({name for row in bad for name, value in row.items() if value is None})
        what = f"{', '.join(names)} not finite in {len(bad)} of {len(run.rows)} lines"
        advice = (
            f"lower optim.lr; fiducial replay {run.folder.path} --step {bad[0]['step']} repeats the first such step"
        )
        yield Finding("error", what, f"{names[0]}, step {bad[0]['step']}", advice)


def no_evaluation(run: Evidence) -> Iterator[Finding]:
    """Without held-out measurements memorising cannot be told from learning."""
    measured = {row.get("step") for row in run.rows if any(name.startswith("eval/") for name in row)}
    if run.rows and len(measured) < 2:
        often = "never" if not measured else "only once"
        advice = "set eval.every, and data.eval_path for rows of your own"
        yield Finding("info", f"held-out data was {often} measured", "eval/*", advice)


# -- out of the healthy range ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch:
    """A metric that should stay in its healthy range: at the end of the run, or with `always` at every time. Beyond
    `error` it is an error."""

    name: str
    advice: str
    always: bool = False
    error: float = math.inf


WATCHED = (
    Watch("completions/clipped_ratio", "raise sampling.max_new_tokens, or reward shorter completions", error=0.5),
    Watch("kl", "raise kl.weight or lower optim.lr; below 0 it cannot be a divergence of the sampled policy", True),
    Watch(
        "sampling/logp_difference/mean",
        "sampler and trainer are not the same policy: check dtype, temperature, and that weights are handed over",
        True,
        error=0.2,
    ),
    Watch("sampling/dropped_tokens", "the sampler gives log-probabilities that are not finite: check its dtype", True),
    Watch("verdict/unparseable", "show the answer's format in the prompt, or imitate some first", error=0.9),
    Watch("policy/approxkl", "the policy moves far within a step: lower optim.lr, optim.epochs or optim.minibatches"),
    Watch("clip_ratio/low", "the policy moves far within a step: lower optim.lr, optim.epochs or optim.minibatches"),
    Watch("clip_ratio/high", "the policy moves far within a step: lower optim.lr, optim.epochs or optim.minibatches"),
    Watch("value/explained_variance", "the critic is worse than a constant: raise critic.warmup or critic.lr_scale"),
    Watch("cost_value/explained_variance", "the cost critic is worse than a constant: raise critic.warmup"),
    Watch("is/ess", "few samples carry the step: lower sampling.ahead or optim.lr, or cut weights at a lower cap"),
    Watch("is/frac_truncated", "many weights are cut: the samples are too old; lower sampling.ahead or optim.lr"),
    Watch("dynamic/full", "too few prompts have completions that differ: raise sampling.refill or change the problems"),
    Watch(
        "eval/unjudged", "the verifier fails on held-out problems: their accuracy is too low by up to this share", True
    ),
    Watch("eval/self_bleu", "the samples of a problem are copies: raise the temperature or stop earlier"),
    *(
        Watch(name, "the policy cheats the format: look at its rollouts (column flags), then add a penalty or a gate")
        for name in METRICS
        if name.startswith("hack/")
    ),
)


def out_of_range(run: Evidence) -> Iterator[Finding]:
    """Metrics outside the range that `evals.metrics` calls healthy."""
    for watch in WATCHED:
        points = run.smooth(watch.name)
        outside = [(step, value) for step, value in points if not is_healthy(watch.name, value)]
        if not outside or not (watch.always or outside[-1] == points[-1]):
            continue
        judged = max(outside, key=lambda point: abs(point[1]))[1] if watch.always else points[-1][1]
        low, high = (show(watch.name, end) for end in METRICS[watch.name].healthy or (-math.inf, math.inf))
        what = f"{watch.name} is {show(watch.name, judged)}; healthy is {low} to {high}"
        severity: Severity = "error" if judged > watch.error else "warning"
        yield Finding(severity, what, f"{watch.name}, step {outside[0][0]}", watch.advice)


def verifier_fails(run: Evidence) -> Iterator[Finding]:
    """Completions that got no verdict because the verifier failed."""
    for verdict in FAILED:
        name = f"verdict/{verdict}"
        points = run.finite(name)
        share = fmean(value for _, value in points) if points else 0.0
        if not is_healthy(name, share):
            step, worst = max(points, key=lambda point: point[1])
            what = f"{show(name, share)} of completions are {verdict!r} to the verifier, at worst {show(name, worst)}"
            advice = {
                "timeout": "raise verdicts.timeout, or look at the completions that are slow to check",
                "crashed": "read the reason in the rollouts (column why) and mend the verifier (or the programs)",
                "skipped": "the rows lack a field that the verifier needs; the rollouts (column why) name it",
            }[verdict]
            yield Finding("error" if share > 0.25 else "warning", what, f"{name}, step {step}", advice)


# -- rewards and completions -------------------------------------------------------------------------------------


def reward_does_not_rise(run: Evidence) -> Iterator[Finding]:
    """A reward that is flat, falling, or always the same."""
    trend, solved = run.trend("reward"), run.smooth("verdict/correct")
    if trend is None or trend.rose or (solved and solved[-1][1] > 0.95):
        return
    step = run.finite("reward")[-1][0]
    if trend.first == trend.last and trend.noise == 0:
        advice = (
            "every completion gets the same: try easier problems, imitation first, or check the verifier on an answer"
        )
        yield Finding("error", f"the reward is {trend.last:.3g} in every step", f"reward, step {step}", advice)
        return
    moved = "fell" if trend.fell else "stayed flat"
    what = f"the reward {moved}: {trend.first:.3g} in the first quarter, {trend.last:.3g} in the last"
    advice = "look at frac_reward_zero_std and kl; try another optim.lr, a larger sampling.n, easier problems"
    yield Finding("warning", what, f"reward, step {step}", advice)


def entropy_collapses(run: Evidence) -> Iterator[Finding]:
    """An entropy below a tenth of where it began: the policy has stopped to try anything new."""
    points = run.smooth("entropy")
    if len(points) < ENOUGH or points[0][1] <= 0:
        return
    start = fmean(value for _, value in run.finite("entropy")[: max(len(points) // 20, 1)])
    below = [step for step, value in points if value < 0.1 * start]
    if below and points[-1][1] < 0.1 * start:
        what = f"entropy fell from {start:.3g} to {points[-1][1]:.3g} nats per token"
        advice = "raise clip_high, add a KL term, lower optim.lr, or stop before this step"
        yield Finding("warning", what, f"entropy, step {below[0]}", advice)


def no_signal(run: Evidence) -> Iterator[Finding]:
    """Most prompts teach nothing because their completions all get the same reward."""
    name = "frac_reward_zero_std"
    points, correct = run.smooth(name), run.smooth("verdict/correct")
    if points and not is_healthy(name, points[-1][1]):
        easy = bool(correct) and correct[-1][1] > 0.5
        advice = (
            "the problems have become too easy: take harder ones"
            if easy
            else "the problems are too hard: take easier ones"
        )
        first = next(step for step, value in points if not is_healthy(name, value))
        what = f"{show(name, points[-1][1])} of the prompts get the same reward for all completions"
        yield Finding(
            "warning", what, f"{name}, step {first}", advice + ", or set sampling.filter_groups and a larger sampling.n"
        )


def nothing_selected(run: Evidence) -> Iterator[Finding]:
    """Steps whose completions gave no pair and no demonstration: nothing trained in them."""
    name = "selection/examples"
    points = run.finite(name)
    empty = [step for step, value in points if value == 0]
    if len(empty) <= MOSTLY * len(points):
        return
    steps = f"any of the {len(points)}" if len(empty) == len(points) else f"{len(empty)} of the {len(points)}"
    rewards = [value for _, value in run.finite("reward_std")]
    cause = "the completions of each prompt earn the same: " if rewards and not any(rewards) else ""
    advice = (
        f"{cause}raise sampling.n or sampling.temperature, take problems that some completions solve, or lower what "
        "the selection asks for (hparams.skip_if_score_gap_below, hparams.min_reward)"
    )
    yield Finding(
        "error", f"nothing was selected in {steps} steps: they trained nothing", f"{name}, step {empty[0]}", advice
    )


def length_inflates(run: Evidence) -> Iterator[Finding]:
    """Completions that grow while the reward does not."""
    reward = run.trend("reward")
    for name in ("completions/mean_length", "length/chosen"):
        length = run.trend(name)
        if length and length.rose and length.last > LONGER * length.first and not (reward and reward.rose):
            first = next((step for step, value in run.smooth(name) if value > LONGER * length.first), 0)
            what = f"completions grew from {length.first:.0f} to {length.last:.0f} tokens and the reward did not"
            advice = "average the loss by a constant or by tokens (per), or mask or penalise truncated completions"
            yield Finding("warning", what, f"{name}, step {first}", advice)


def wrong_completions_grow(run: Evidence) -> Iterator[Finding]:
    """Wrong completions that grow much faster than correct ones: what averaging per sequence rewards (Dr. GRPO)."""
    steps = run.folder.rollout_steps()
    if len(steps) < ENOUGH:
        return
    early, late = _lengths(run.folder, steps[:ROLLOUT_STEPS]), _lengths(run.folder, steps[-ROLLOUT_STEPS:])
    if not all(side.get(verdict) for side in (early, late) for verdict in ("correct", "wrong")):
        return
    growth = {verdict: late[verdict] / early[verdict] for verdict in ("correct", "wrong")}
    if growth["wrong"] > 1.3 and growth["wrong"] > 1.25 * growth["correct"]:
        what = (
            f"wrong completions grew from {early['wrong']:.0f} to {late['wrong']:.0f} tokens, "
            f"correct ones from {early['correct']:.0f} to {late['correct']:.0f}"
        )
        advice = (
            'per = "sequence" makes long wrong completions cheap: use per = "constant" (Dr. GRPO) or "token" (DAPO)'
        )
        yield Finding("warning", what, f"rollouts, step {steps[-ROLLOUT_STEPS]}", advice)


def _lengths(folder: RunFolder, steps: list[int]) -> dict[str, float]:
    """Mean tokens of the completions of each verdict."""
    lengths: dict[str, list[int]] = {}
    for step in steps:
        for row in folder.read_rollouts(step):
            if row.get("verdict") and row.get("mask"):
                lengths.setdefault(row["verdict"], []).append(sum(row["mask"]))
    return {verdict: fmean(values) for verdict, values in lengths.items()}


# -- losses --------------------------------------------------------------------------------------------------------


def loss_does_not_fall(run: Evidence) -> Iterator[Finding]:
    """A loss that is flat or rises, where the loss is what matters."""
    trend = run.trend("loss")
    if trend is None or trend.fell or run.finite("reward"):
        return
    moved = "rose" if trend.rose else "stayed flat"
    what = f"the loss {moved}: {trend.first:.4g} in the first quarter, {trend.last:.4g} in the last"
    advice = "try another optim.lr; check in the preflight's sample that what should train is marked"
    yield Finding("warning", what, f"loss, step {run.finite('loss')[-1][0]}", advice)


def overfits(run: Evidence) -> Iterator[Finding]:
    """A held-out loss that has turned while the training loss goes on falling."""
    points, trend = run.finite("eval/loss"), run.trend("loss")
    if len(points) < 3 or not (trend and trend.fell):
        return
    step, best = min(points, key=lambda point: point[1])
    last = points[-1][1]
    if last > best + 0.05 * abs(points[0][1] - best) and last > best and step != points[-1][0]:
        what = f"the held-out loss rose from {best:.4g} to {last:.4g} while the training loss fell"
        yield Finding("warning", what, f"eval/loss, step {step}", "stop there, take more data, or a lower optim.lr")


def gradient_spikes(run: Evidence) -> Iterator[Finding]:
    """Steps whose gradient is far larger than usual."""
    points = run.finite("grad_norm")
    if len(points) < ENOUGH:
        return
    usual = median(value for _, value in points)
    spikes = [point for point in points if point[1] > 10 * usual]
    if usual > 0 and spikes:
        step, worst = max(spikes, key=lambda point: point[1])
        what = (
            f"the gradient's norm is over ten times its usual {usual:.3g} in {len(spikes)} steps, at most {worst:.3g}"
        )
        yield Finding("warning", what, f"grad_norm, step {step}", "set optim.clip, lower optim.lr, add optim.warmup")


# -- data --------------------------------------------------------------------------------------------------------


def data_is_cut(run: Evidence) -> Iterator[Finding]:
    """Rows that were cut or skipped, and a stop token that never trains."""
    measured, cut = run.data.get("completions") or 0, run.data.get("truncated") or 0
    if measured and cut / measured > 0.01:
        severity: Severity = "error" if cut / measured > 0.5 else "warning"
        what = f"{cut:,} of {measured:,} completions were cut at {run.data.get('max_length')} tokens and lost their end"
        yield Finding(severity, what, "data.json", 'raise data.max_length, or set data.too_long = "drop"')
    if run.data.get("stop_trained") == 0:
        advice = "end each completion with the stop token; without it the policy will not learn to end"
        yield Finding("error", "the stop token never trains", "data.json", advice)
    counted = run.data.get("counted") or {}
    if skipped := rows_skipped(counted, run.data.get("rows") or 1, "data.json"):
        yield skipped


def rows_skipped(counted: Mapping[str, int], rows: int, where: str) -> Finding | None:
    """What to say of rows that cannot train, by reason: an error where it is most of them, nothing up to one in 100."""
    skipped = sum(counted.values())
    if skipped <= 0.01 * rows:
        return None
    told = ", ".join(f"{reason} {number:,}" for reason, number in counted.items())
    what = f"{skipped:,} of {rows:,} rows ({skipped / rows:.0%}) are skipped: {told}"
    if skipped <= MOSTLY * rows:
        return Finding("info", what, where, "data.json names the first of each")
    cures = [cure for reason, cure in CURES.items() if reason in counted]
    advice = "; ".join([*cures, "fiducial data inspect says more"])
    return Finding("error", f"most of the data does not train: {what}", where, advice)


CURES = {
    "tie": 'ties: data.ties = "half" or "keep" uses them',
    "slight": 'slight preferences: another data.ratings than "filter_slight" uses them',
    "too long": 'long rows: raise data.max_length, or data.too_long = "truncate"',
    "prompt too long": "long prompts: a model that reads more, or shorter prompts",
}  # of reasons for which any number of rows may be skipped

RULES: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    unfinished,
    not_finite,
    out_of_range,
    verifier_fails,
    reward_does_not_rise,
    entropy_collapses,
    no_signal,
    nothing_selected,
    length_inflates,
    wrong_completions_grow,
    loss_does_not_fall,
    overfits,
    gradient_spikes,
    *PREFERENCE_RULES,
    data_is_cut,
    no_evaluation,
)
