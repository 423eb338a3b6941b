"""Rows of pairs from a judge's word (RLAIF, Lee et al. 2023, arXiv:2309.00267).

The soft label is the probability that the judge gives the better side, asked in both orders and averaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fiducial.data import BadRow, parse
from fiducial.data.feedback.comparing import Comparison, PairJudge
from fiducial.data.feedback.labelling import (
    MAX_UNREADABLE,
    judge_all,
    judge_metrics,
    judge_notes,
    label,
    refuse_unreadable,
)
from fiducial.data.feedback.writer import Made, Progress


def ai_feedback(
    judge: PairJudge,
    rows: Iterable[Mapping[str, Any]],
    *,
    fields: Mapping[str, str] | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    progress: Progress | None = None,
) -> Made:
    """Rows of pairs (`prompt`, `chosen`, `rejected`, `pref_prob`, `source` "ai") from rows of two responses.

    rows hold `chosen` and `rejected`, or `response_a` and `response_b`; what they say of which is better is the human
    label that the judge is compared with, kept as `human_prob` (of the chosen). Rows that do not parse and comparisons
    without a verdict are left out and counted. `fields` renames, as in `parse`.

    The metrics are those of `judge_metrics`. ValueError where more than the share `max_unreadable` of the judge's
    answers hold no verdict, or no row is left.
    """
    comparisons: list[Comparison] = []
    human: list[float | None] = []
    bad: Counter[str] = Counter()
    for index, row in enumerate(rows):
        try:
            comparison, said = read_comparison(row, fields or {}, index)
        except BadRow as error:
            bad[error.reason] += 1
        else:
            comparisons.append(comparison)
            human.append(said)
    judgements = judge_all(judge, comparisons, progress)
    refuse_unreadable(judgements, max_unreadable)
    made, counted = label(comparisons, judgements, [{} if h is None else {"human_prob": h} for h in human])
    counted += bad
    if not made:
        told = ", ".join(f"{number} {reason}" for reason, number in counted.items()) or "there are no rows"
        raise ValueError(f"the judge {judge.name} labelled no row: {told}")
    return Made(made, dict(counted), judge_metrics(judgements, human), judge_notes(judgements))


def read_comparison(
    row: Mapping[str, Any], fields: Mapping[str, str] | None = None, index: int = 0
) -> tuple[Comparison, float | None]:
    """The two responses of a row, and a human's probability that the first is better (None: no label). Raises BadRow.

    >>> read_comparison({"prompt": "2 + 2?", "response_a": "4", "response_b": "5", "rating": 2})[1]
    1.0
    """
    names = fields or {}

    def get(name: str) -> Any:
        value = row.get(names.get(name, name))
        return None if value == "" and name in ("rating", "pref_prob") else value  # an empty cell of a CSV

    ranked = get("chosen") is not None
    first, second = ("chosen", "rejected") if ranked else ("response_a", "response_b")
    sides = {"prompt": get("prompt"), "chosen": get(first), "rejected": get(second)}
    if sides["chosen"] is None or sides["rejected"] is None:
        raise BadRow("missing field", "a comparison needs chosen and rejected, or response_a and response_b")
    [pair] = parse(sides, "pairs", index=index)
    comparison = Comparison(pair.prompt, pair.chosen, pair.rejected)
    if get("pref_prob") is not None:
        return comparison, _number(get("pref_prob"), "pref_prob", 0, 1)
    if ranked:
        return comparison, 1.0
    rating = None if get("rating") is None else _number(get("rating"), "rating", -2, 2)
    return comparison, None if rating is None else 0.5 if rating == 0 else float(rating > 0)


def _number(value: Any, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow("wrong type", f"{name} must be a number; it is {value!r:.60}") from None
    if not low <= number <= high:
        raise BadRow("out of range", f"{name} must lie in [{low}, {high}]; it is {number:g}")
    return number
