"""fiducial data KIND: make rows to train on, or look at those there are"""

from __future__ import annotations

import importlib
import sys

# kind -> the module that has a function of its name, and what it does
KINDS = {
    "inspect": ("data_rows", "what the rows of a file are, what is wrong with them, who judged"),
    "pairs": ("data_rows", "sample completions of a task's problems, verify them, pair correct with wrong"),
    "raters": ("data_rows", "judgements of a simulated population of raters"),
    "ai_feedback": ("data_feedback", "label pairs by a judge, asked in both orders"),
    "constitutional_ai": ("data_feedback", "critique and revision, or preferences, by principles"),
    "spec_distill": ("data_spec", "completions that keep to a specification, without it in their prompts"),
    "tree_preferences": ("data_feedback", "pairs between leaves of a tree of completions"),
}


def main(argv: list[str]) -> int:
    """Run one kind; returns the exit code."""
    kinds = "\n".join(f"  {kind:<18} {does}" for kind, (_, does) in KINDS.items())
    page = (
        "usage: fiducial data KIND ...\n\nMake rows to train on, or look at those there are.\n\n"
        f"kinds:\n{kinds}\n\nexample: fiducial data inspect pairs.jsonl\n`fiducial data KIND --help` says more."
    )
    if argv[:1] in (["-h"], ["--help"]):
        print(page)
        return 0
    if not argv or argv[0] not in KINDS:
        print(page, file=sys.stderr)
        asked = f"there is no kind {argv[0]!r}" if argv else "name a kind"
        raise ValueError(f"{asked}: {', '.join(KINDS)}")
    module = importlib.import_module(f"fiducial.cli.{KINDS[argv[0]][0]}")
    return getattr(module, argv[0])(argv[1:])
