"""Writes the pages that follow from the code: methods, command line, settings, metrics, glossary, tasks, labs.

`make docs` runs it; a test fails when a page in docs/reference/ is not what it would write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "reference"


def methods() -> str:
    """One section per method, from its docstring and record."""
    from fiducial.cli.methods import learns_from
    from fiducial.core.method import GLOSSARY
    from fiducial.methods import METHODS

    parts = ["# Methods\n\nOne file each in `fiducial/methods/`. `fiducial methods ID` shows the same page.\n"]
    for name, m in METHODS.items():
        doc = inspect.cleandoc(m.loss.__globals__["__doc__"])
        rows = [f"| `{need}` | {GLOSSARY[need]} |" for need in m.needs]
        parts.append(f"## `{name}`: {m.title}\n\n```text\n{doc}\n```\n")
        parts.append(
            f"Learns a {m.learns.replace('_', ' ')} from {learns_from(m)}; averages per `{m.per}`; paper {m.paper}.\n"
        )
        parts.append("| the loss asks for | |\n| --- | --- |\n" + "\n".join(rows) + "\n")
        if m.hparams:
            settings = []
            for key, default in m.hparams.items():
                allowed = ", ".join(f"`{c}`" for c in m.choices.get(key, ())) or str(m.ranges.get(key, ""))
                shown = "must be given" if key in m.required else f"`{default}`"
                settings.append(f"| `{key}` | {shown} | {allowed} |")
            parts.append("| `[hparams]` | default | range |\n| --- | --- | --- |\n" + "\n".join(settings) + "\n")
        if m.kl.weight:
            parts.append(f"KL to the reference: weight {m.kl.weight:g}, `{m.kl.estimator}`, in the {m.kl.place}.\n")
        parts.append(f"Prove it: `fiducial prove {name}`; closed form: `{m.target}`.\n")
    return "\n".join(parts)


def command_line() -> str:
    """The help of every verb."""
    from fiducial.cli.main import VERBS, main

    os.environ["COLUMNS"] = "100"
    parts = ["# Command line\n"]
    for argv in (["--help"], *([verb, "--help"] for verb in VERBS)):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(argv)
        title = "fiducial" if argv == ["--help"] else f"fiducial {argv[0]}"
        parts.append(f"## {title}\n\n```text\n{out.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def settings() -> str:
    """Every setting of a recipe with its default and the comment beside it."""
    from fiducial import config
    from fiducial.core.method import KL

    parts = ["# Recipe settings\n\nA recipe is TOML; each setting is also a flag: `--optim.lr 3e-4`.\n"]
    tables = [("", config.Run), ("model", config.Model), ("model.new", config.NewModel), ("model.lora", config.Lora)]
    tables += [("data", config.Data), ("optim", config.Optim), ("sampling", config.Sampling), ("kl", KL)]
    tables += [("verdicts", config.Verdicts), ("eval", config.Eval), ("checkpoint", config.Checkpoint)]
    for name, kind in tables:
        comments = dict(_comments(kind))
        parts.append(f"## `[{name}]`\n" if name else "## top level\n")
        parts.append("| setting | default | |\n| --- | --- | --- |")
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.default):
                continue
            default = field.default if field.default is not dataclasses.MISSING else {}
            parts.append(f"| `{field.name}` | `{default!r}` | {comments.get(field.name, '')} |")
        parts.append("")
    return "\n".join(parts)


def _comments(kind: type) -> list[tuple[str, str]]:
    """(field, comment at the end of its line) in a dataclass's source."""
    found = []
    for line in textwrap.dedent(inspect.getsource(kind)).splitlines():
        code, mark, comment = line.strip().partition("  # ")
        if mark and ":" in code:
            found.append((code.split(":")[0], comment.replace("|", "\\|")))
    return found


def metrics() -> str:
    """What every logged number means."""
    from fiducial.evals.metrics import METRICS

    parts = ["# Metrics\n\nWhat `metrics.jsonl`, the report and the doctor speak of.\n"]
    parts.append("| metric | unit | healthy | |\n| --- | --- | --- | --- |")
    for name, m in METRICS.items():
        healthy = "" if m.healthy is None else f"{m.healthy[0]:g} .. {m.healthy[1]:g}"
        parts.append(f"| `{name}` | {m.unit} | {healthy} | {m.definition} |")
    return "\n".join(parts) + "\n"


def glossary() -> str:
    """The names that losses may ask for."""
    from fiducial.core.method import GLOSSARY

    parts = ["# Glossary\n\nOne name, one meaning. B rows, L tokens, V vocabulary.\n"]
    parts.append("| name | meaning |\n| --- | --- |")
    return "\n".join([*parts, *(f"| `{name}` | {meaning} |" for name, meaning in GLOSSARY.items())]) + "\n"


def tasks() -> str:
    """The built-in tasks and their difficulty."""
    from fiducial.data.tasks import TASKS

    parts = ["# Tasks\n\nBesides these, every offline generator of reasoning-gym is `rg/<name>`.\n"]
    for task in TASKS.values():
        parts.append(f"## `{task.id}`\n\n{task.summary}\n\n| setting | default | range | |\n| --- | --- | --- | --- |")
        for name, s in task.difficulty.items():
            low, high = ("" if x is None else f"{x:g}" for x in (s.low, s.high))
            parts.append(f"| `{name}` | `{s.default}` | {', '.join(s.choices) or f'{low}..{high}'} | {s.doc} |")
        parts.append("")
    return "\n".join(parts)


def labs() -> str:
    """Every lab: what it does and claims, and what became of it where `pictures/` has its folder."""
    import json

    from fiducial.labs import LABS

    parts = [
        "# Labs\n\nReproducible experiments with a verdict by criteria that were stated beforehand. "
        "`fiducial lab ID` repeats one, `fiducial lab --all --fast` all; each writes its numbers, tables and pictures. "
        "The pictures here are those of `--fast`, seed 0.\n"
    ]
    for lab in LABS.values():
        doc = inspect.cleandoc(inspect.getmodule(lab.run).__doc__ or "").partition("\n\n")[2]
        parts.append(f"## {lab.id} `{lab.name}`: {lab.title}\n\n{_literal(doc)}\n")
        kind = " (Observational.)" if lab.observational else ""
        parts.append(f"Claim: {_literal(lab.claim)}{kind} {lab.source}.\n")
        verdict = HERE.parent / "pictures" / lab.name / "verdict.json"
        if verdict.exists():
            parts += _found(lab.name, json.loads(verdict.read_text(encoding="utf-8")))
    return "\n".join(parts)


def _found(name: str, said: dict[str, Any]) -> list[str]:
    """The pictures of a lab, its verdict and its criteria."""
    pictures = [file for file in said["files"] if file.endswith(".png")]
    parts = [f"![{file.removesuffix('.png')}](../pictures/{name}/{file})\n" for file in pictures]
    parts.append(f"Verdict: **{said['verdict']}**. {_literal(said['note'])}\n")
    parts.append("| criterion | value | bound | |\n| --- | --- | --- | --- |")
    for c in said["criteria"]:
        value = "not finite" if c["value"] is None else f"{c['value']:.4g}"
        parts.append(f"| {_literal(c['name'])} | {value} | {c['relation']} {c['bound']:.4g} | {c['verdict']} |")
    return [*parts, ""]


def _literal(text: str) -> str:
    """Text in which Markdown finds no emphasis and no end of a table's cell."""
    return text.replace("*", "\\*").replace("|", "&#124;")


PAGES = {
    "methods.md": methods,
    "command-line.md": command_line,
    "settings.md": settings,
    "metrics.md": metrics,
    "glossary.md": glossary,
    "tasks.md": tasks,
    "labs.md": labs,
}


def main() -> None:
    """Write every page."""
    HERE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
