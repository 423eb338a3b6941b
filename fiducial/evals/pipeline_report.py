"""The index page of a pipeline: its stages, what the gold reward says of each policy, links to each stage's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiducial.evals import page, plots
from fiducial.store import RunFolder

Stage = Mapping[str, Any]  # an entry of pipeline.json
SHARES = ("gold/pass@1", "gold/maj@4", "gold/pass@4")
BESIDE = {"gold/win_rate": "win rate", "gold/kl/exact": "KL", "gold/completions/mean_length": "length"}  # in columns
TOLD = ("eval/pass@1", "eval/accuracy", "eval/rewards/accuracies", "eval/loss", "reward", "reward/kept", "accepted")


def write_pipeline_report(folder: RunFolder) -> Path:
    """Write report.html from what pipeline.json holds; returns its path."""
    found = folder.read_json("pipeline.json")
    stages: list[Stage] = found["stages"]
    seconds = sum(stage["seconds"] for stage in stages)
    main = gold_metric(stages)
    parts = [
        f"<h1>{page.text(folder.path.name)}</h1>",
        f'<div class="muted">{len(stages)} stages · {seconds:.0f} seconds in all</div>',
        page.section("Gold reward", gold_plot(stages, main) if main else "", note=GOLD_NOTE),
        page.section("Stages", stage_table(folder.path, stages, main), note=STAGES_NOTE),
        page.section(
            "How to repeat it", page.details("Settings", page.code(found["config"])), page.code(found["versions"])
        ),
    ]
    return folder.write_text("report.html", page.page(folder.path.name, *parts))


GOLD_NOTE = (
    "Every policy on the same problems with the same seeds; nothing trains on them. The band is the 95 % interval over "
    "problems. Stages that make no policy have no point."
)
STAGES_NOTE = (
    "Seconds count from when the stage was started or resumed last. Length is in tokens, win rate and KL (nats a "
    "completion) are of a policy against the one that the recipe names, on the gold problems."
)


def gold_metric(stages: Sequence[Stage]) -> str:
    """What the policies are compared by: pass@1, or the mean reward where nothing is right or wrong; empty: nothing."""
    names = {name for stage in stages for name in stage["metrics"]}
    return next((name for name in ("gold/pass@1", "gold/reward") if name in names), "")


def gold_plot(stages: Sequence[Stage], name: str) -> str:
    """The gold reward of each policy, in the order in which they were made."""
    points = [(place, stage["metrics"]) for place, stage in enumerate(stages) if name in stage["metrics"]]
    ends = [[row.get(f"{name}/{end}") for _, row in points] for end in ("low", "high")]
    low, high = ends if all(None not in side for side in ends) else (None, None)
    places, values = [place for place, _ in points], [row[name] for _, row in points]
    line = plots.Line(name, places, values, low, high, marked=True)
    said = f"{name} from {values[0]:.3g} to {values[-1]:.3g}"
    drawn = plots.line_plot([line], said, share=name in SHARES)
    return page.panel(name.removeprefix("gold/"), drawn, "by the number of the stage, as in the table")


def stage_table(out: Path, stages: Sequence[Stage], main: str) -> str:
    """One line for each stage, with a link to its report where it has one."""
    rows, beside = [], [name for name in BESIDE if any(name in stage["metrics"] for stage in stages)]
    for place, stage in enumerate(stages):
        metrics, run = stage["metrics"], Path(stage["run"])
        link = page.text(stage["name"])
        if (run / "report.html").exists() and run.parent == out:
            link = f'<a href="{page.text(run.name)}/report.html">{link}</a>'
        told = [f"{name} {metrics[name]:.4g}" for name in TOLD if isinstance(metrics.get(name), int | float)]
        told += [f"{metrics[name]} {name[5:]}" for name in metrics if name.startswith("rows/")]
        cells = (str(place), str(stage["round"]), link, stage["kind"], f"{stage['seconds']:.1f}")
        gold = [f"{metrics[name]:.4g}" if name in metrics else "" for name in (main, *beside)]
        rows.append([*cells, *gold, page.text(", ".join(told))])
    columns = [main.removeprefix("gold/") or "gold", *(BESIDE[name] for name in beside)]
    heads = ["", "round", "stage", "kind", "seconds", *columns, "measured"]
    return page.table(heads, rows, numbers=(0, 1, *range(4, 5 + len(columns))))
