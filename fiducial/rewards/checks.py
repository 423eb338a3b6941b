"""The checks that can hang, as the worker processes run them. Loaded there by file, so that no child imports torch."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any

from fiducial.core.answers import MATH, Percent, extract_answer, parse_number, readings

TOLERANCE = Fraction(1, 10**6)  # relative, for two numbers of which at least one is not an integer

_DENIES = re.compile(r"\bnot\b|\\neq?\b|\\neg\b")
_CLOSED = {"\\}": "set", ")": "ordered", "]": "ordered"}


def regex(completion: str, pattern: str, mode: str, flags: int) -> tuple[str, str]:
    """(verdict, why) of a pattern on the whole completion; `mode` is "search" or "fullmatch"."""
    try:
        compiled = re.compile(pattern, flags)
    except re.error as error:
        return "skipped", f"the pattern {pattern!r} is not valid: {error}"
    match = getattr(compiled, mode)(completion)
    if match is None:
        return "wrong", "no match"
    return "correct", f"matched {_short(match[0])}"


def prepare_math() -> None:
    """Import math-verify and warm its parser, so that no row pays for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off: ours is outside
    _verify(_parse("x + 1", "either"), _parse("1 + x", "either"))


def math(completion: str, gold: str, percent: Percent = "either") -> tuple[str, str]:
    """(verdict, why) of the completion's answer against the gold answer.

    Two numbers are compared exactly, with a relative tolerance of 1e-6 when one of them is not an integer (math-verify
    rounds to six decimals, where 1e-7 equals 2e-7). Everything else goes through math-verify, gold first.
    """
    values = readings(gold, percent) if parse_number(gold) is not None else ()
    expected = None if values else _parse(gold, percent)
    if not values and not expected:
        return "skipped", f"the gold answer {_short(gold)} cannot be parsed"
    answer = _answer(completion)
    if answer is None:
        return "unparseable", "the completion states no answer"
    why = f"answer {_short(answer)}, gold {_short(gold)}"
    if _DENIES.search(answer) and not _DENIES.search(gold):
        return "wrong", f"{why}: it says what the answer is not"
    if values and (given := readings(answer, percent)):
        return _verdict(any(_close(a, g) for a in given for g in values), why)
    actual = _parse(answer, percent)
    if not actual:
        return "unparseable", f"the answer {_short(answer)} cannot be parsed"
    if _kind(gold) and _kind(answer) and _kind(gold) != _kind(answer):
        return "wrong", f"{why}: one is a set, the other an interval or a tuple"
    return _verdict(_verify(expected or _parse(gold, percent), actual), why)


def _answer(completion: str) -> str | None:
    """The stated answer; a completion of one or two words ("Evelyn", "no solution") is one without further marks."""
    found = extract_answer(completion, MATH)
    if found:
        return found.text
    words = completion.split()
    return completion.strip() if 1 <= len(words) <= 2 else None


def _verdict(holds: bool, why: str) -> tuple[str, str]:
    return ("correct" if holds else "wrong"), why


def _close(a: Fraction, b: Fraction) -> bool:
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def _kind(text: str) -> str | None:
    r"""Whether the outer brackets say `\{set\}` or (ordered). math-verify takes "(0,1)" and "\{0,1\}" as equal."""
    text = re.sub(r"\\(?:left|right|big|Big)\s?", "", text).strip()
    opened = "set" if text.startswith("\\{") else "ordered" if text.startswith(("(", "[")) else None
    closed = next((kind for end, kind in _CLOSED.items() if text.endswith(end)), None)
    return opened if opened == closed else None


def _parse(text: str, percent: Percent) -> list:
    r"""What math-verify makes of an answer, as sympy expressions; empty when it can make nothing of it.

    The text is parsed as the inside of a box, as LaTeX only, and whole or not at all: math-verify would otherwise find
    the 2 in "2x", and in a formula that it cannot parse some fraction that it can. It takes E for the number e where
    an index says that it is a variable, so that one gets another name.
    """
    from math_verify import LatexExtractionConfig, parse

    if percent == "hundredth":  # math-verify takes 50% for 50 and for 1/2
        text = re.sub(r"(\d+(?:\.\d+)?)\s?\\?%", r"\\frac{\1}{100}", text)
    text = re.sub(r"(?<=\d)\\[,!;: ](?=\d)", "", text)
    text = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?!\w)", r"\1 \\times 10^{\2}", text)
    text = re.sub(r"(?<![A-Za-z\\])E(?=\s?_)", r"\\Xi ", text)
    config = LatexExtractionConfig(boxed_match_priority=0)
    whole: Any = {"fallback_mode": "no_fallback", "extraction_mode": "first_match", "parsing_timeout": None}
    return parse(f"\\boxed{{{text}}}", [config], **whole)


def _verify(gold: list, answer: list) -> bool:
    from math_verify import verify

    return verify([_as_set(x) for x in gold], [_as_set(x) for x in answer], timeout_seconds=None, raise_on_error=True)


def _as_set(parsed: Any) -> Any:
    """What "x <= 3" or "1 < x <= 3" says of x as an interval, another way of writing it; anything else as it is."""
    from sympy import And
    from sympy.core.relational import GreaterThan, LessThan, StrictGreaterThan, StrictLessThan

    sides = parsed.args if isinstance(parsed, And) else (parsed,)
    ordered = (GreaterThan, LessThan, StrictGreaterThan, StrictLessThan)
    plain = all(
        isinstance(side, ordered) and {side.lhs.is_Symbol, side.rhs.is_Symbol} == {True, False} for side in sides
    )
    if plain and len({symbol for side in sides for symbol in side.free_symbols}) == 1:
        return parsed.as_set()
    return parsed


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
