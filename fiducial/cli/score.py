"""fiducial score VERIFIER FILE.jsonl"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fiducial.cli import show
from fiducial.core.types import Reward, Score
from fiducial.data import open_rows, tasks


def score_rows(reward: Reward, rows: Sequence[dict[str, Any]]) -> list[Score]:
    """The score of each row, in order; a row without a completion is skipped."""
    usable = [i for i, row in enumerate(rows) if isinstance(row.get("completion"), str)]
    scores = [Score(None, "skipped", "the row has no text in the field 'completion'")] * len(rows)
    judged = reward([rows[i]["completion"] for i in usable], [rows[i] for i in usable])
    for i, score in zip(usable, judged, strict=True):
        scores[i] = score
    return scores


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "score",
        "Run one verifier or reward over rows; each row names `completion` and what the verifier needs.",
        "fiducial score math answers.jsonl --out scores.jsonl",
    )
    parser.add_argument("verifier", nargs="?", help="an id (--list), a task, file.py:function, a reward model's folder")
    parser.add_argument("file", nargs="?", help="rows: JSONL, JSON, CSV, parquet")
    parser.add_argument("--out", help="write one JSON line per row here")
    parser.add_argument("--timeout", type=float, help="seconds per row (default 10; a function of yours 30)")
    parser.add_argument("--list", action="store_true", help="the verifiers there are")
    args = parser.parse_args(argv)
    if args.list:
        return _list(args.json)
    if args.verifier is None or args.file is None:
        parser.error("name a verifier and a file (or --list)")
    if args.timeout is not None and args.timeout <= 0:
        raise ValueError(f"--timeout must be positive; it is {args.timeout}")
    from fiducial.evals.judges import judge

    reward = judge(args.verifier, args.timeout)
    rows = list(open_rows(args.file))
    found = [
        {"index": i, "verdict": s.verdict, "value": s.value, "why": s.why, "seconds": round(s.seconds, 6)}
        for i, s in enumerate(score_rows(reward, rows))
    ]
    if args.out:
        Path(args.out).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    if args.json:
        show.emit(found)
        return 0
    if not args.out:
        shown = [(row["index"], row["verdict"], row["value"], row["why"]) for row in found[:50]]
        show.table(["row", "verdict", "value", "why"], shown)
    counts = Counter(row["verdict"] for row in found)
    print(f"{len(found)} rows: " + ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common()))
    return 0


def _list(as_json: bool) -> int:
    from fiducial.rewards import VERIFIERS

    known = [(name, entry.summary) for name, entry in VERIFIERS.items()]
    known += [(task.id, f"the task's own verifier: {task.summary}") for task in tasks.TASKS.values()]
    if as_json:
        show.emit([{"id": name, "summary": summary} for name, summary in known])
    else:
        show.table(["verifier", ""], [*known, ("rg/<name>", "the verifier of a reasoning-gym task")])
    return 0
