"""Populations of raters from a file, or over the pairs of a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fiducial.core.types import Prompt
from fiducial.data.preferences.raters import Rater, three_raters
from fiducial.data.preferences.record import Preference

SETTINGS = (
    "weight temperature length_bias noise position_bias tie_below slight_below traits".split()
)  # of a rater, beside id and rewards or matrix

Population = tuple[list[Rater], list[Prompt], list[list[str]]]
"""Raters, S prompts, and the N responses to each that they know."""


def condorcet() -> Population:
    """The three raters whose majority goes round in a circle, over three responses to one prompt."""
    return three_raters(), ["Which of the three?"], [["the first", "the second", "the third"]]


def over_pairs(records: Sequence[Preference], number: int, **settings: Any) -> Population:
    """`number` raters of one mind over the two responses of each record, for text completions.

    The side that the record prefers has reward 1/2, the other -1/2, both 0 for a tie; `settings` are a rater's.
    """
    if number < 1:
        raise ValueError(f"a population needs at least one rater; {number} were asked for")
    plain = [r for r in records if isinstance(r.response_a, str) and isinstance(r.response_b, str)]
    if not plain:
        raise ValueError("there is no pair of texts to judge")
    lean = torch.tensor([float(r.lean > 0) - float(r.lean < 0) for r in plain], dtype=torch.float64)
    rewards = torch.stack([lean, -lean], -1) / 2
    raters = [Rater(f"rater {i}", rewards, **settings) for i in range(1, number + 1)]
    return raters, [r.prompt for r in plain], [[str(r.response_a), str(r.response_b)] for r in plain]


def is_population(path: str | Path) -> bool:
    """Whether this is a JSON file with raters in it, rather than one of rows."""
    path = Path(path)
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False  # its reader says what is wrong
    return isinstance(table, dict) and "raters" in table


def read_population(path: str | Path) -> Population:
    """From a JSON file {"prompts": [S], "responses": [[N] x S], "raters": [{"id", "rewards" or "matrix", ...}]}.

    The other keys of a rater are the settings of `Rater`. ValueError names the file and the rater.
    """
    path = Path(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable JSON file: {error}") from error
    for name in ("prompts", "responses", "raters"):
        if not isinstance(table, dict) or not isinstance(table.get(name), list) or not table[name]:
            raise ValueError(f"{path}: a population is an object of prompts, responses and raters; {name} is missing")
    raters = [_rater(path, i, entry) for i, entry in enumerate(table["raters"], 1)]
    return raters, table["prompts"], table["responses"]


def _rater(path: Path, i: int, entry: Any) -> Rater:
    known = ("id", "rewards", "matrix", *SETTINGS)
    if not isinstance(entry, dict) or not set(entry) <= set(known):
        raise ValueError(f"{path}, rater {i}: a rater is an object with some of {', '.join(known)}")
    try:
        tables = {
            name: torch.tensor(entry[name], dtype=torch.float64) for name in ("rewards", "matrix") if name in entry
        }
        rest = {name: entry[name] for name in SETTINGS if name in entry}
        return Rater(str(entry.get("id", f"rater {i}")), **tables, **rest)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, rater {i}: {error}") from error
