"""Knights and Knaves (Xie et al. 2024, arXiv:2410.23123): knights tell the truth, knaves lie; who is what?

Statements are drawn until the puzzle has exactly one solution. The answer is read as in Logic-RL (Xie et al. 2025,
arXiv:2502.14768): exactly one role for each person named, or it counts as unparseable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from fiducial.core.roles import parse_roles
from fiducial.core.types import CORRECT, Problem, Score
from fiducial.data.tasks import kk_logic as logic
from fiducial.data.tasks.base import Setting, Task
from fiducial.data.tasks.kk_logic import Formula

NAMES = (
    "Zoey Oliver Liam Emma Noah Ava Ethan Mia Lucas Lily Jack Ella Henry Grace Owen Chloe Logan Ruby Leo Alice".split()
)  # fmt: skip

DIFFICULTY = {
    "n_people": Setting(3, 2, 8, "how many people"),
    "max_depth": Setting(2, 1, 4, "levels of a statement; 'Zoey is a knight' is one level, 'not', 'and', ... add one"),
    "max_width": Setting(2, 2, 4, "the most parts of an 'and' or 'or'"),
    "n_operators": Setting(4, 0, 4, "the most operators in one statement"),
    "allow_self": Setting(True, doc="people may speak of themselves"),
}


def make(rng: Random, *, n_people: int, max_depth: int, max_width: int, n_operators: int, allow_self: bool) -> Problem:
    """One puzzle with exactly one solution."""
    names = rng.sample(NAMES, n_people)
    while True:
        statements = []
        for speaker in range(n_people):
            people = [j for j in range(n_people) if allow_self or j != speaker]
            statements.append(logic.random_formula(rng, people, max_depth, max_width, n_operators))
        if len(logic.solutions(statements)) == 1:
            return build(names, statements)


def build(names: Sequence[str], statements: Sequence[Formula], roles: Sequence[str] = logic.LEAVES) -> Problem:
    """The problem of these people and statements; `roles` are the words for who tells the truth and who lies."""
    found = logic.solutions(statements)
    if len(found) != 1:
        raise ValueError(f"the puzzle has {len(found)} solutions; it needs exactly one")
    truthful, liar = roles
    lines = [
        f"{truthful.capitalize()}s always tell the truth, {liar}s always lie. "
        f"Each of {', '.join(names[:-1])} and {names[-1]} is {_a(truthful)} or {_a(liar)}.",
        *(f"{name} says: {say(statement, names, roles)}." for name, statement in zip(names, statements, strict=True)),
        f"Who is {_a(truthful)} and who is {_a(liar)}?",
    ]
    fields = {
        "answer": render(found[0], names, roles),
        "key": logic.canonical(statements),
        "names": list(names),
        "statements": list(statements),
        "roles": list(roles),
        "solution": found[0],
    }
    return Problem("\n".join(lines), fields)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def say(formula: Formula, names: Sequence[str], roles: Sequence[str] = logic.LEAVES) -> str:
    """A formula in English; parts that have parts themselves stand in parentheses.

    >>> say(["iff", ["knight", 1], ["not", ["knave", 0]]], ["Zoey", "Oliver"])
    'Oliver is a knight if and only if Zoey is not a knave'
    """
    operator, *parts = formula
    if operator in logic.LEAVES:
        return f"{names[parts[0]]} is {_a(roles[operator == 'knave'])}"
    if operator == "not" and parts[0][0] in logic.LEAVES:
        return say(parts[0], names, roles).replace(" is ", " is not ", 1)
    texts = [say(part, names, roles) for part in parts]
    texts = [text if _simple(part) else f"({text})" for text, part in zip(texts, parts, strict=True)]
    if operator == "not":
        return f"it is not so that {texts[0]}"
    if operator == "imply":
        return f"if {texts[0]} then {texts[1]}"
    return {"and": " and ", "or": " or ", "iff": " if and only if "}[operator].join(texts)


def _simple(formula: Formula) -> bool:
    return formula[0] in logic.LEAVES or (formula[0] == "not" and formula[1][0] in logic.LEAVES)


def render(solution: Sequence[bool], names: Sequence[str], roles: Sequence[str] = logic.LEAVES) -> str:
    """An assignment (True: tells the truth) as an answer.

    >>> print(render([False, True], ["Zoey", "Oliver"]))
    (1) Zoey is a knave
    (2) Oliver is a knight
    """
    pairs = zip(names, solution, strict=True)
    return "\n".join(f"({i}) {name} is {_a(roles[not knight])}" for i, (name, knight) in enumerate(pairs, start=1))


def think(problem: Problem, rng: Random) -> str:
    """Suppose roles person by person, and go back at the first contradiction: one line per supposition."""
    fields = problem.fields
    lines: list[str] = []
    _search([None] * len(fields["names"]), 0, fields, rng, lines)
    return "\n".join([*lines, "Everything fits."])


def _search(roles: list[bool | None], person: int, fields: Mapping[str, Any], rng: Random, lines: list[str]) -> bool:
    """Try both roles of `person` and of all who follow; True when everybody's role fits what they say."""
    if person == len(roles):
        return True
    first = rng.random() < 0.5
    for knight in (first, not first):
        roles[person] = knight
        line = f"Suppose {_is(person, knight, fields)}."
        liar = _contradicted(roles, fields["statements"])
        if liar is None:
            lines.append(line)
            if _search(roles, person + 1, fields, rng, lines):
                return True
            lines.append(f"So it cannot be that {_is(person, knight, fields)}.")
        else:
            said = "false" if roles[liar] else "true"
            lines.append(
                f"{line} But {_is(liar, bool(roles[liar]), fields)} and what {fields['names'][liar]} says is {said}."
            )
    roles[person] = None
    return False


def _is(person: int, knight: bool, fields: Mapping[str, Any]) -> str:
    return f"{fields['names'][person]} is {_a(fields['roles'][not knight])}"


def _contradicted(roles: Sequence[bool | None], statements: Sequence[Formula]) -> int | None:
    """The first person whose role does not go with the truth of what they say."""
    for person, (role, statement) in enumerate(zip(roles, statements, strict=True)):
        if role is not None and logic.truth(statement, roles) is (not role):
            return person
    return None


def judge(text: str, fields: Mapping[str, Any]) -> Score:
    """Every person's role must be right."""
    names, roles = fields["names"], fields["roles"]
    try:
        stated = parse_roles(text, names, roles)
    except ValueError as error:
        return Score(None, "unparseable", str(error))
    mistaken = [name for name, said, true in zip(names, stated, fields["solution"], strict=True) if said != true]
    if not mistaken:
        return CORRECT
    return Score(
        0.0, "wrong", f"{len(names) - len(mistaken)} of {len(names)} roles are right; not that of {mistaken[0]}"
    )


def guess(*, n_people: int, **_: Any) -> float:
    """A coin per person."""
    return 2.0**-n_people


TASK = Task(
    id="kk",
    summary="knights and knaves: who tells the truth?",
    make=make,
    judge=judge,
    guess=guess,
    think=think,
    needs=("names", "roles", "solution"),
    difficulty=DIFFICULTY,
)
