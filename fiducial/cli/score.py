"""fiducial score VERIFIER FILE.jsonl"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from fiducial.cli import show
from fiducial.core.types import Reward, Score
from fiducial.data import open_rows, tasks

SHOWN = 50  # rows of the table for people


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
        "Run one verifier or reward over rows; each row names `completion` and what the verifier needs.\n"
        "A reward model's score, or a number of your function other than 0 and 1, is `graded`: nobody said right or\n"
        "wrong, the verdict in the JSON is only whether it is 1 or more, and the summary shows how values spread.",
        "fiducial score math answers.jsonl --out scores.jsonl",
    )
    parser.add_argument(
        "verifier",
        nargs="?",
        help="an id (--list; options: 'constraints(loose=True)'), a task, file.py:function, a reward model's folder, "
        "judge.toml, or ai:MODEL",
    )
    parser.add_argument("file", nargs="?", help="rows: JSONL, JSON, CSV, parquet")
    parser.add_argument("--out", help="write one JSON line per row here")
    parser.add_argument("--timeout", type=float, help="seconds per row (default 10; a function of yours 30)")
    parser.add_argument("--i-trust-this-code", action="store_true", help=show.TRUST)
    parser.add_argument(
        "--normalise",
        choices=("global", "global_std"),
        help="first give a reward model mean 0 on these rows (global_std: and deviation 1), in its weights",
    )
    parser.add_argument("--save", metavar="FOLDER", help="where the model of --normalise goes")
    parser.add_argument("--list", action="store_true", help="the verifiers there are")
    args = parser.parse_args(argv)
    if args.list:
        return _list(args.json)
    if args.verifier is None or args.file is None:
        parser.error("name a verifier and a file (or --list)")
    if args.timeout is not None and args.timeout <= 0:
        raise ValueError(f"--timeout must be positive; it is {args.timeout}")
    from fiducial.judges import judge

    verifier = show.model_folder(args.verifier) if Path(args.verifier).is_dir() else args.verifier
    rows = list(open_rows(args.file))
    if args.normalise:
        verifier = _normalised(verifier, rows, args)
    reward = judge(verifier, args.timeout, args.i_trust_this_code)
    scores = score_rows(reward, rows)
    found = [
        {
            **{"index": i, "verdict": s.verdict, "value": s.value, "why": s.why},
            **{"seconds": round(s.seconds, 6), "graded": s.graded, "isolation": s.isolation},
            "parts": {
                name: {"verdict": part.verdict, "value": part.value, "why": part.why} for name, part in s.parts.items()
            },
            "flags": s.flags,
        }
        for i, s in enumerate(scores)
    ]
    if args.out:
        Path(args.out).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    if args.json:
        show.emit(found)
        return 0
    if not args.out:
        shown = [
            (i, _said(s), "" if s.value is None else f"{s.value:.6g}", s.why) for i, s in enumerate(scores[:SHOWN])
        ]
        show.table(["row", "verdict", "value", "why"], shown)
    print("\n".join(summary(scores)))
    return 0


def _normalised(folder: str, rows: Sequence[dict[str, Any]], args: Any) -> str:
    """Shift and scale a reward model by its scores of the rows; returns the folder that holds the new one."""
    from fiducial.sampling.scorer import normalise_reward

    if not args.save or not Path(folder).is_dir():
        raise ValueError("--normalise is of a reward model's folder, and --save names the folder of the new one")
    lacking = next((i for i, row in enumerate(rows) if not isinstance(row.get("completion"), str)), None)
    if lacking is not None:
        raise ValueError(f"{args.file}, row {lacking}: no text in the field 'completion', by which to normalise")
    completions = [row["completion"] for row in rows]
    shift, scale = normalise_reward(folder, completions, rows, args.normalise, args.save)
    print(f"{args.save}: scores of {folder} less {shift:.6g}, divided by {scale:.6g}", file=sys.stderr)
    return args.save


def _said(score: Score) -> str:
    """The verdict for people: a plain number is neither right nor wrong."""
    return "scored" if score.graded else score.verdict


def summary(scores: Sequence[Score]) -> list[str]:
    """How many rows got which verdict; where any value is a plain number, how the values are distributed instead of how
    many are right."""
    if not any(score.graded for score in scores):
        counts = Counter(score.verdict for score in scores)
        values: list[float] = []
    else:
        counts = Counter("scored" if score.value is not None else score.verdict for score in scores)
        values = sorted(score.value for score in scores if score.value is not None)
    lines = [f"{len(scores)} rows: " + ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common())]
    if values:
        lines.append(f"mean {fmean(values):.4g}, standard deviation {pstdev(values):.4g}")
        shares = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}
        lines.append(", ".join(f"{name} {quantile(values, share):.4g}" for name, share in shares.items()))
    return lines


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of ordered values does not exceed, between neighbours in proportion.

    >>> [quantile([1.0, 2.0, 4.0], share) for share in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 1.5, 2.0, 4.0]
    """
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _list(as_json: bool) -> int:
    from fiducial.rewards import VERIFIERS

    known = [(name, entry.summary) for name, entry in VERIFIERS.items()]
    listed = tasks.list_tasks() if as_json else list(tasks.TASKS.values())
    known += [(task.id, f"the task's own verifier: {task.summary}") for task in listed]
    if as_json:
        show.emit([{"id": name, "summary": says} for name, says in known])
    else:
        show.table(["verifier", ""], [*known, ("rg/<name>", "the verifier of a reasoning-gym task (fiducial tasks)")])
    return 0
