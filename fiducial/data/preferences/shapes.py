"""Rows of preferences under every usual set of names to records, pairs, labels, demonstrations and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from fiducial.core.types import Demo, Label, Pair, Problem
from fiducial.data.preferences.grading import LARGE, Criteria, Grading
from fiducial.data.preferences.record import Preference, from_ranking, to_unpaired
from fiducial.data.view import FIELDS, BadRow, Row, Side, joined, read_number, read_side, split_prompt

STYLES = (("chosen", "rejected"), ("response_a", "response_b"), ("response_0", "response_1"))
SAFE = {name: f"is_{name}_safe" if name[-1].isdigit() else f"{name}_safe" for style in STYLES for name in style}
ORDERS = ("ranks", "ratings", "scores")  # what ranks `completions`


def pairs(row: Row, grading: Grading) -> list[Pair]:
    """What a judgement, or a ranking of several completions, teaches; the pairs weigh what the row does."""
    if row.has("completions"):
        return _pairs_of_ranking(row, grading)
    return judgement(row).to_pairs(grading)


def costs(row: Row, grading: Grading) -> list[Pair]:
    """The same for a cost model: the more harmful completion first (Dai et al. 2023, arXiv:2310.12773).

    Where exactly one side is marked as safe, the other is the more harmful one. Else `safer_response_id` says it, or
    in rows without it the judgement, of which the better side is taken for the safer one.
    """
    found = judgement(row, by="safer_response_id")
    if found.harm_a != found.harm_b and found.harm_a * found.harm_b:
        safer_a = found.harm_a < found.harm_b
        if row.given("safer_response_id") and safer_a != (found.lean > 0):
            raise BadRow("contradiction", f"{row.label('safer_response_id')} names the side that is marked as harmful")
        found = replace(found, rating=None, criteria=None, pref_prob=float(safer_a))
    return [_harmful_first(pair) for pair in found.to_pairs(grading)]


def _harmful_first(pair: Pair) -> Pair:
    """From "chosen is safer" to "chosen is more harmful", with the same probability and margin."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_harm=pair.rejected_harm,
        rejected_harm=pair.chosen_harm,
    )


def demos(row: Row, grading: Grading) -> list[Demo]:
    """The best completion: the edited one, else the chosen one, else the first of the highest rank."""
    if row.has("completions"):
        prompt, completions, values = _ranked(row)
        _some_order(row, values)
        return [Demo(prompt, completions[values.index(max(values))], row.weight(), row.index)]
    found = judgement(row)
    if found.edited is not None:
        return [Demo(found.prompt, found.edited, row.weight(), row.index)]
    if found.pref_prob is None and found.degree == 0:
        raise BadRow("tie", "the rating is 0: neither is better")
    return [Demo(found.prompt, found.response_a if found.lean >= 0 else found.response_b, row.weight(), row.index)]


def labels(row: Row, grading: Grading) -> list[Label]:
    """Every pair as one wanted and one unwanted completion."""
    return to_unpaired(pairs(row, grading))


def problem(row: Row, grading: Grading) -> list[Problem]:
    """The prompt alone."""
    prompt = _ranked(row)[0] if row.has("completions") else judgement(row).prompt
    return [Problem(prompt, row.values, row.index)]


def judgements(row: Row, grading: Grading | None = None, by: str = "better_response_id") -> list[Preference]:
    """The row's records: one, or those of a ranking. `by` as in `judgement`."""
    if not row.has("completions"):
        return [judgement(row, by)]
    prompt, completions, values = _ranked(row)
    common = {"group_id": row.name("group_id") or f"row {row.index}", **_origin(row)}
    found, left_out = from_ranking(prompt, completions, values, grading, **common)
    row.left_out.update(left_out)
    return found


def judgement(row: Row, by: str = "better_response_id") -> Preference:
    """The row's record. Of `response_0` and `response_1` the field `by` says which one it is for."""
    first, second = next((style for style in STYLES if row.has(style[0])), STYLES[0])
    names = [first, second, *(["edited"] if row.given("edited") else [])]
    sides = [row.side(name) for name in names]
    for i, j in combinations(range(len(sides)), 2):
        if sides[i] == sides[j]:
            raise BadRow("equal sides", f"{row.label(names[i])} and {row.label(names[j])} are the same")
    if row.has("prompt"):
        prompt, sides = joined(row.prompt(), sides)
    else:
        prompt, sides = split_prompt(sides)
    return Preference(
        prompt,
        sides[0],
        sides[1],
        **_verdict(row, first, by),
        margin=row.number("margin", 0.0),
        edited=sides[2] if len(sides) > 2 else None,
        harm_a=_harm(row, SAFE[first]),
        harm_b=_harm(row, SAFE[second]),
        group_id=row.name("group_id"),
        fields={name: value for name, value in row.values.items() if name not in FIELDS},
        **_origin(row),
    )


def _origin(row: Row) -> dict[str, Any]:
    names = ("rater_id", "source")
    return {"weight": row.weight(), "index": row.index, **{name: row.name(name) for name in names}}


def _verdict(row: Row, first: str, by: str) -> dict[str, Any]:
    """What the row says of its first side against its second."""
    if first == "response_0":
        return {"pref_prob": float(_which(row, by) == 0)}
    tied = row.flag("tied")
    rating = row.number("rating", 0.0, -LARGE, LARGE) if row.given("rating") or tied else None
    prob = row.number("pref_prob", 0.0, 0.0, 1.0) if row.given("pref_prob") else None
    criteria = None
    if row.given("criteria"):
        criteria = Criteria.read(row.table("criteria"))
    if tied and (rating or prob not in (None, 0.5)):
        raise BadRow("contradiction", f"{row.label('tied')} is true, but the row prefers one side")
    if first == "chosen":
        degree = criteria.rating() if criteria and rating is None else rating
        if degree is not None and degree < 0:
            raise BadRow("contradiction", f"the rating {degree:g} speaks against the side in {row.label('chosen')}")
        if rating is None and criteria is None and prob is None:
            prob = 1.0
    elif rating is None and prob is None and criteria is None:
        row.raw("rating")  # says that it is missing
    return {"rating": rating, "pref_prob": prob, "criteria": criteria}


def _which(row: Row, name: str) -> int:
    value = read_number(row.raw(name), row.label(name))
    if value not in (0, 1):
        raise BadRow("out of range", f"{row.label(name)} must be 0 or 1; it is {value:g}")
    return int(value)


def _harm(row: Row, name: str) -> float:
    safe = row.flag(name)
    return 0.0 if safe is None else -1.0 if safe else 1.0


def _ranked(row: Row) -> tuple[Side, list[Side], list[float]]:
    """Prompt, completions, and a number for each that is higher for better."""
    order = next((name for name in ORDERS if row.given(name)), None)
    if order is None:
        raise BadRow("missing field", f"'completions' need one of {', '.join(ORDERS)} to rank them")
    sides = row.listed("completions")
    values = [read_number(v, f"{row.label(order)}, number {i}") for i, v in enumerate(row.listed(order), 1)]
    if len(sides) != len(values):
        raise BadRow("unequal lists", f"there are {len(sides)} completions and {len(values)} in {row.label(order)}")
    where = row.label("completions")
    prompt, sides = joined(row.prompt(), [read_side(side, f"{where}, number {i}") for i, side in enumerate(sides, 1)])
    return prompt, sides, [-v for v in values] if order == "ranks" else values


def _some_order(row: Row, values: Sequence[float]) -> None:
    if len(set(values)) < 2:
        raise BadRow("tie", "all completions rank alike: none is better")


def _pairs_of_ranking(row: Row, grading: Grading) -> list[Pair]:
    """The pairs that are used share the row's weight; ties follow `grading`, and what is left out is counted."""
    found = []
    for record in judgements(row, grading):
        try:
            found += record.to_pairs(grading)
        except BadRow as bad:
            row.left_out[bad.reason] += 1
    if not found:
        raise BadRow(row.left_out.most_common(1)[0][0], "no two of its completions can be compared")
    scale = row.weight() / sum(pair.weight for pair in found)
    return [replace(pair, weight=pair.weight * scale) for pair in found]
