"""Flexible matching: any of the answers that a completion can be read to give."""

from __future__ import annotations

from typing import Any

from fiducial.core.answers import EXTRACTORS, ORDER, Extracted, extract_answer, normalize_answer, readings
from fiducial.core.types import Score
from fiducial.rewards.verdicts import Verifier, gold_of, score


class Flex(Verifier):
    r"""Whether any extractor finds the row's `answer` in the completion: the tag, the box, `####`, the sentence, or the
    last number, each on its own. As evaluations of MATH and GSM8K with "flexible extraction" do.

    An answer matches as normalised text or as the same number. Lenient on purpose, for models that were not told how to
    mark an answer: a completion may match by its last number although it marks another. As a reward to train on, use
    `math` or `numeric`, which hold a policy to one answer.

    >>> Flex()([r"\boxed{8}, I mean 7"], [{"answer": "7"}])[0].why
    "number: '7', gold '7'"
    """

    name = "flex"

    def __init__(self, *, extractors: tuple[str, ...] = ORDER):
        unknown = [name for name in extractors if name not in EXTRACTORS]
        if unknown or not extractors:
            raise ValueError(f"extractors must be some of {', '.join(EXTRACTORS)}; they are {list(extractors)}")
        self.extractors = tuple(extractors)

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        gold = gold_of(row)
        if isinstance(gold, Score):
            return gold
        answers = self.answers(completion)
        for name, answer in answers.items():
            if _same(answer, gold):
                return score("correct", f"{name}: {answer[:80]!r}, gold {gold[:80]!r}")
        if not answers:
            return score("unparseable", "no extractor finds an answer")
        told = ", ".join(f"{name} {answer[:40]!r}" for name, answer in answers.items())
        return score("wrong", f"{told}; gold {gold[:80]!r}")

    def answers(self, completion: str) -> dict[str, str]:
        """What each extractor finds; a number that is only a piece of an answer found before is none of its own."""
        found: list[Extracted] = []
        for name in self.extractors:
            answer = extract_answer(completion, (name,))
            if answer and not any(x.span[0] <= answer.span[0] and answer.span[1] <= x.span[1] for x in found):
                found.append(answer)
        return {answer.extractor: answer.text for answer in found}


def _same(answer: str, gold: str) -> bool:
    if normalize_answer(answer) == normalize_answer(gold):
        return True
    return bool(set(readings(answer)) & set(readings(gold)))
