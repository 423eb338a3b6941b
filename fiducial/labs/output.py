"""What a lab leaves behind: numbers, tables, pictures, its verdict, and one page that shows all labs of a folder.

    OUT/<name>/metrics.json   the plotted series and single numbers
    OUT/<name>/verdict.json   the claim and what became of each criterion
    OUT/<name>/*.csv, *.png   a table per series, a picture per figure
    OUT/index.html            the gallery: one page that needs no network

The same seed gives the same files, to the byte on one machine.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fiducial.evals import page
from fiducial.labs.base import COLORS, Lab, Plot, Result, Series

DPI = 110
STYLE: dict[str, Any] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9a9a9a", "axes.labelcolor": "#333333",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.7,
    "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.labelsize": 9.5, "font.size": 9.5,
    "xtick.color": "#555555", "ytick.color": "#555555", "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8, "figure.facecolor": "white",
}  # fmt: skip
BADGES = {"pass": "good", "fail": "bad", "inconclusive": ""}


def write(lab: Lab, result: Result, out: Path, seed: int, fast: bool) -> list[str]:
    """Write the lab's folder below `out`; returns the paths of its files."""
    folder = out / lab.name
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, series in result.series.items():
        (folder / f"{name}.csv").write_text(_csv(lab, name, series), encoding="utf-8")
        files.append(f"{name}.csv")
    for name, plot in result.figures.items():
        (folder / f"{name}.png").write_bytes(png(plot))
        files.append(f"{name}.png")
    series = {name: {column: _plain(values) for column, values in s.items()} for name, s in result.series.items()}
    run = {"lab": lab.id, "name": lab.name, "seed": seed, "fast": fast}
    _write_json(folder / "metrics.json", {**run, "metrics": _plain(result.metrics), "series": series})
    files += ["metrics.json", "verdict.json"]
    _write_json(folder / "verdict.json", {**verdict(lab, result), **run, "note": result.note, "files": files})
    return [str(folder / name) for name in files]


def verdict(lab: Lab, result: Result) -> dict[str, Any]:
    """The lab, its verdict and its criteria, as JSON can hold them: a number that is not finite is null."""
    criteria = [_plain(criterion.to_json()) for criterion in result.criteria]
    return {**lab.to_json(), "verdict": result.verdict, "criteria": criteria}


def png(plot: Plot) -> bytes:
    """The picture of a plot, in 256 colours."""
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from PIL import Image

    style: Any = {**STYLE, "axes.prop_cycle": cycler(color=COLORS)}
    with rc_context(style):
        figure = Figure(figsize=(plot.width * plot.panels, plot.height), layout="constrained")
        plot.draw(*figure.subplots(1, plot.panels, squeeze=False)[0])
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DPI)
    made = io.BytesIO()
    few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)  # a third of the bytes
    few.save(made, format="PNG", optimize=True)
    return made.getvalue()


def write_gallery(out: Path) -> Path:
    """index.html of all labs whose folders lie in `out`, in the order of their ids."""
    verdicts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/verdict.json"))]
    verdicts.sort(key=lambda said: int(said["lab"][1:]))
    passed = sum(said["verdict"] == "pass" for said in verdicts)
    path = out / "index.html"
    made = page.page(
        "Fiducial: labs",
        "<style>img { max-width: 100%; border-radius: 6px; margin: 10px 0; }</style>",
        "<h1>Labs</h1>",
        f'<p class="lead">{len(verdicts)} experiments, {passed} of them with the verdict "pass". '
        "Each is repeated by <code>fiducial lab ID</code>.</p>",
        _contents(verdicts),
        *(_entry(out / said["name"], said) for said in verdicts),
    )
    path.write_text(made, encoding="utf-8")
    return path


def _contents(verdicts: Sequence[dict[str, Any]]) -> str:
    rows = [
        [page.text(said["lab"]), f'<a href="#{said["lab"]}">{page.text(said["title"])}</a>', _badge(said["verdict"])]
        for said in verdicts
    ]
    return page.table(["", "lab", "verdict"], rows)


def _entry(folder: Path, said: dict[str, Any]) -> str:
    pictures = [
        f'<img alt="{page.text(name)}" src="data:image/png;base64,'
        f'{base64.b64encode((folder / name).read_bytes()).decode()}">'
        for name in said["files"]
        if name.endswith(".png")
    ]
    rows = [
        [page.text(c["name"]), _number(c["value"]), f"{page.text(c['relation'])} {_number(c['bound'])}",
         _badge(c["verdict"])]
        for c in said["criteria"]
    ]  # fmt: skip
    repeat = f"fiducial lab {said['lab']} --seed {said['seed']}{' --fast' if said['fast'] else ''}"
    about = f"Claim: {said['claim']}" + (" (observational)" if said["observational"] else "")
    return (
        f'<section id="{said["lab"]}"><h2>{page.text(said["lab"])}: {page.text(said["title"])} '
        f"{_badge(said['verdict'])}</h2>"
        f'<p>{page.text(about)}</p><p class="small">{page.text(said["source"])}</p>'
        f"{''.join(pictures)}<p>{page.text(said['note'])}</p>"
        f"{page.table(['criterion', 'value', 'bound', ''], rows, numbers=(1, 2))}"
        f'<p class="small"><code>{page.text(repeat)}</code></p></section>'
    )


def _badge(verdict: str) -> str:
    return f'<span class="badge {BADGES[verdict]}">{page.text(verdict)}</span>'


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _csv(lab: Lab, name: str, series: Series) -> str:
    columns = {column: _plain(values) for column, values in series.items()}
    lengths = {len(values) for values in columns.values()}
    assert len(lengths) == 1, f"{lab.id}: the columns of {name} differ in length: {lengths}"
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return made.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
