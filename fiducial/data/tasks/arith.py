"""Chained quantities in English, plain sums and products modulo m; and teachers who make mistakes.

    Gus has 17. Dee has 8 more than Gus. Dee is 5 short of Ana. How many does Ana have?

The last comparison is *reversed*: it says something of the known person, so "short" asks for an addition. Children and
adults get such sentences wrong far more often than the others (Lewis & Mayer 1987, doi:10.1037/0022-0663.79.4.363).
Where most teachers slip, as in `slip`, the most likely line is wrong: imitation, even greedy, is no better than its
teachers, while a verifier tells it from the right one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from random import Random
from typing import Any

from fiducial.core.answers import read_number
from fiducial.core.types import CORRECT, Problem, Score
from fiducial.data.tasks.base import Setting, Task, completion, join_digits

NAMES = ("Gus", "Dee", "Ana", "Ben", "Kim", "Leo", "Mia", "Ned", "Pia", "Sam", "Tom", "Zoe")
OPERATIONS = (
    "more",
    "fewer",
    "twice",
    "half",
    "three times",
    "together",
)  # the setting `operations` takes the first so many
SLIPS = ("none", "reversed", "subtract", "distractor", "carry")
OPPOSITE = {"+": "-", "-": "+", "*": "/", "/": "*"}

DIFFICULTY = {
    "style": Setting(
        "chain", doc="quantities in English, a plain sum, or a product modulo m", choices=("chain", "sum", "mod")
    ),
    "steps": Setting(3, 1, 8, "computations from the first number to the answer"),
    "spread": Setting(0, 0, 7, "draw the steps from steps - spread to steps"),
    "max_number": Setting(99, 9, 9999, "no quantity is larger"),
    "min_start": Setting(1, 1, 9999, "chain: the first number is at least this"),
    "max_start": Setting(9999, 1, 9999, "chain: the first number is at most this"),
    "max_change": Setting(9, 2, 999, "chain: the largest number in 'N more' and 'N fewer', from 2"),
    "operations": Setting(4, 2, 6, f"chain: how many of {', '.join(OPERATIONS)}"),
    "reversed_fraction": Setting(
        0.25, 0.0, 1.0, "chain: share of more and fewer said of the person who is known already"
    ),
    "reversed_wording": Setting(
        "ahead", doc="chain: 'Gus is 5 ahead of Ana', or 'Gus has 5 more than Ana'", choices=("ahead", "than")
    ),
    "branch_fraction": Setting(0.0, 0.0, 1.0, "chain: share of comparisons with any earlier person, not the last one"),
    "distractors": Setting(1, 0, 3, "chain: at most so many sentences that do not matter"),
    "modulus": Setting(97, 2, 997, "mod: the modulus"),
}


def apply(sign: str, left: int, right: int) -> int:
    """left sign right in whole numbers, rounded down."""
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "*":
        return left * right
    return left % right if sign == "mod" else left // right


# A problem's plan is a list of steps {who, left, sign, right, reversed, instead}: `left` and `right` are numbers or the
# names of earlier results, `who` names this one, `instead` is whose number is in the way when a distractor precedes.


def make(rng: Random, *, style: str, steps: int, spread: int, **settings: Any) -> Problem:
    """One problem of the style; `fields` has the `given` numbers by name and the `plan` of steps."""
    steps -= rng.randint(0, min(spread, steps - 1))
    writer = {"chain": _chain, "sum": _sum, "mod": _mod}[style]
    prompt, given, plan = writer(rng, steps, settings)
    values = dict(given)
    for step in plan:
        values[step["who"]] = apply(step["sign"], _value(step["left"], values), _value(step["right"], values))
    answer = values[plan[-1]["who"]]
    return Problem(
        prompt, {"answer": str(answer), "key": canonical(prompt), "style": style, "given": given, "plan": plan}
    )


def canonical(prompt: str) -> str:
    """The text with its people called P0, P1, ... in the order in which they appear.

    >>> canonical("Gus has 3. Ana has 2 more than Gus.") == canonical("Zoe has 3. Gus has 2 more than Zoe.")
    True
    """
    seen: dict[str, str] = {}
    return re.sub(rf"\b({'|'.join(NAMES)})\b", lambda name: seen.setdefault(name.group(), f"P{len(seen)}"), prompt)


def _value(source: int | str, values: Mapping[str, int]) -> int:
    return values[source] if isinstance(source, str) else source


def _step(
    who: str, left: int | str, sign: str, right: int | str, is_reversed: bool = False, instead: str = ""
) -> dict[str, Any]:
    return {"who": who, "left": left, "sign": sign, "right": right, "reversed": is_reversed, "instead": instead}


def _chain(rng: Random, steps: int, settings: Mapping[str, Any]) -> tuple[str, dict[str, int], list[dict[str, Any]]]:
    stray = rng.randint(0, settings["distractors"])
    people = rng.sample(NAMES, 1 + steps + stray)
    people, strangers = people[: 1 + steps], people[1 + steps :]
    slots = sorted(rng.randint(1, steps) for _ in strangers)  # the step that a distractor precedes
    values = {people[0]: rng.randint(settings["min_start"], min(settings["max_start"], settings["max_number"]))}
    given = dict(values)
    sentences, plan = [f"{people[0]} has {values[people[0]]}."], []
    for index in range(1, steps + 1):
        instead = ""
        for stranger in (name for name, slot in zip(strangers, slots, strict=True) if slot == index):
            sentence, given[stranger] = _distractor(rng, stranger, values, settings)
            sentences.append(sentence)
            instead = stranger
        earlier = people[:index]
        known = rng.choice(earlier) if rng.random() < settings["branch_fraction"] else earlier[-1]
        sentence, step, value = _comparison(rng, people[index], known, values, settings)
        values[people[index]] = value
        sentences.append(sentence)
        plan.append({**step, "instead": instead})
    return " ".join(sentences) + f" How many does {people[-1]} have?", given, plan


def _distractor(rng: Random, who: str, values: Mapping[str, int], settings: Mapping[str, Any]) -> tuple[str, int]:
    """A sentence about somebody whom nobody is compared with, and how many that person has."""
    if rng.random() < 0.5:
        number = rng.randint(1, settings["max_number"])
        return f"{who} has {number}.", number
    sentence, _, value = _comparison(rng, who, rng.choice(list(values)), values, settings)
    return sentence, value


def _comparison(
    rng: Random, who: str, known: str, values: Mapping[str, int], settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any], int]:
    """A sentence that fixes `who` by `known`, its step, and the value, which is from 1 to max_number."""
    while True:
        operation = rng.choice(OPERATIONS[: settings["operations"]])
        sentence, step = _phrase(rng, operation, who, known, values, settings)
        left, right = _value(step["left"], values), _value(step["right"], values)
        value = apply(step["sign"], left, right)
        if 1 <= value <= settings["max_number"] and (step["sign"] != "/" or left % right == 0):
            return sentence, step, value


def _phrase(
    rng: Random, operation: str, who: str, known: str, values: Mapping[str, int], settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    if operation in ("more", "fewer"):
        amount = rng.randint(2, settings["max_change"])
        is_reversed = rng.random() < settings["reversed_fraction"]
        adds = (operation == "more") != is_reversed
        step = _step(who, known, "+-"[not adds], amount, is_reversed)
        if not is_reversed:
            return f"{who} has {amount} {operation} than {known}.", step
        if settings["reversed_wording"] == "than":
            return f"{known} has {amount} {operation} than {who}.", step
        return f"{known} is {amount} {'ahead' if operation == 'more' else 'short'} of {who}.", step
    if operation == "together":
        second = rng.choice(list(values))
        return f"{who} has as many as {known} and {second} together.", _step(who, known, "+", second)
    sign, right = {"twice": ("*", 2), "three times": ("*", 3), "half": ("/", 2)}[operation]
    return f"{who} has {operation} as many as {known}.", _step(who, known, sign, right)


def _sum(rng: Random, steps: int, settings: Mapping[str, Any]) -> tuple[str, dict[str, int], list[dict[str, Any]]]:
    total = first = rng.randint(1, settings["max_number"])
    text, plan, left = str(first), [], first
    for index in range(steps):
        adds = rng.random() < 0.5
        if total == settings["max_number"] or total == 1:  # there is room on one side only
            adds = total == 1
        term = rng.randint(1, settings["max_number"] - total if adds else total - 1)
        sign = "+" if adds else "-"
        total = apply(sign, total, term)
        text += f" {sign} {term}"
        plan.append(_step(f"#{index}", left, sign, term))
        left = f"#{index}"
    return f"What is {text}?", {}, plan


def _mod(rng: Random, steps: int, settings: Mapping[str, Any]) -> tuple[str, dict[str, int], list[dict[str, Any]]]:
    factors = [rng.randint(2, settings["max_number"]) for _ in range(steps + 1)]
    plan, left = [], factors[0]
    for index, factor in enumerate(factors[1:]):
        plan.append(_step(f"#{2 * index}", left, "*", factor))
        plan.append(_step(f"#{2 * index + 1}", f"#{2 * index}", "mod", settings["modulus"]))
        left = f"#{2 * index + 1}"
    return f"What is {' * '.join(map(str, factors))} mod {settings['modulus']}?", {}, plan


def _line(step: Mapping[str, Any], left: int, sign: str, right: int, value: int) -> str:
    label = "" if step["who"].startswith("#") else f"{step['who']} = "
    return f"{label}{left} {sign} {right} = {value}."


def think(problem: Problem, rng: Random) -> str:
    """One line per step, such as `Dee = 17 + 8 = 25.`"""
    values, lines = dict(problem.fields["given"]), []
    for step in problem.fields["plan"]:
        left, right = _value(step["left"], values), _value(step["right"], values)
        values[step["who"]] = value = apply(step["sign"], left, right)
        lines.append(_line(step, left, step["sign"], right, value))
    return "\n".join(lines)


def slip(
    problem: Problem,
    rng: Random,
    *,
    slip_rate: float = 0.1,
    systematic: str = "reversed",
    systematic_rate: float = 0.65,
) -> str:
    """The completion of one imperfect teacher.

    Each line goes wrong by chance with probability `slip_rate` (a wrong sum, operation or person). Besides, a teacher
    is with probability `systematic_rate` one of those who make the mistake `systematic` wherever it can be made:
    "reversed" (adds where a reversed comparison asks to subtract, and the other way round), "subtract" (adds instead),
    "distractor" (takes the number of the sentence before, which does not matter), "carry" (forgets the carry of the
    ones in an addition) or "none".
    """
    if systematic not in SLIPS:
        raise ValueError(f"teacher.systematic must be one of {', '.join(SLIPS)}; it is {systematic!r}")
    for name, rate in (("slip_rate", slip_rate), ("systematic_rate", systematic_rate)):
        if not 0 <= rate <= 1:
            raise ValueError(f"teacher.{name} must be from 0 to 1; it is {rate}")
    habit = systematic if rng.random() < systematic_rate else "none"
    values, lines = dict(problem.fields["given"]), []
    for step in problem.fields["plan"]:
        accident = rng.choice(("sum", "operation", "person")) if rng.random() < slip_rate else ""
        line, values[step["who"]] = _sloppy_line(step, values, rng, habit, accident)
        lines.append(line)
    return completion("\n".join(lines), str(values[problem.fields["plan"][-1]["who"]]))


def _sloppy_line(
    step: Mapping[str, Any], values: Mapping[str, int], rng: Random, habit: str, accident: str
) -> tuple[str, int]:
    """The line of a teacher with that habit and accident, and the value it comes to (never below 0)."""
    left, sign, right = _value(step["left"], values), step["sign"], _value(step["right"], values)
    if (habit == "reversed" and step["reversed"]) or (habit == "subtract" and sign == "-"):
        sign = OPPOSITE[sign]
    if habit == "distractor" and step["instead"]:
        left = values[step["instead"]]
    others = [values[name] for name in sorted(values) if name != step["left"]]
    if accident == "person" and others:
        left = rng.choice(others)
    elif accident == "operation" and sign in OPPOSITE:
        sign = OPPOSITE[sign]
    value = apply(sign, left, right)
    if habit == "carry" and sign == "+" and left % 10 + right % 10 >= 10:
        value -= 10
    if accident == "sum" or (accident == "person" and not others) or (accident == "operation" and sign not in OPPOSITE):
        value += rng.choice((-10, -2, -1, 1, 2, 10))
    value = max(0, value)
    return _line(step, left, sign, right, value), value


def judge(text: str, fields: Mapping[str, Any]) -> Score:
    """Compare as exact numbers."""
    number = read_number(join_digits(text))
    if number is None:
        return Score(None, "unparseable", f"the answer {text[:40]!r} is not a number")
    if number == Fraction(fields["answer"]):
        return CORRECT
    return Score(0.0, "wrong", f"the answer is {fields['answer']}, not {text[:40]}")


def guess(*, style: str, max_number: int, modulus: int, **_: Any) -> float:
    """A number drawn evenly from those that can be answers."""
    return 1 / (modulus if style == "mod" else max_number)


TASK = Task(
    id="arith",
    summary="chained quantities in English, sums, products modulo m",
    make=make,
    judge=judge,
    guess=guess,
    think=think,
    slip=slip,
    difficulty=DIFFICULTY,
)
