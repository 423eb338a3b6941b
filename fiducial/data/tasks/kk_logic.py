"""The logic of Knights and Knaves: formulas, truth tables, the solver, and a form that renamed twins share.

A formula is a list: ["knight", j], ["knave", j], ["not", f], ["and" or "or", f, g, ...], ["imply", f, g] or
["iff", f, g], with j the number of a person. A puzzle is one formula per person. Person i tells the truth iff i is a
knight, so an assignment solves the puzzle when every person's role equals the truth of that person's formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import Any

Formula = list[Any]
LEAVES = ("knight", "knave")
OPERATORS = ("not", "and", "or", "imply", "iff")
COMMUTATIVE = ("and", "or", "iff")


@cache
def _knights(person: int, n: int) -> int:
    """Bit a is set when `person` is a knight in assignment a of the 2^n; bit i of a is the role of person i."""
    return sum(1 << a for a in range(1 << n) if a >> person & 1)


def truth_table(formula: Formula, n: int) -> int:
    """The assignments of `n` people in which the formula holds, as the bits of one number.

    >>> bin(truth_table(["or", ["knight", 0], ["knight", 1]], 2))
    '0b1110'
    """
    everywhere = (1 << (1 << n)) - 1
    operator, *parts = formula
    if operator == "knight":
        return _knights(parts[0], n)
    if operator == "knave":
        return everywhere ^ _knights(parts[0], n)
    tables = [truth_table(part, n) for part in parts]
    if operator == "not":
        return everywhere ^ tables[0]
    if operator == "imply":
        return (everywhere ^ tables[0]) | tables[1]
    if operator == "iff":
        return everywhere ^ tables[0] ^ tables[1]
    result = tables[0]
    for table in tables[1:]:
        result = result & table if operator == "and" else result | table
    return result


def solutions(statements: Sequence[Formula]) -> list[list[bool]]:
    """Every assignment (True: knight) in which exactly the knights' statements hold.

    >>> solutions([["not", ["knight", 1]], ["iff", ["knight", 1], ["knave", 0]]])  # Zoey and Oliver
    [[False, True]]
    """
    n = len(statements)
    everywhere = consistent = (1 << (1 << n)) - 1
    for person, statement in enumerate(statements):
        consistent &= everywhere ^ _knights(person, n) ^ truth_table(statement, n)
    return [[bool(a >> i & 1) for i in range(n)] for a in range(1 << n) if consistent >> a & 1]


def truth(formula: Formula, roles: Sequence[bool | None]) -> bool | None:
    """The formula's truth when only some roles are known (Kleene's three values): None where it is still open."""
    operator, *parts = formula
    if operator in LEAVES:
        role = roles[parts[0]]
        return None if role is None else role == (operator == "knight")
    values = [truth(part, roles) for part in parts]
    if operator == "not":
        return None if values[0] is None else not values[0]
    if operator == "iff":
        return None if None in values else values[0] == values[1]
    if operator == "imply":
        operator, values = "or", [None if values[0] is None else not values[0], values[1]]
    decisive = operator == "or"
    return decisive if decisive in values else None if None in values else not decisive


def random_formula(rng: Random, people: Sequence[int], max_depth: int, max_width: int, n_operators: int) -> Formula:
    """A formula about `people`, at most `max_depth` levels deep (a leaf is one level) with at most `n_operators`."""
    operator = rng.choice((None, *OPERATORS)) if max_depth > 1 and n_operators else None
    if operator is None:
        return [rng.choice(LEAVES), rng.choice(people)]
    width = (
        1 if operator == "not" else rng.randint(2, min(max_width, 2 * len(people))) if operator in ("and", "or") else 2
    )
    left = n_operators - 1
    parts: list[Formula] = []
    while len(parts) < width:
        part = random_formula(rng, people, max_depth - 1, max_width, left)
        if part not in parts:
            parts.append(part)
            left -= count_operators(part)
    return [operator, *parts]


def count_operators(formula: Formula) -> int:
    """How many operators the formula has."""
    return 0 if formula[0] in LEAVES else 1 + sum(count_operators(part) for part in formula[1:])


def leaf_paths(formula: Formula, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Where the leaves are: the indices that lead to each."""
    if formula[0] in LEAVES:
        yield path
    else:
        for place, part in enumerate(formula[1:], start=1):
            yield from leaf_paths(part, (*path, place))


def replaced(formula: Formula, path: tuple[int, ...], leaf: Formula) -> Formula:
    """The formula with another leaf at `path`."""
    if not path:
        return leaf
    return [replaced(part, path[1:], leaf) if place == path[0] else part for place, part in enumerate(formula)]


def renumbered(formula: Formula, numbers: Sequence[int]) -> Formula:
    """The formula with person j called numbers[j]."""
    if formula[0] in LEAVES:
        return [formula[0], numbers[formula[1]]]
    return [formula[0], *(renumbered(part, numbers) for part in formula[1:])]


def canonical(statements: Sequence[Formula]) -> str:
    """One text for all puzzles that differ only in names, in the order of the people, or in that of and, or, iff.

    Colour refinement, then every way to break what ties remain, and the smallest text.
    """
    colours = _refined(statements, [0] * len(statements))
    tied = [c for c in sorted(set(colours)) if colours.count(c) > 1]
    return min(_texts(statements, colours, tied))


def _texts(statements: Sequence[Formula], colours: list[int], tied: list[int]) -> Iterator[str]:
    if not tied:
        order = sorted(range(len(statements)), key=colours.__getitem__)
        yield ";".join(_shape(statements[person], colours) for person in order)
        return
    for person in (i for i, colour in enumerate(colours) if colour == tied[0]):
        first = [2 * colour + (colour == tied[0] and i != person) for i, colour in enumerate(colours)]
        finer = _refined(statements, first)
        yield from _texts(statements, finer, [c for c in sorted(set(finer)) if finer.count(c) > 1])


def _refined(statements: Sequence[Formula], colours: list[int]) -> list[int]:
    """Tell people apart by what they say of whom, until nothing new comes of it."""
    while True:
        marks = [(colour, _shape(statement, colours)) for colour, statement in zip(colours, statements, strict=True)]
        ranks = {mark: rank for rank, mark in enumerate(sorted(set(marks)))}
        finer = [ranks[mark] for mark in marks]
        if len(ranks) == len(set(colours)):
            return finer
        colours = finer


def _shape(formula: Formula, colours: Sequence[int]) -> str:
    operator, *parts = formula
    if operator in LEAVES:
        return f"{operator} {colours[parts[0]]}"
    shapes = [_shape(part, colours) for part in parts]
    return f"{operator}({','.join(sorted(shapes) if operator in COMMUTATIVE else shapes)})"
