"""fiducial recipes [ID]"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fiducial.cli import show
from fiducial.config import RECIPES, RecipeError, read_toml


def entry(path: Path) -> dict[str, Any]:
    """What `--json` gives of a shipped recipe."""
    table = read_toml(path)
    stages = [stage["name"] for stage in table["stage"]] if "stage" in table else [table["method"]]
    return {"id": path.stem, "stages": stages, "summary": summary(path), "path": str(path.resolve())}


def summary(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"(?<=\.)\s", " ".join(comment), maxsplit=1)[0]


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "recipes",
        "The recipes that ship, single runs and pipelines of several stages; with an id, or the beginning of one, the "
        "file.\n`fiducial train ID` runs one.",
        "fiducial recipes llama3_loop",
    )
    parser.add_argument("id", nargs="?", default="", help="an id, or what it begins with")
    args = parser.parse_args(argv)
    found = [entry(path) for path in sorted(RECIPES.glob("*.toml")) if path.stem.startswith(args.id)]
    found = [one for one in found if one["id"] == args.id] or found
    if not found:
        raise RecipeError(f"no shipped recipe's id begins with {args.id!r}; `fiducial recipes` lists them")
    if args.json:
        show.emit(found)
    elif len(found) == 1:
        path = Path(found[0]["path"])
        print(f"{os.path.relpath(path)}\n\n{path.read_text(encoding='utf-8')}", end="")
    else:
        show.table(["id", "stages", ""], [(one["id"], " > ".join(one["stages"]), one["summary"]) for one in found])
    return 0
