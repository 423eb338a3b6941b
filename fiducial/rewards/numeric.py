"""Equality of numbers, exact or within a tolerance."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from fiducial.core.answers import Percent, extract_answer, readings
from fiducial.core.types import Score
from fiducial.rewards.verdicts import Verifier, gold_of, score


class Numeric(Verifier):
    """Whether the completion's number equals the row's `answer`: |a - gold| <= max(abs_tol, rel_tol |gold|).

    Values are exact fractions, so with no tolerance 0.1 equals 1/10 and nothing else. An answer that holds two numbers
    ("3 or 4") is unparseable, never half right. With `percent="either"` the text "50%" may stand for 50 or for 1/2.

    >>> Numeric()(["48 + 24 = 72, so the answer is 72 clips."], [{"answer": "#### 72"}])[0].verdict
    'correct'
    """

    name = "numeric"

    def __init__(self, *, rel_tol: float = 0.0, abs_tol: float = 0.0, percent: Percent = "either"):
        if rel_tol < 0 or abs_tol < 0:
            raise ValueError(f"rel_tol and abs_tol must be 0 or more; they are {rel_tol} and {abs_tol}")
        if percent not in ("either", "hundredth"):
            raise ValueError(f"percent must be 'either' or 'hundredth'; it is {percent!r}")
        self.rel_tol, self.abs_tol = Fraction(str(rel_tol)), Fraction(str(abs_tol))
        self.percent: Percent = percent

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        gold = gold_of(row)
        if isinstance(gold, Score):
            return gold
        wanted = readings(gold, self.percent)
        if not wanted:
            return score("skipped", f"the gold answer {gold[:80]!r} is not a number")
        found = extract_answer(completion)
        if found is None:
            return score("unparseable", "the completion states no answer")
        given = readings(found.text, self.percent)
        if not given:
            return score("unparseable", f"the answer {found.text[:80]!r} is not one number")
        right = any(self._equal(a, g) for a in given for g in wanted)
        return score("correct" if right else "wrong", f"answer {found.text[:80]!r}, gold {gold[:80]!r}")

    def _equal(self, answer: Fraction, gold: Fraction) -> bool:
        return abs(answer - gold) <= max(self.abs_tol, self.rel_tol * abs(gold))
