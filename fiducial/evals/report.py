"""report.html: what a run did, on one page that needs no network and can be sent to anyone.

It shows only what was logged, and says of every number what it means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fiducial.core.types import VERDICTS
from fiducial.evals import page, plots
from fiducial.evals.frontier import Frontier, frontier_of
from fiducial.evals.history import Change, Rows, change_of, label, series, show
from fiducial.evals.metrics import Metric, describe, is_healthy
from fiducial.store import RunFolder

PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (  # title, what it says if that is not one definition, metrics
    ("Held-out problems", "Solved by one sample, and at temperature 0.", ("eval/pass@1", "eval/greedy")),
    (
        "Held-out pairs",
        "Pairs that are ranked right: by implicit reward or score, and by likelihood.",
        ("eval/rewards/accuracies", "eval/accuracy", "eval/ranking_accuracy", "eval/ranking_accuracy_len_norm"),
    ),
    (
        "Held-out implicit reward",
        "beta (log pi - log pi_ref) of each side, and their margin. Both below 0: displacement.",
        ("eval/rewards/chosen", "eval/rewards/rejected", "eval/rewards/margins"),
    ),
    (
        "Pairs that flipped",
        "Ranked otherwise, by likelihood, than the reference did.",
        ("eval/flips/correct_wrong", "eval/flips/wrong_correct"),
    ),
    ("Gold reward", "", ("eval/gold",)),
    (
        "Distance from the reference",
        "KL on held-out samples, nats a completion: over whole distributions, and two estimates.",
        ("eval/kl/exact", "eval/kl/k1", "eval/kl/k3"),
    ),
    ("Distance of the weights", "", ("weights_distance",)),
    ("Held-out loss", "", ("eval/loss",)),
    ("Reward", "", ("reward",)),
    ("Loss", "", ("loss",)),
    ("Perplexity", "", ("perplexity",)),
    ("Token accuracy", "", ("mean_token_accuracy",)),
    (
        "Pair accuracy",
        "Pairs that are ranked right: by implicit reward or score, and by likelihood.",
        ("rewards/accuracies", "accuracy", "ranking_accuracy"),
    ),
    ("Accuracy by length", "Pairs whose chosen side is longer, and shorter.", ("accuracy/longer", "accuracy/shorter")),
    (
        "Implicit reward",
        "beta (log pi - log pi_ref) of each side, and their margin.",
        ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    ),
    ("Log-probability", "Summed over the tokens of each side.", ("logps/chosen", "logps/rejected")),
    (
        "Length",
        "Tokens per completion, and per completion that ended by itself.",
        ("completions/mean_length", "completions/mean_terminated_length"),
    ),
    ("Length of held-out samples", "", ("eval/completions/mean_length",)),
    ("Different words", "Different n-grams over all, in held-out samples.", ("eval/distinct_1", "eval/distinct_2")),
    ("Cut at the limit", "", ("completions/clipped_ratio",)),
    (
        "Unreadable or not judged",
        "Completions without a verdict of right or wrong.",
        ("verdict/unparseable", "verdict/timeout", "verdict/crashed", "verdict/skipped"),
    ),
    ("KL to the reference", "", ("kl",)),
    ("Entropy", "", ("entropy",)),
    ("Prompts without signal", "", ("frac_reward_zero_std",)),
    ("Sampler against trainer", "", ("sampling/logp_difference/mean",)),
    ("Clipped tokens", "Tokens outside the trust region, by side.", ("clip_ratio/low", "clip_ratio/high")),
    ("Gradient norm", "", ("grad_norm",)),
    ("Learning rate", "", ("lr",)),
)
CARDS = (
    *("eval/gold", "eval/pass@1", "eval/greedy", "eval/pass@*", "eval/maj@*"),
    *("eval/rewards/accuracies", "eval/accuracy", "eval/ranking_accuracy", "eval/loss", "eval/perplexity"),
    *("reward", "rewards/accuracies", "accuracy", "loss", "perplexity"),
    *("eval/rewards/chosen", "eval/rewards/rejected", "eval/rewards/margins", "eval/kl/exact"),
    *("completions/mean_length", "completions/clipped_ratio", "kl", "entropy"),
)
MAX_CARDS = 8
VERDICT_BY = (
    *(
        "eval/gold",
        "eval/pass@1",
        "eval/reward",
        "eval/rewards/accuracies",
        "eval/accuracy",
        "eval/perplexity",
        "eval/loss",
    ),
    *("reward", "rewards/accuracies", "accuracy", "loss"),
)
MAX_SAMPLES = 12
MIN_POINTS = 3  # evaluations from which on reward is drawn against distance
OVER_OPTIMISED = (
    "Each point is an evaluation, farther from the reference to the right. A proxy that still rises where gold turns "
    "down is over-optimised."
)


class Finding(Protocol):
    """What `fiducial.doctor` says of a run."""

    @property
    def severity(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def advice(self) -> str: ...


def write_report(folder: RunFolder, findings: Sequence[Finding] = ()) -> Path:
    """Write report.html of a run folder and return its path. `findings` are the doctor's. ValueError if the folder
    holds no run."""
    config, rows = folder.read_config(), folder.read_metrics()
    samples, data = folder.read_samples(), folder.read_json("data.json")
    subject = config.get("task") or (config.get("data") or {}).get("path") or "a run"
    title = f"{config.get('method', 'run')} on {Path(str(subject)).name}"
    html = page.page(
        f"{title} · {folder.path.name}",
        f"<h1>{page.text(title)}</h1>",
        f'<div class="muted">{page.text(_facts(folder, config, rows))}</div>',
        f'<p class="lead">{page.text(verdict_sentence(rows))}</p>',
        page.grid([card(change) for change in key_changes(rows)]),
        page.section("What looks wrong", _findings(findings)),
        page.section("Curves", curves(rows), note="Faint: each step. Strong: a moving average. Bands: 95 % intervals."),
        page.section("Reward against distance", frontier(rows), note=OVER_OPTIMISED),
        page.section("Before and after", sample_pairs(samples), _during(samples)),
        page.section("Verdicts", verdict_table(rows)),
        page.section("Data", data_table(data)),
        page.section("What the numbers mean", page.details("Every metric of this run", definitions(rows))),
        page.section("How to repeat it", _provenance(folder, config)),
    )
    return folder.write_text("report.html", html)


def key_changes(rows: Rows) -> list[Change]:
    """The key figures of this kind of run, a handful."""
    logged = {name for row in rows for name in row}
    chosen: list[str] = []
    for name in CARDS:
        if name == "loss" and "reward" in logged:
            continue  # a policy gradient's loss says nothing of how good the policy is
        name = _largest_k(name.removesuffix("*"), logged) if name.endswith("*") else name
        if name in logged and name not in chosen and f"eval/{name}" not in chosen:  # held out says more
            chosen.append(name)
    changes = [change_of(rows, name) for name in chosen]
    return [change for change in changes if change][:MAX_CARDS]


def verdict_sentence(rows: Rows) -> str:
    """One sentence on whether the run reached what it was for."""
    for name in VERDICT_BY:
        change = change_of(rows, name)
        if change and change.before is not None:
            return _judge(change, change_of(rows, "eval/greedy"))
    return "Nothing was measured twice, so nothing can be said about progress."


def _judge(change: Change, greedy: Change | None) -> str:
    assert change.before is not None
    metric = describe(change.name)
    moved = "rose" if change.after > change.before else "fell" if change.after < change.before else "stayed"
    before, after = show(change.name, change.before), show(change.name, change.after)
    sentence = f"{label(change.name)} {moved} " + (f"at {after}" if moved == "stayed" else f"from {before} to {after}")
    if moved != "stayed" and metric and metric.better and (moved == "rose") != (metric.better == "up"):
        sentence += ", which is worse"
    if moved != "stayed" and change.after_ends and change.before_ends:
        chance = "overlap, so chance is not excluded" if change.overlaps else "do not overlap"
        sentence += f"; the two 95 % intervals {chance}"
    if change.name == "eval/pass@1" and greedy and greedy.before is not None and greedy.before > change.after:
        sentence += f". The starting model already solved {show(greedy.name, greedy.before)} at temperature 0"
    return sentence + "."


def _largest_k(prefix: str, names: set[str]) -> str:
    sizes = [int(name.removeprefix(prefix)) for name in names if name.removeprefix(prefix).isdigit() and name != prefix]
    return f"{prefix}{max(sizes)}" if sizes else prefix


# -- parts of the page -------------------------------------------------------------------------------------------


def card(change: Change) -> str:
    """A key figure with its intervals."""
    name = change.name
    metric = describe(name)
    before = None if change.before is None else show(name, change.before)
    share = metric is not None and metric.unit == "share"
    scale, unit = (100, " %") if share else (1, "")
    ends = [pair for pair in (change.before_ends, change.after_ends) if pair]
    notes = [f"{scale * low:.3g} to {scale * high:.3g}{unit}" for low, high in ends]
    strip = ""
    if change.after_ends and share:
        sides = [(change.before, change.before_ends)] if change.before is not None else []
        strip = page.interval_strip([*sides, (change.after, change.after_ends)], f"{label(name)} before and after")
    return page.card(label(name), before, show(name, change.after), " → ".join(notes), strip)


def curves(rows: Rows) -> str:
    """Small multiples of everything that has a curve."""
    panels = []
    for title, note, names in PANELS:
        lines = [line for name in names if (line := _line(rows, name))]
        still = [line.name for line in lines if not any(line.values)]
        if len(lines) > 1:  # a line that never leaves zero only hides the others
            lines = [line for line in lines if any(line.values)] or lines[:1]
            note += f" At 0 throughout: {', '.join(still)}." * bool(still)
        if lines:
            metrics = [metric for name in names if (metric := describe(name))]
            ends = "; ".join(f"{line.name} from {line.values[0]:.3g} to {line.values[-1]:.3g}" for line in lines)
            plot = plots.line_plot(lines, f"{title}: {ends}", share=metrics[0].unit == "share")
            panels.append(page.panel(title, plot, note or metrics[0].definition))
    return page.grid(panels, "plots")


def frontier(rows: Rows) -> str:
    """Gold and proxy reward against the distance from the reference, where both were measured often enough."""
    found = frontier_of([("", rows)])
    return page.grid(frontier_panels(found), "plots") if found and len(found.points) >= MIN_POINTS else ""


def frontier_panels(found: Frontier) -> list[str]:
    """The two plots of a frontier, gold with the fitted curve."""
    distances = [point.distance for point in found.points]
    panels = []
    for name, values, curve in (
        (found.gold, [point.gold for point in found.points], found.curve),
        (found.proxy, [point.proxy for point in found.points], None),
    ):
        ends = f"{name} from {values[0]:.3g} to {values[-1]:.3g} at distances {distances[0]:.3g} to {distances[-1]:.3g}"
        told = f"; fit d (a - b log d): a {curve.alpha:.3g}, b {curve.beta:.3g}" if curve else ""
        plot = plots.distance_plot(distances, values, ends, curve)
        panels.append(page.panel(f"{label(name)}, gained", plot, f"Over the square root of the KL{told}."))
    return panels


def _line(rows: Rows, name: str) -> plots.Line | None:
    steps, values = series(rows, name)
    if len(steps) < 2 or not any(map(math.isfinite, values)):
        return None
    short = name.rpartition("/")[2].replace("_", " ")
    if not name.startswith("eval/"):
        return plots.Line(short, steps, values)
    (_, low), (_, high) = series(rows, f"{name}/low"), series(rows, f"{name}/high")
    whole = len(low) == len(high) == len(steps)
    return plots.Line(short, steps, values, low if whole else None, high if whole else None, marked=True)


def sample_pairs(samples: Rows) -> str:
    """Completions of the same prompts before and after training, side by side."""
    before = {_key(sample.get("prompt", "")): dict(sample) for sample in samples if sample["phase"] == "before"}
    after = {_key(sample.get("prompt", "")): dict(sample) for sample in samples if sample["phase"] == "after"}
    shown = []
    for key in list(dict.fromkeys([*before, *after]))[:MAX_SAMPLES]:
        one = before.get(key) or after[key]
        pair = page.said("Before", before.get(key)) + page.said("After", after.get(key))
        shown.append(page.sample(one.get("prompt", ""), f'<div class="pair">{pair}</div>'))
    return "\n".join(shown)


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else repr(prompt)


def _during(samples: Rows) -> str:
    during = [dict(sample) for sample in samples if sample["phase"] == "during"][-MAX_SAMPLES:]
    shown = [page.sample(row.get("prompt", ""), page.said(f"Step {row.get('step')}", row)) for row in during]
    return page.details("While it trained", "\n".join(shown))


def verdict_table(rows: Rows) -> str:
    """Share of completions with each verdict, at the start and at the end, held out if that was measured."""
    held_out = any(name.startswith("eval/verdict/") for row in rows for name in row)
    prefix = "eval/verdict/" if held_out else "verdict/"
    ends = {verdict: change_of(rows, prefix + verdict) for verdict in VERDICTS}
    lines = []
    for verdict, change in ends.items():
        if change:
            metric = describe("verdict/" + verdict)
            before = "" if change.before is None else f"{100 * change.before:.1f} %"
            meaning = page.text(metric.definition if metric else "")
            lines.append([page.badge(verdict), before, f"{100 * change.after:.1f} %", meaning])
    return page.table(["verdict", "before", "after", "meaning"], lines, numbers=(1, 2))


def data_table(data: dict[str, Any] | None) -> str:
    """What became of every row of the data."""
    if not data:
        return ""
    cells = [[page.text(name.replace("_", " ")), page.text(_plain(value))] for name, value in data.items()]
    return page.table(["", ""], cells)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_plain(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:,}" if type(value) is int else str(value)


def definitions(rows: Rows) -> str:
    """Every metric that was logged: what it means, how it moved, and its healthy range."""
    lines = []
    for name in sorted({name for row in rows for name in row if not name.endswith(("/low", "/high"))}):
        metric = describe(name)
        change = change_of(rows, name) if metric else None
        if not metric or not change:
            continue
        ends = [show(name, value) for value in (change.before, change.after) if value is not None]
        mark = "" if is_healthy(name, change.after) else ' <span class="badge bad">outside</span>'
        told = map(page.text, (name, " → ".join(ends), metric.definition, metric.unit))
        lines.append([*told, page.text(_range(metric)) + mark])
    return page.table(["metric", "start → end", "definition", "unit", "healthy"], lines)


def _range(metric: Metric) -> str:
    if metric.healthy is None:
        return ""
    low, high = metric.healthy
    if math.isinf(high):
        return f"at least {low:g}"
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _findings(findings: Sequence[Finding]) -> str:
    kinds = {"error": "bad", "warning": ""}
    lines = [
        [
            f'<span class="badge {kinds.get(f.severity, "good")}">{page.text(f.severity)}</span>',
            *(page.text(part) for part in (f.what, f.where, f.advice)),
        ]
        for f in findings
    ]
    return page.table(["", "what", "where", "what to do"], lines)


def _facts(folder: RunFolder, config: Mapping[str, Any], rows: Rows) -> str:
    steps = max((row.get("step") or 0 for row in rows), default=0)
    facts = [str(folder.path.name), f"{steps:,} steps"]
    seconds = sum(row.get("seconds") or 0 for row in rows)
    if seconds:
        facts.append(f"{seconds / 60:.1f} minutes" if seconds > 120 else f"{seconds:.1f} seconds")
    if "seed" in config:
        facts.append(f"seed {config['seed']}")
    return " · ".join(facts)


def _provenance(folder: RunFolder, config: Mapping[str, Any]) -> str:
    about = folder.provenance()
    versions = [[page.text(name), page.text(version)] for name, version in (about["versions"] or {}).items()]
    commit = f'<p class="small">Commit {page.text(about["commit"] or "unknown: not a git checkout")}</p>'
    return (
        page.details("The resolved recipe", page.code(config))
        + page.details("Versions", page.table(["package", "version"], versions))
        + commit
    )
