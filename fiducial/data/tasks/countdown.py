"""Countdown: reach a target from given numbers with + - * / and parentheses. Exact arithmetic, every problem solvable.

Expressions are read by the small parser below (shunting-yard, Dijkstra 1961), never by `eval`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

from fiducial.core.types import CORRECT, Problem, Score
from fiducial.data.tasks.base import Setting, Task, join_digits

STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}  # how tightly an operator binds
SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
MAX_CHARACTERS = 500  # of an answer; also bounds its numbers and depth

DIFFICULTY = {
    "numbers": Setting(4, 2, 6, "how many numbers are given"),
    "max_number": Setting(25, 9, 100, "the largest that a given number can be"),
    "target_max": Setting(100, 10, 1000, "the largest that the target can be"),
    "use_all": Setting(True, doc="each number exactly once; otherwise at most once"),
}


class Expression(NamedTuple):
    """A whole number on the way to a target, and how it was made."""

    value: int
    text: str
    strength: int = 3  # of its outermost operator; a bare number is the strongest


def join(sign: str, left: Expression, right: Expression) -> Expression | None:
    """left sign right with the parentheses it needs; None unless the value is a positive whole number.

    >>> join("*", Expression(3, "1 + 2", 1), Expression(4, "4")).text
    '(1 + 2) * 4'
    """
    if sign == "/" and left.value % right.value:
        return None
    value = int(_apply(sign, Fraction(left.value), Fraction(right.value)))
    if value < 1:
        return None
    strength = STRENGTH[sign]
    tight = left.text if left.strength >= strength else f"({left.text})"
    loose = right.strength > strength or (right.strength == strength and sign in "+*")
    return Expression(value, f"{tight} {sign} {right.text if loose else f'({right.text})'}", strength)


def playout(rng: Random, numbers: Sequence[int]) -> tuple[Expression, list[str]]:
    """Join the numbers at random until one is left: the expression, and its steps such as '3 + 4 = 7'."""
    pool, steps = [Expression(number, str(number)) for number in numbers], []
    while len(pool) > 1:
        first, second = rng.sample(range(len(pool)), 2)
        left, right, sign = pool[first], pool[second], rng.choice("+-*/")
        joined = join(sign, left, right)
        if joined is not None:
            pool = [one for place, one in enumerate(pool) if place not in (first, second)] + [joined]
            steps.append(f"{left.value} {sign} {right.value} = {joined.value}")
    return pool[0], steps


def make(rng: Random, *, numbers: int, max_number: int, target_max: int, use_all: bool) -> Problem:
    """One solvable problem; `answer` is one solution of possibly many."""
    while True:
        given = [rng.randint(1, max_number) for _ in range(numbers)]
        used = given if use_all else rng.sample(given, rng.randint(2, numbers))
        solution, _ = playout(rng, used)
        if solution.value <= target_max:
            break
    rule = "each number exactly once" if use_all else "each number at most once"
    shown = ", ".join(map(str, given))
    prompt = f"Use the numbers {shown} to make {solution.value}. Use {rule}, with + - * / and parentheses."
    key = f"{','.join(map(str, sorted(given)))}->{solution.value}"
    fields = {"answer": solution.text, "key": key, "numbers": given, "target": solution.value, "use_all": use_all}
    return Problem(prompt, fields)


def think(problem: Problem, rng: Random) -> str:
    """One to three attempts that miss the target, then the solution; one line each."""
    numbers, target = problem.fields["numbers"], problem.fields["target"]
    lines = []
    for _ in range(rng.randint(1, 3)):
        reached, steps = playout(rng, numbers)
        if reached.value != target:
            lines.append(f"{'. '.join(steps)}. Not {target}.")
    _, _, steps = evaluate(parse(problem.fields["answer"]))
    lines.append(f"{'. '.join(steps)}. That is {target}.")
    return "\n".join(lines)


def parse(text: str) -> list[int | str]:
    """An expression of whole numbers, + - * / and parentheses as a list in reverse Polish order.

    Raises a ValueError that says what cannot be read. A sign before a number is not part of the game.

    >>> parse("(1 + 2) * 3")
    [1, 2, '+', 3, '*']
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the expression is longer than {MAX_CHARACTERS} characters")
    output: list[int | str] = []
    waiting: list[str] = []
    after_operand = False
    for token in re.findall(r"[0-9]+|\S", join_digits(text.translate(SPELLINGS))):
        opens = token == "(" or token[0] in "0123456789"
        if (token not in STRENGTH and token != ")" and not opens) or opens == after_operand:
            raise ValueError(f"{token[:20]!r} cannot stand where it does in {text[:60]!r}")
        if token == "(":
            waiting.append(token)
        elif token == ")":
            while waiting and waiting[-1] != "(":
                output.append(waiting.pop())
            if not waiting:
                raise ValueError(f"a parenthesis is closed that was not opened in {text[:60]!r}")
            waiting.pop()
        elif token in STRENGTH:
            while waiting and STRENGTH.get(waiting[-1], 0) >= STRENGTH[token]:
                output.append(waiting.pop())
            waiting.append(token)
        else:
            output.append(int(token))
        after_operand = token == ")" or token[0] in "0123456789"
    if not after_operand or "(" in waiting:
        raise ValueError(f"the expression {text[:60]!r} is not complete")
    return output + waiting[::-1]


def evaluate(expression: Sequence[int | str]) -> tuple[Fraction, list[int], list[str]]:
    """The value of a parsed expression, the numbers it uses, and its steps. May raise ZeroDivisionError.

    >>> evaluate(parse("6 / (1 + 3)"))
    (Fraction(3, 2), [6, 1, 3], ['1 + 3 = 4', '6 / 4 = 3/2'])
    """
    stack: list[Fraction] = []
    steps = []
    for token in expression:
        if isinstance(token, int):
            stack.append(Fraction(token))
            continue
        right, left = stack.pop(), stack.pop()
        stack.append(_apply(token, left, right))
        steps.append(f"{left} {token} {right} = {stack[-1]}")
    return stack[0], [token for token in expression if isinstance(token, int)], steps


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left / right


def judge(text: str, fields: Mapping[str, Any]) -> Score:
    """Read the expression, check which numbers it uses, and compare its exact value with the target."""
    try:
        expression = parse(text)
    except ValueError as error:
        return Score(None, "unparseable", str(error))
    used, given = Counter(t for t in expression if isinstance(t, int)), Counter(fields["numbers"])
    if extra := used - given:
        return Score(0.0, "wrong", f"{_short(min(extra))} is used more often than it is given")
    if fields["use_all"] and (left_over := given - used):
        return Score(0.0, "wrong", f"{min(left_over)} is not used as often as it is given")
    try:
        value, _, _ = evaluate(expression)
    except ZeroDivisionError:
        return Score(0.0, "wrong", "the expression divides by zero")
    return (
        CORRECT if value == fields["target"] else Score(0.0, "wrong", f"the value is {value}, not {fields['target']}")
    )


def _short(number: int) -> str:
    return str(number) if number < 10**12 else "a number of more than 12 digits"


@lru_cache(maxsize=64)
def _measured_chance(**settings: Any) -> float:
    rng, hits, draws = Random(0), 0, 4000
    for _ in range(draws):
        problem = make(rng, **settings)
        hits += playout(rng, problem.fields["numbers"])[0].value == problem.fields["target"]
    return hits / draws


def guess(**settings: Any) -> float:
    """A random expression over all the numbers: the share that hit their target, measured on 4000 fixed draws."""
    return _measured_chance(**settings)


TASK = Task(
    id="countdown",
    summary="reach a target from given numbers with + - * /",
    make=make,
    judge=judge,
    guess=guess,
    think=think,
    needs=("numbers", "target", "use_all"),
    difficulty=DIFFICULTY,
)
