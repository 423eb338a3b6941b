"""The page of the main job: a model trained from nothing by imitation, then by reinforcement on verified answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiducial.core.types import VERDICTS
from fiducial.evals import page, plots
from fiducial.evals.history import Change, Ends, Rows
from fiducial.evals.metrics import describe
from fiducial.evals.report import card, curves, definitions, sample_pairs, verdict_table
from fiducial.evals.stats import Interval
from fiducial.store import RunFolder


def write_demo_report(
    path: str | Path,
    *,
    title: str,
    story: str,
    summary: Mapping[str, Any],
    change: Mapping[str, Interval],
    stages: Mapping[str, Rows],
    samples: Rows,
    caveats: Sequence[str] = (),
    config: Any = None,
) -> Path:
    """Write the page of the main job and return its path.

    `summary` is what summary.json holds: `seconds`, `stages` [{name, seconds}], and `before` and `after`, each an
    `Evaluation.summary()` on the same held-out problems. `change` is `evaluate.compare(before, after)`, `stages` the
    metrics of each stage by its name, `samples` rows as in samples.jsonl, `config` whatever repeats the job. `caveats`
    are added to those that follow from the numbers, see `where_it_misleads`.
    """
    before, after = summary["before"], summary["after"]
    names = [name for name in demo_metrics(before) if name in after]
    folder = RunFolder(Path(path).parent)
    parts = [
        f"<h1>{page.text(title)}</h1>",
        f'<div class="muted">{page.text(_demo_facts(summary))}</div>',
        f'<p class="lead">{page.text(story)}</p>',
        page.grid([card(_side_change(name, before, after)) for name in names[:4]]),
        page.section(
            "Before and after reinforcement",
            _demo_bars(names[:4], before, after),
            _demo_table(names, before, after, change),
            note=f"{after['n']} held-out problems, {after.get('k', '?')} samples each at temperature 1. Settings were "
            "chosen on other problems. 95 % intervals over problems; the change is paired, problem by problem.",
        ),
        *(page.section(f"Curves: {name}", curves(rows)) for name, rows in stages.items()),
        page.section("The same problems, before and after", sample_pairs(samples)),
        page.section("Verdicts", _demo_verdicts(before, after)),
        page.section("Where these numbers mislead", page.bullets([*where_it_misleads(before, after), *caveats])),
        page.section(
            "What the numbers mean",
            *(page.details(f"Metrics of {name}", definitions(rows)) for name, rows in stages.items()),
            page.details("How to repeat it", page.code(config) if config is not None else ""),
        ),
    ]
    return folder.write_text(Path(path).name, page.page(title, *parts))


def where_it_misleads(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What a reader of these two evaluations could take for more than it is, in sentences with their numbers."""
    return [
        *_sharpening(before, after),
        *_losses(before, after),
        *_failures(before, after),
        f"The intervals are over {after['n']} problems of one kind, in one run with one seed. They say nothing of "
        "other seeds, other kinds of problems, or larger models.",
    ]


def _sharpening(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    if "greedy" not in before:
        return []
    said = []
    gain, room = after["pass@1"] - before["pass@1"], before["greedy"] - before["pass@1"]
    if gain > 0 and room > 0:
        said.append(
            f"At temperature 0 the starting model already solved {_percent(before['greedy'])}: up to "
            f"{100 * min(room, gain):.1f} of the {100 * gain:.1f} points gained in pass@1 could come from moving "
            "probability onto its own favourite answer."
        )
    if after["pass@1"] <= before["greedy"]:
        said.append("After training, samples are no better than the starting model at temperature 0.")
    return said


def _losses(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    said = []
    for name in demo_metrics(before):
        if name in after and after[name] < before[name]:
            said.append(f"{name} fell from {_percent(before[name])} to {_percent(after[name])}.")
    for name, unit in (
        ("distinct_answers", "different answers to a problem"),
        ("entropy", "nats per token of entropy"),
    ):
        if name in before and name in after and after[name] < 0.8 * before[name]:
            said.append(f"The samples became more alike: from {before[name]:.2g} to {after[name]:.2g} {unit}.")
    return said


def _failures(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    said = []
    for name, what in (
        ("unjudged", "could not be judged and count as not solved"),
        ("completions/clipped_ratio", "were cut at the limit"),
    ):
        worst = max(before.get(name, 0), after.get(name, 0))
        if worst > 0.01:
            said.append(f"Up to {_percent(worst)} of the completions {what}.")
    return said


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def demo_metrics(side: Mapping[str, Any]) -> list[str]:
    """What both sides are compared by: pass@1, greedy, pass@k and maj@k at the largest k, then at the smaller ones."""
    sizes = sorted((int(name[5:]) for name in side if name.startswith("pass@")), reverse=True)
    names = ["pass@1", "greedy", *(f"{kind}@{size}" for size in sizes if size > 1 for kind in ("pass", "maj"))]
    return [name for name in names if name in side]


def _side_change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    return Change(f"eval/{name}", before[name], after[name], _side_ends(before, name), _side_ends(after, name))


def _side_ends(side: Mapping[str, Any], name: str) -> Ends | None:
    ends = side.get("intervals", {}).get(name)
    return (ends[0], ends[1]) if ends else None


def _demo_facts(summary: Mapping[str, Any]) -> str:
    stages = [f"{stage['name']} {stage['seconds']:.0f} s" for stage in summary.get("stages", ())]
    return " · ".join([f"{summary['seconds']:.0f} seconds in all", *stages])


def _demo_bars(names: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    sides = (before, after)
    values = [[side[name] for name in names] for side in sides]
    ends = [[_side_ends(side, name) for name in names] for side in sides]
    said = "; ".join(f"{name} from {b:.3f} to {a:.3f}" for name, b, a in zip(names, *values, strict=True))
    return page.panel("Share of problems solved", plots.bar_plot(names, ("before", "after"), values, ends, said))


def _demo_table(
    names: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any], change: Mapping[str, Interval]
) -> str:
    def cell(side: Mapping[str, Any], name: str) -> str:
        ends = _side_ends(side, name)
        about = f' <span class="small">{100 * ends[0]:.1f} to {100 * ends[1]:.1f}</span>' if ends else ""
        return f"{100 * side[name]:.1f} %{about}"

    lines = []
    for name in names:
        moved = change.get(name)
        points = 100 * (after[name] - before[name])
        about = f' <span class="small">{100 * moved.low:+.1f} to {100 * moved.high:+.1f}</span>' if moved else ""
        kind = "up" if moved and moved.low > 0 else "down" if moved and moved.high < 0 else ""
        metric = describe(f"eval/{name}")
        meaning = page.text(metric.definition if metric else "")
        points_cell = f'<span class="{kind}">{points:+.1f} points</span>{about}'
        lines.append([page.text(name), cell(before, name), cell(after, name), points_cell, meaning])
    return page.table(["", "before", "after", "change", "meaning"], lines, numbers=(1, 2, 3))


def _demo_verdicts(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    rows = []
    for step, side in enumerate((before, after)):
        counts = side.get("verdicts", {})
        total = sum(counts.values())
        rows.append(
            {"step": step, **{f"eval/verdict/{name}": counts.get(name, 0) / total for name in VERDICTS if total}}
        )
    return verdict_table(rows)
