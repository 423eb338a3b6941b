"""Equality of texts after normalisation."""

from __future__ import annotations

from typing import Any

from fiducial.core.answers import MARKED, extract_answer, normalize_answer
from fiducial.core.types import Score
from fiducial.rewards.verdicts import Verifier, gold_of, score


class Exact(Verifier):
    """Whether the completion's answer equals the row's `answer`, up to case, outer marks, final period and white space.

    The answer is what the completion marks as such (tag, box, `####`, "the answer is"), otherwise the whole completion;
    with `whole` it is always the whole completion, compared with the gold answer as it stands.

    >>> Exact()(["The answer is Paris."], [{"answer": "paris"}])[0].verdict
    'correct'
    """

    name = "exact"

    def __init__(self, *, ignore_case: bool = True, whole: bool = False):
        self.ignore_case, self.whole = ignore_case, whole

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        gold = gold_of(row)
        if isinstance(gold, Score):
            return gold
        if self.whole:
            gold = row["answer"] if isinstance(row["answer"], str) else gold
        found = None if self.whole else extract_answer(completion, MARKED)
        answer = normalize_answer(found.text if found else completion, self.ignore_case)
        if not answer:
            return score("unparseable", "the completion is empty")
        wanted = normalize_answer(gold, self.ignore_case)
        why = f"answer {answer[:80]!r}, gold {wanted[:80]!r}"
        return score("correct" if answer == wanted else "wrong", why)
