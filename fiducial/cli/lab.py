"""fiducial lab [ID... | --all | --list]"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fiducial.cli import show
from fiducial.labs import LABS, lookup
from fiducial.labs.base import Lab

OUT = "runs/labs"


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "lab",
        "Repeat experiments whose outcome is known: each writes its numbers, tables and pictures, and a\n"
        "verdict by criteria that were stated beforehand. The exit code is 1 if any fails.",
        "fiducial lab L2 L16 --fast --out runs/labs",
    )
    parser.add_argument("labs", nargs="*", metavar="ID", help="L1, L2, ... or a lab's name")
    parser.add_argument("--all", action="store_true", help="every lab")
    parser.add_argument("--list", action="store_true", help="what labs there are, and run none")
    parser.add_argument(
        "--out", default=OUT, metavar="DIR", help=f"a folder per lab, and index.html with all pictures (default {OUT})"
    )
    parser.add_argument("--fast", action="store_true", help="fewer repetitions: each under a minute on one core")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
    args = parser.parse_args(argv)
    if args.list:
        return _list(args.json)
    chosen = list(LABS.values()) if args.all else [lookup(name) for name in args.labs]
    if not chosen:
        parser.error("name a lab, --all, or --list")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed must lie in [0, {2**32 - 1}]; it is {args.seed}")
    Path(args.out).mkdir(parents=True, exist_ok=True)  # what cannot be written to is told before the work
    done = [_run(lab, Path(args.out), args.seed, args.fast) for lab in chosen]
    from fiducial.labs.output import write_gallery

    gallery = write_gallery(Path(args.out))
    if args.json:
        show.emit(done)
    else:
        _print(done)
        print(f"pictures: {gallery}")
    return 1 if any(entry["verdict"] == "fail" for entry in done) else 0


def _run(lab: Lab, out: Path, seed: int, fast: bool) -> dict[str, Any]:
    from fiducial.labs.output import verdict, write

    if sys.stderr.isatty():
        print(f"{lab.id} {lab.title} ...", file=sys.stderr)
    began = time.perf_counter()
    result = lab.run(seed, fast)
    seconds = time.perf_counter() - began
    return {**verdict(lab, result), "files": write(lab, result, out, seed, fast), "seconds": round(seconds, 3)}


def _list(as_json: bool) -> int:
    if as_json:
        show.emit([lab.to_json() for lab in LABS.values()])
    else:
        rows = [(lab.id, lab.name, lab.title, "yes" if lab.observational else "") for lab in LABS.values()]
        show.table(["lab", "name", "", "observational"], rows)
    return 0


def _print(done: list[dict[str, Any]]) -> None:
    rows = []
    for entry in done:
        rows.append((entry["lab"], entry["title"], "", "", entry["verdict"]))
        for c in entry["criteria"]:
            value = "not finite" if c["value"] is None else f"{c['value']:.4g}"
            rows.append(("", f"  {c['name']}", value, f"{c['relation']} {c['bound']:.4g}", c["verdict"]))
    show.table(["lab", "", "value", "bound", ""], rows)
