"""Tables for eyes, JSON for machines, and the flags that verbs share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fiducial.core.types import Decoding

TRUST = "where there is no sandbox, run code that a model wrote all the same, as an ordinary process"


def parser(verb: str, does: str, example: str) -> argparse.ArgumentParser:
    """The argument parser of a verb, with an example in its help and --json."""
    made = argparse.ArgumentParser(
        f"fiducial {verb}",
        description=does,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--json", action="store_true", help="print one JSON document and nothing else on standard output")
    return made


def add_decoding(made: argparse.ArgumentParser, max_new_tokens: int = 128) -> None:
    """Flags of how completions are drawn."""
    made.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default 1)")
    made.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens (0: all)")
    made.add_argument("--top-p", type=float, default=1.0, help="draw from the smallest set with this much probability")
    made.add_argument(
        "--min-p", type=float, default=0.0, help="draw from tokens with this share of the likeliest one's"
    )
    made.add_argument("--max-new-tokens", type=int, default=max_new_tokens, help=f"(default {max_new_tokens})")
    made.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end a completion here; repeatable")


def decoding(args: argparse.Namespace) -> Decoding:
    """What the flags of `add_decoding` say."""
    return Decoding(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.min_p, tuple(args.stop))


def model_folder(path: str) -> str:
    """The model that a path names: of a run's folder the one inside, which is told on standard error."""
    from fiducial.models.folder import is_run

    inside = Path(path) / "model"
    if not (is_run(Path(path)) and inside.is_dir()):
        return path
    print(f"{path} is a run's folder: taking its model, {inside}", file=sys.stderr)
    return str(inside)


def emit(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False, allow_nan=False)
    print()


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """A table on standard output, with colours only on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        made.add_column(header, overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(made)


def progress(what: str) -> Any:
    """A callback (done, total) that draws a bar on a terminal's standard error, and nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)

    def update(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()

    return update


def overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Flags such as `--optim.lr 3e-4 --hparams.clip-high 0.3` as a nested table, values read as TOML reads them.

    >>> overrides(["--optim.lr", "3e-4", "--task=kk", "--seed", "1"])
    {'optim': {'lr': 0.0003}, 'task': 'kk', 'seed': 1}
    """
    out: dict[str, Any] = {}
    waiting = list(arguments)
    while waiting:
        flag = waiting.pop(0)
        if not flag.startswith("--"):
            raise ValueError(f"{flag!r} is not a flag: settings are given as --optim.lr 3e-4")
        name, equals, value = flag[2:].partition("=")
        if not equals:
            if not waiting:
                raise ValueError(f"{flag} needs a value")
            value = waiting.pop(0)
        *parents, last = name.replace("-", "_").split(".")
        level = out
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = _value(value)
    return out


def _value(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
