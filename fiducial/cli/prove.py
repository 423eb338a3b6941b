"""fiducial prove [ID... | FILE.py | --all]"""

from __future__ import annotations

from fiducial.cli import show
from fiducial.methods import METHODS, lookup


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "prove",
        "Run a method's own loss, and the trainer itself, on problems whose answer is known in closed form.",
        "fiducial prove dpo my_method.py",
    )
    parser.add_argument("methods", nargs="*", metavar="ID", help="method ids, or paths of your own files")
    parser.add_argument("--all", action="store_true", help="every method of the catalogue")
    args = parser.parse_args(argv)
    names = list(METHODS) if args.all else args.methods
    if not names:
        parser.error("name a method, a file, or --all")
    from fiducial.prove import prove

    checks = [check for name in names for check in prove(lookup(name))]
    unclaimed = [name for name in names if lookup(name).target is None]
    if args.json:
        show.emit([check.to_json() for check in checks])
    else:
        rows = [(c.method, c.check, f"{c.error:.1e}", f"{c.bound:.0e}", "ok" if c.passed else "FAILED") for c in checks]
        show.table(["method", "check", "error", "bound", ""], rows)
        for name in unclaimed:
            print(f"{name} claims no closed form (its record has no target), so none was held against it")
        failed = [c for c in checks if not c.passed]
        print(f"{len(checks) - len(failed)} of {len(checks)} checks hold")
    return 0 if all(check.passed for check in checks) else 1
