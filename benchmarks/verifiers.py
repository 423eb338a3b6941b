"""Verifiers on real gold answers: each judged against itself, against other ways of writing it, and against wrong ones.

    python benchmarks/verifiers.py --data DATA --out runs/verifiers

DATA is a folder with gsm8k_train.jsonl, aime24.jsonl, amc23.jsonl, minerva_math.jsonl, humaneval_first60.jsonl and
ifeval_prompts.jsonl; what is absent is left out. A perturbation rewrites a gold answer into a completion that must be
judged correct, or changes it into one that must not; where it would change nothing (the sign of 0) it is not made. A
gold that the verifier itself cannot read is `skipped`, and all its perturbations with it.

Leaves table.json and table.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from fiducial.core.answers import gold_text, parse_number
from fiducial.core.types import VERDICTS, Reward
from fiducial.rewards import build
from fiducial.rewards.constraints import instructions_of
from fiducial.rewards.instructions import INSTRUCTIONS

Change = Callable[[str, Fraction | None], str | None]  # gold, its value if it is a number -> answer; None: not made


def number(value: Fraction) -> str:
    """A fraction as an answer."""
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def of_number(change: Callable[[Fraction], Fraction | None]) -> Change:
    """A change of the value of a number; of other answers it is none."""

    def changed(gold: str, value: Fraction | None) -> str | None:
        other = None if value is None else change(value)
        return None if other is None or other == value else number(other)

    return changed


def of_formula(form: str) -> Change:
    """A change of a formula that is no number, nor text, an equation, an interval or a list."""

    def changed(gold: str, value: Fraction | None) -> str | None:
        plain = value is None and not any(mark in gold for mark in ("=", ",", ";", "text", "\\{", "[", "in ", "np."))
        return form.format(gold) if plain else None

    return changed


def digits(gold: str, value: Fraction | None) -> str | None:
    """The last digit of a whole number left out."""
    whole = value is not None and value.denominator == 1 and abs(value) > 9
    return number(Fraction(int(str(value)[:-1]))) if whole else None


# each must be judged correct
SAME: dict[str, Change] = {
    "as it is": lambda gold, value: gold,
    "decimal 7.0": lambda gold, value: f"{value}.0" if value is not None and value.denominator == 1 else None,
    "thousands 1,000": lambda gold, v: f"{int(v):,}" if v is not None and v.denominator == 1 and abs(v) > 999 else None,
    "fraction 14/2": lambda gold, v: None if v is None else rf"\frac{{{2 * v.numerator}}}{{{2 * v.denominator}}}",
    "equation x = 7": lambda gold, value: None if value is None else f"x = {number(value)}",
    "with a unit": lambda gold, value: None if value is None else rf"{number(value)} \text{{ cm}}",
    "formula + 0": of_formula("({}) + 0"),
    "formula twice halved": of_formula(r"\frac{{2 ({})}}{{2}}"),
}
# each must not
OTHER: dict[str, Change] = {
    "+ 1": of_number(lambda v: v + 1),
    "- 1": of_number(lambda v: v - 1),
    "sign": of_number(lambda v: -v),
    "tenfold": of_number(lambda v: 10 * v),
    "a tenth": of_number(lambda v: v / 10),
    "1 % more": of_number(lambda v: v * Fraction(101, 100)),
    "swapped fraction": of_number(lambda v: 1 / v if v else None),
    "last digit lost": digits,
    "two candidates": lambda gold, v: None if v is None else f"{number(v)}, {number(v + 1)}",
    "two candidates, or": lambda gold, v: None if v is None else rf"{number(v)} \text{{ or }} {number(v + 1)}",
    "times x": lambda gold, value: None if not value else f"{number(value)} x",
    "not the answer": lambda gold, value: None if value is None else rf"\text{{not }} {number(value)}",
    "formula + 1": of_formula("({}) + 1"),
    "formula, sign": of_formula("-({})"),
    "formula, doubled": of_formula("2 ({})"),
}


def golds(file: Path) -> list[str]:
    """The gold answers of a file."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = [gold_text(row.get("answer", row.get("solution"))) for row in rows]
    return [gold for gold in found if gold is not None]


def confusion(reward: Reward, answers: list[str]) -> list[dict[str, Any]]:
    """A line for each perturbation: what the answers should be judged, how many were made, and their verdicts."""
    lines = []
    for wanted, changes in (("correct", SAME), ("wrong", OTHER)):
        for name, change in changes.items():
            made = [(gold, change(gold, parse_number(gold))) for gold in answers]
            pairs = [(gold, answer) for gold, answer in made if answer is not None]
            if not pairs:
                continue
            began = time.perf_counter()
            texts = [rf"So the answer is \boxed{{{answer}}}." for _, answer in pairs]
            scores = reward(texts, [{"answer": gold} for gold, _ in pairs])
            counts = Counter(score.verdict for score in scores)
            ill = [p for p, s in zip(pairs, scores, strict=True) if (s.verdict == "correct") != (wanted == "correct")]
            line = {"perturbation": name, "wanted": wanted, "n": len(pairs), **{v: counts[v] for v in VERDICTS}}
            lines.append({**line, "ms": round(1000 * (time.perf_counter() - began) / len(pairs), 2), "ill": ill[:8]})
    return lines


def code(file: Path) -> list[dict[str, Any]]:
    """Canonical solutions, and what is left of them when they return nothing or end after their first line."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    changes = {
        "canonical solution": ("correct", lambda text: text),
        "returns nothing": ("wrong", lambda text: "    return None\n"),
        "first line only": ("wrong", lambda text: text.splitlines()[0] + "\n" if len(text.splitlines()) > 1 else None),
        "exit before the tests": ("wrong", lambda text: "    import sys\n    sys.exit(0)\n"),
    }
    reward, lines = build("code"), []
    for name, (wanted, change) in changes.items():
        made = [(text, row) for row in rows if (text := change(row["canonical_solution"])) is not None]
        counts = Counter(score.verdict for score in reward([text for text, _ in made], [row for _, row in made]))
        lines.append({"perturbation": name, "wanted": wanted, "n": len(made), **{v: counts[v] for v in VERDICTS}})
    return lines


def instructions(file: Path) -> list[dict[str, Any]]:
    """How often each kind of instruction occurs, and how often the prompt itself, taken for a response, follows it."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    asked = Counter(kind for row in rows for kind, _ in instructions_of(row))
    scores = build("constraints")([row["prompt"] for row in rows], rows)
    found = Counter((name.split()[0], part.verdict) for score in scores for name, part in score.parts.items())
    return [
        {"perturbation": kind, "wanted": "", "n": asked[kind], **{v: found[kind, v] for v in VERDICTS}}
        for kind in INSTRUCTIONS
    ]


def markdown(tables: dict[str, list[dict[str, Any]]]) -> str:
    """The tables for people: perturbation, how many, and the verdicts that occur."""
    parts = []
    for name, lines in tables.items():
        shown = [verdict for verdict in VERDICTS if any(line[verdict] for line in lines)]
        parts.append(
            f"### {name}\n\n| | should be | n | {' | '.join(shown)} |\n| --- | --- |" + " ---: |" * (1 + len(shown))
        )
        for line in lines:
            numbers = " | ".join(str(line[verdict]) for verdict in shown)
            parts.append(f"| {line['perturbation']} | {line['wanted']} | {line['n']} | {numbers} |")
        parts.append("")
    return "\n".join(parts)


def main(argv: list[str]) -> int:
    """Run what there is data for; write and print the tables."""
    parser = argparse.ArgumentParser(description="verifiers on real gold answers")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/verifiers"))
    parser.add_argument("--limit", type=int, default=None, help="only so many answers of a file")
    args = parser.parse_args(argv)
    tables: dict[str, list[dict[str, Any]]] = {}
    for file in ("gsm8k_train", "aime24", "amc23", "minerva_math"):
        path = args.data / f"{file}.jsonl"
        for verifier in ("math", "numeric", "flex", "exact") if path.exists() else ():
            tables[f"{verifier} on {file}"] = confusion(build(verifier), golds(path)[: args.limit])
            print(f"{verifier} on {file}", file=sys.stderr)
    for name, file, measure in (
        ("code on humaneval_first60", "humaneval_first60", code),
        ("constraints on ifeval_prompts", "ifeval_prompts", instructions),
    ):
        if (args.data / f"{file}.jsonl").exists():
            tables[name] = measure(args.data / f"{file}.jsonl")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.json").write_text(json.dumps(tables, indent=1), encoding="utf-8")
    (args.out / "table.md").write_text(markdown(tables), encoding="utf-8")
    print(markdown(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
