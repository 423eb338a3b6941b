"""fiducial doctor [RUN | RECIPE]"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fiducial.cli import show


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "doctor",
        "Look at a recipe before it runs, or read a run and name what looks wrong, where, and what to do.",
        "fiducial doctor runs/first",
    )
    parser.add_argument("what", help="a run folder, or a recipe")
    args, flags = parser.parse_known_args(argv)
    from fiducial import doctor

    if Path(args.what).is_dir():
        found = doctor.read_run(args.what)
    else:
        found = doctor.read_recipe(args.what, show.overrides(flags))
    if args.json:
        show.emit([asdict(finding) for finding in found])
    elif not found:
        print("nothing looks wrong")
    else:
        rows = [(finding.severity, finding.what, finding.where, finding.advice) for finding in found]
        show.table(["", "what", "where", "what to do"], rows)
    return 1 if any(finding.severity == "error" for finding in found) else 0
