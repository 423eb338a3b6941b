"""A language model's word on one completion as its reward, without pairs and without a reward model.

`AIScore` asks for a rating (d-RLAIF, Lee et al. 2023, arXiv:2309.00267): the reward is the mean of the scale under the
judge's probabilities of the ratings, normalised to add up to 1, and mapped to [-1, 1]. `AIYesNo` asks a question (a
generative reward model, Zhang et al. 2024, arXiv:2408.15240): the reward is P(yes) / (P(yes) + P(no)).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fiducial.core.types import Score
from fiducial.data.feedback.writer import PLACEHOLDER, fill, transcript
from fiducial.judges.asking import Answer, LMJudge, Question, read_choice, read_number, score_of
from fiducial.judges.output import output_of

RATE = """\
A response to a conversation follows. Rate it from {low}, the worst, to {high}, the best, by {criterion}.

[Conversation]
{prompt}

[Response]
{response}

{task}"""
RATING = "Rating:"
RATE_TASKS = {
    ("logprobs", False): f"Answer with a number from {{low}} to {{high}} only.\n{RATING}",
    ("logprobs", True): "Explain in a few sentences how good the response is.\nExplanation:",
    ("text", False): f"Answer with one line: '{RATING}' and a number from {{low}} to {{high}}.",
    ("text", True): "Explain in a few sentences how good the response is. Then end with one line: "
    f"'{RATING}' and a number from {{low}} to {{high}}.",
}
RATE_AGAIN = f"So how do you rate it? Answer with a number from {{low}} to {{high}} only.\n{RATING}"

DECIDE = """\
A response to a conversation follows. {criterion}

[Conversation]
{prompt}

[Response]
{response}

{task}"""
DECISION = "Answer:"
DECIDE_TASKS = {
    ("logprobs", False): f"Answer with yes or no only.\n{DECISION}",
    ("logprobs", True): "Explain in a few sentences.\nExplanation:",
    ("text", False): f"Answer with one line: '{DECISION} yes' or '{DECISION} no'.",
    ("text", True): f"Explain in a few sentences. Then end with one line: '{DECISION} yes' or '{DECISION} no'.",
}
DECIDE_AGAIN = f"So yes or no? Answer with one of the two words only.\n{DECISION}"


@dataclass(frozen=True)
class PointJudge(LMJudge):
    """A language model as a reward of one completion.

    reads: "whole", or "answer": what follows the thoughts (`output_of`); a completion that never comes to its answer
    is "unparseable". The template may name any field of a row; one that a row lacks makes it "skipped".
    """

    criterion: str = ""
    template: str = ""
    reads: Literal["whole", "answer"] = "whole"

    def __call__(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]], run: int = 0) -> list[Score]:
        began = time.perf_counter()
        found = self.votes(completions, rows, run)
        scores = [votes if isinstance(votes, Score) else self.settle(votes) for votes in found]
        each = (time.perf_counter() - began) / max(len(scores), 1)
        return [replace(score, seconds=each) for score in scores]

    def votes(
        self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]], run: int = 0
    ) -> list[list[Answer] | Score]:
        """The answers on each completion; a score, which says why, for one that the judge cannot be asked about."""
        asked = [self.question(*pair) for pair in zip(completions, rows, strict=True)]
        given = iter(self.ask([question for question in asked if isinstance(question, Question)], run))
        return [question if isinstance(question, Score) else next(given) for question in asked]

    def settle(self, votes: Sequence[Answer]) -> Score:
        """What the votes are worth."""
        return score_of(votes)

    def question(self, completion: str, row: Mapping[str, Any]) -> Question | Score:
        """What the judge is asked of one completion."""
        response = completion if self.reads == "whole" else output_of(completion, row.get("prompt", ""))
        if response is None:
            return Score(None, "unparseable", "the completion ends inside its thoughts")
        values = {name: str(value) for name, value in row.items()}
        values |= {"prompt": transcript(row.get("prompt", "")), "response": response.strip()}
        values |= self.values(row)
        wanted = PLACEHOLDER.findall(self.template)
        if missing := [name for name in wanted if name not in values and name != "task"]:
            return Score(None, "skipped", f"the row has no field {missing[0]!r}, which the judge's template names")
        return self.asked({**values, "task": fill(self.task, values)})

    def values(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What else the template may name."""
        return {"criterion": self.criterion}

    @property
    def task(self) -> str:
        """How the judge is told to answer."""
        raise NotImplementedError

    def asked(self, values: dict[str, str]) -> Question:
        """The question, of which `values` fill the template."""
        raise NotImplementedError


@dataclass(frozen=True)
class AIScore(PointJudge):
    """A language model's rating on a scale of whole numbers, whose ends become `range`. Every score is graded. A rating
    in text may lie between two numbers, and counts as the end of the scale where it lies beyond."""

    criterion: str = "how helpful, honest and harmless it is"
    template: str = RATE
    scale: tuple[int, int] = (1, 10)
    range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self):
        super().__post_init__()
        low, high = self.scale
        if not low < high <= low + 1000:
            raise ValueError(f"a scale goes from a lower to a higher number, at most 1000 apart; it is {self.scale}")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"a range goes from a lower to a higher number; it is {self.range}")

    @property
    def task(self) -> str:
        return RATE_TASKS[self.mode, self.reasoning]

    def values(self, row: Mapping[str, Any]) -> dict[str, str]:
        return {**super().values(row), "low": str(self.scale[0]), "high": str(self.scale[1])}

    def asked(self, values: dict[str, str]) -> Question:
        return rating_question(fill(self.template, values), self.scale)

    def settle(self, votes: Sequence[Answer]) -> Score:
        (low, high), (bottom, top) = self.scale, self.range
        kept = [replace(v, value=None if v.value is None else min(max(v.value, low), high)) for v in votes]
        found = score_of(kept, lambda mean: bottom + (top - bottom) * (mean - low) / (high - low))
        if found.value is None:
            return found
        beyond = sum(v.value is not None and not low <= v.value <= high for v in votes)
        mean = low + (found.value - bottom) / (top - bottom) * (high - low)
        return replace(
            found,
            why=f"mean rating {mean:.2f}" + (f", {beyond} beyond the scale" if beyond else ""),
            flags={**found.flags, "judge/clipped": beyond / len(votes)},
        )


def rating_question(text: str, scale: tuple[int, int]) -> Question:
    """A question that a whole number of the scale answers."""
    ends = {"low": str(scale[0]), "high": str(scale[1])}
    options = {str(rating): float(rating) for rating in range(scale[0], scale[1] + 1)}
    return Question(text, options, lambda said: read_number(said, RATING), RATING, fill(RATE_AGAIN, ends))


@dataclass(frozen=True)
class AIYesNo(PointJudge):
    """A language model's yes or no. `criterion` is the question. One answer in text is a verdict, correct or wrong; a
    probability, or the mean of several votes, is graded."""

    criterion: str = "Is the response correct?"
    template: str = DECIDE

    @property
    def task(self) -> str:
        return DECIDE_TASKS[self.mode, self.reasoning]

    def asked(self, values: dict[str, str]) -> Question:
        return Question(fill(self.template, values), {"yes": 1.0, "no": 0.0}, read_yes_no, DECISION, DECIDE_AGAIN)

    def settle(self, votes: Sequence[Answer]) -> Score:
        found = score_of(votes)
        plain = found.value is not None and self.mode == "text" and self.n_votes == 1
        return replace(found, graded=False) if plain else found


def read_yes_no(text: str) -> float | None:
    """The verdict in a judge's text: 1 for yes, 0 for no, None for anything else.

    >>> read_yes_no("Yes."), read_yes_no("It adds up.\\nAnswer: no"), read_yes_no("Yes and no")
    (1.0, 0.0, None)
    """
    return read_choice(text, DECISION, {}, {"yes": 1.0, "no": 0.0})
