"""Building blocks of a self-contained HTML page: no script, no network, light and dark. All text is escaped here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

BAD, GOOD = ("wrong", "crashed", "timeout"), ("correct",)

CSS = """
:root { color-scheme: light dark; --page: #fbfaf7; --panel: #ffffff; --ink: #1d2330; --muted: #697080; --grid: #e4e2db;
  --series-1: #2563b8; --series-2: #d9730d; --series-3: #2e8b67; --series-4: #9b4f96;
  --good: #1d7a4f; --bad: #b3372f; --plain: #7a6a1f; --wash: #f2f0ea; }
@media (prefers-color-scheme: dark) { :root { --page: #14161b; --panel: #1c1f26; --ink: #e6e8ec; --muted: #9aa2b1;
  --grid: #333843; --series-1: #74a9f5; --series-2: #f2a65a; --series-3: #6cc9a1; --series-4: #d294cd;
  --good: #67c795; --bad: #ef8b83; --plain: #d8c26a; --wash: #23272f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 44px 0 12px; }
h3 { font-size: 14px; margin: 0 0 4px; font-weight: 600; }
.lead { font-size: 18px; line-height: 1.5; max-width: 58em; margin: 14px 0 26px; }
.small, .muted { color: var(--muted); } .small { font-size: 13px; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
.grid.plots { grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); }
.panel { background: var(--panel); border: 1px solid var(--grid); border-radius: 8px; padding: 14px 16px;
  min-width: 0; display: flex; flex-direction: column; }
.panel > svg { margin-top: auto; padding-top: 6px; }
.card .name { color: var(--muted); font-size: 13px; }
.card .value { font-size: 25px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.card .value .from { color: var(--muted); font-weight: 400; font-size: 19px; }
.card .note { color: var(--muted); font-size: 12.5px; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif; }
.strip { height: 26px; margin: 6px 0 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; font-size: 13px; color: var(--muted); }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; } .scroll { overflow-x: auto; }
.pair { display: grid; gap: 14px; grid-template-columns: 1fr 1fr; margin: 8px 0 0; }
@media (max-width: 720px) { .pair { grid-template-columns: 1fr; } }
.sample { margin-bottom: 14px; } .prompt { margin-bottom: 6px; }
.said { background: var(--wash); border-radius: 6px; padding: 10px 12px; min-width: 0; }
.said pre { max-height: 380px; overflow-y: auto; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; }
.badge { display: inline-block; border-radius: 10px; padding: 0 9px; font-size: 12px; font-weight: 600;
  border: 1px solid currentColor; color: var(--plain); }
.badge.good { color: var(--good); } .badge.bad { color: var(--bad); }
.up { color: var(--good); } .down { color: var(--bad); }
details { margin: 10px 0; } details > *:not(summary) { margin-top: 10px; }
summary { cursor: pointer; font-weight: 600; }
ul { padding-left: 20px; } li { margin: 5px 0; }
@media print { details:not([open]) > * { display: block; } body { background: none; } }
"""


def text(value: Any) -> str:
    """Anything, as escaped text. Half a character, which no file can hold, becomes a question mark."""
    return escape(str(value).encode("utf-8", "replace").decode())


def page(title: str, *parts: str) -> str:
    """A whole document."""
    body = "\n".join(part for part in parts if part)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{text(title)}</title>
<style>{CSS}</style></head>
<body><main>
{body}
</main></body>
</html>
"""


def section(title: str, *parts: str, note: str = "") -> str:
    """A heading and what belongs under it; nothing if there is nothing."""
    body = "\n".join(part for part in parts if part)
    about = f'<p class="small">{text(note)}</p>' if note else ""
    return f"<section><h2>{text(title)}</h2>{about}\n{body}</section>" if body else ""


def details(title: str, body: str, shown: bool = False) -> str:
    """A part that is folded away until it is asked for."""
    return (
        f"<details{' open' if shown else ''}><summary>{text(title)}</summary>\n<div>{body}</div></details>"
        if body
        else ""
    )


def grid(parts: Sequence[str], kind: str = "") -> str:
    """Parts side by side, as many in a row as there is room for."""
    return f'<div class="{f"grid {kind}".strip()}">' + "\n".join(parts) + "</div>" if parts else ""


def panel(title: str, body: str, note: str = "") -> str:
    """A framed part with a title and a line about it."""
    about = f'<div class="small">{text(note)}</div>' if note else ""
    return f'<div class="panel"><h3>{text(title)}</h3>{about}{body}</div>'


def card(name: str, before: str | None, after: str, note: str = "", strip: str = "") -> str:
    """A key figure: `before` -> `after`, or `after` alone."""
    came = f'<span class="from">{text(before)} → </span>' if before is not None else ""
    return (
        f'<div class="panel card"><div class="name">{text(name)}</div><div class="value">{came}{text(after)}</div>'
        f'{strip}<div class="note">{text(note)}</div></div>'
    )


def interval_strip(sides: Sequence[tuple[float, tuple[float, float] | None]], label: str) -> str:
    """Shares with their intervals on a line from 0 to 1, one row for each side."""
    marks = ['<line x1="0" x2="200" y1="22" y2="22" stroke="var(--grid)"/>']
    for row, (value, ends) in enumerate(sides):
        color, y = "var(--series-1)" if row == len(sides) - 1 else "var(--muted)", 6 + 9 * row
        low, high = ends or (value, value)
        marks.append(
            f'<rect x="{200 * low:.1f}" y="{y - 2}" width="{max(200 * (high - low), 1):.1f}" height="4" rx="2" '
            f'fill="{color}" opacity="0.35"/><circle cx="{200 * value:.1f}" cy="{y}" r="3.4" fill="{color}"/>'
        )
    box = 'viewBox="-4 0 208 24" preserveAspectRatio="xMinYMid"'
    return f'<svg class="strip" {box} role="img" aria-label="{text(label)}">{"".join(marks)}</svg>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are already HTML. Columns `numbers` are aligned to the right."""

    def cells(kind: str, values: Sequence[str]) -> str:
        return "".join(
            f'<{kind} class="number">{value}</{kind}>' if i in numbers else f"<{kind}>{value}</{kind}>"
            for i, value in enumerate(values)
        )

    top = f"<thead><tr>{cells('th', [text(name) for name in head])}</tr></thead>"
    lines = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>\n{lines}\n</tbody></table></div>' if rows else ""


def bullets(items: Sequence[str]) -> str:
    """A list of plain sentences."""
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>" if items else ""


def badge(verdict: str) -> str:
    """A verdict as a coloured word."""
    kind = "good" if verdict in GOOD else "bad" if verdict in BAD else ""
    return f'<span class="badge {kind}">{text(verdict)}</span>'


def code(value: Any) -> str:
    """A value as indented JSON."""
    return f"<pre>{text(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def prompt(value: Any) -> str:
    """A prompt: text, or the turns of a chat."""
    if isinstance(value, str):
        return f"<pre>{text(value)}</pre>"
    turns = (
        f'<span class="muted">{text(turn.get("role", ""))}</span> {text(turn.get("content", ""))}' for turn in value
    )
    return "<pre>" + "\n".join(turns) + "</pre>"


def said(title: str, sample: dict[str, Any] | None) -> str:
    """What a policy wrote, with the verdict on it and why."""
    if sample is None:
        return f'<div class="said"><span class="muted">{text(title)}: not sampled</span></div>'
    verdict, reward, why = sample.get("verdict"), sample.get("reward"), sample.get("why")
    known = badge(verdict) if verdict else ""
    known += f' <span class="small">reward {reward:.3g}</span>' if isinstance(reward, int | float) else ""
    about = f'<div class="small">{text(why)}</div>' if why else ""
    completion = f"<pre>{text(sample.get('completion', ''))}</pre>"
    return f'<div class="said"><div class="small">{text(title)} {known}</div>{completion}{about}</div>'


def sample(asked: Any, answers: str) -> str:
    """A prompt and what was answered."""
    return f'<div class="panel sample"><div class="prompt">{prompt(asked)}</div>{answers}</div>'
