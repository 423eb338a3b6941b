"""fiducial eval MODEL PAIRS [--ref MODEL2]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

from fiducial.cli import show


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a policy on pairs."""
    parser.add_argument(
        "--ref", default="", metavar="MODEL", help="on pairs: the reference that MODEL is compared with"
    )
    parser.add_argument("--beta", type=float, default=1.0, help="on pairs: scale of the implicit rewards (default 1)")


def holds_pairs(task: str, flags: list[str]) -> bool:
    """Whether this is a file of preference pairs, by its first row."""
    from fiducial.data import BadRow, open_rows
    from fiducial.data.rows import shape
    from fiducial.data.view import Row

    if not Path(task).exists():
        return False
    rows, (_, fields) = open_rows(task), settings(flags)
    try:
        return len(rows) > 0 and bool(shape(Row(rows[0], fields, 0), "pairs"))
    except BadRow:
        return False


def settings(flags: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """How ratings are read (--ratings, --rating-scale, --ties) and what columns are called (--chosen-field, ...)."""
    over = show.overrides(flags)
    grading = {name: over.pop(name) for name in ("ratings", "rating_scale", "ties") if name in over}
    fields = {name.removesuffix("_field"): value for name, value in over.items() if name.endswith("_field")}
    if unknown := [name for name in over if not name.endswith("_field")]:
        raise ValueError(f"--{unknown[0].replace('_', '-')} is no setting of pairs: see fiducial eval --help")
    return {"scale" if name == "rating_scale" else name: value for name, value in grading.items()}, fields


def eval_pairs(args: Any, flags: list[str]) -> dict[str, Any]:
    """What `fiducial eval` prints of a policy on pairs."""
    from fiducial.data import Grading
    from fiducial.evals.pairs import evaluate_pairs, read_pairs
    from fiducial.sampling.policy import Policy

    policy = Policy.load(args.model)
    ref = Policy.load(show.model_folder(args.ref)) if args.ref else None
    grading, fields = settings(flags)
    data = read_pairs(policy, args.task, Grading(**cast(Any, grading)), fields)
    items = [data[j] for j in range(min(args.n or len(data), len(data)))]
    found = evaluate_pairs(policy, items, ref, beta=args.beta, seed=args.seed, decoding=show.decoding(args))
    against = {"ref": args.ref, "beta": args.beta} if args.ref else {}
    return {
        "task": args.task,
        "n": found.n,
        "k": 1,
        **against,
        "metrics": found.metrics,
        "intervals": {name: list(ends) for name, ends in found.intervals.items()},
        "verdicts": {},
        "counted": data.report.counted,
        "notes": found.notes,
    }
