"""A rubric as a reward: what a completion is held to, point by point (rubrics as rewards, Gunjal et al. 2025,
arXiv:2507.17746; HealthBench, Arora et al. 2025, arXiv:2505.08775).

    r = clip( sum_j w_j s_j / sum_{j: w_j > 0} w_j max_j , 0, 1)

s_j is the judge's rating of criterion j between min_j and max_j; a criterion of negative weight is a pitfall.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, Literal, NamedTuple

from fiducial.core.types import Reward, Score
from fiducial.data.feedback.writer import fill, transcript
from fiducial.judges.asking import LMJudge, Question, score_of
from fiducial.judges.output import output_of
from fiducial.judges.ratings import RATE_TASKS, rating_question

TEMPLATE = """\
A response to a conversation follows. Judge one thing about it and nothing else: {criterion}

[Conversation]
{prompt}

[Response]
{response}

Rate how far that holds, from {low}, not at all, to {high}, entirely.
{task}"""
ALIASES = {"title": "id", "criterion": "description", "points": "weight"}  # as rubrics that are around spell it


@dataclass(frozen=True)
class Criterion:
    """One thing to judge. `judge` names what rates it, if not the rubric's own model: a judge's file, or anything that
    scores a completion, whose "correct" is `max`, "wrong" is `min`, and any other number the rating itself."""

    id: str
    description: str = ""
    min: float = 0.0
    max: float = 1.0
    weight: float = 1.0
    judge: str = ""

    def __post_init__(self):
        numbers = (self.min, self.max, self.weight)
        if not self.id or not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
            raise ValueError(f"criterion {self.id!r} needs an id, and a finite min, max and weight; not {numbers}")
        if not self.min < self.max or not self.weight:
            raise ValueError(
                f"criterion {self.id!r} needs a min below its max and a weight other than 0; not {numbers}"
            )
        if self.weight > 0 and self.max <= 0:
            raise ValueError(
                f"criterion {self.id!r} has a positive weight, so its max must be above 0; it is {self.max}"
            )

    @property
    def scale(self) -> tuple[int, int]:
        """The whole numbers that a language model rates by. ValueError if the ends are none."""
        if self.min != int(self.min) or self.max != int(self.max):
            raise ValueError(
                f"criterion {self.id!r}: a language model rates by whole numbers, not from {self.min:g} to "
                f"{self.max:g}: take whole numbers, and scale by the weight"
            )
        return int(self.min), int(self.max)


class Rated(NamedTuple):
    """A rubric's value, None where too much is missing, and how many ratings were clipped or are missing."""

    value: float | None
    clipped: int
    missing: int


def rubric_value(criteria: Sequence[Criterion], ratings: Mapping[str, float | None], strict: bool = False) -> Rated:
    """The formula above. A rating outside of its range is clipped. A missing one leaves both sums, or, if `strict`,
    there is no value; nor is there one without a criterion of positive weight.

    >>> five, three, two = (Criterion(str(n), max=n) for n in (5, 3, 2))
    >>> rubric_value([five, three, two], {"5": 5.0, "3": 0.0, "2": 0.0}).value
    0.5
    """
    earned, possible, clipped, missing = 0.0, 0.0, 0, 0
    for c in criteria:
        rating = ratings.get(c.id)
        if rating is None:
            missing += 1
            continue
        clipped += not c.min <= rating <= c.max
        earned += c.weight * min(max(rating, c.min), c.max)
        possible += c.weight * c.max if c.weight > 0 else 0.0
    none = not possible or (strict and missing > 0)
    return Rated(None if none else min(max(earned / possible, 0.0), 1.0), clipped, missing)


def read_rubric(value: Any, where: str = "the row's rubric") -> tuple[Criterion, ...]:
    """Criteria from a row's `rubric`: a list of tables with the fields of `Criterion`, or a list of descriptions.

    ValueError says what is wrong. `title`, `criterion` and `points` are read as id, description and weight.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} must be a list of criteria, as in [{{'id': 'kind', 'description': 'It is kind.'}}]")
    found = []
    known = {f.name for f in fields(Criterion)}
    for number, item in enumerate(value, 1):
        table = {"description": item} if isinstance(item, str) else item
        if not isinstance(table, Mapping):
            raise ValueError(f"{where}, criterion {number} must be a table or a sentence")
        named = {ALIASES.get(name, name): x for name, x in table.items() if x is not None and name != "tags"}
        if unknown := sorted(set(named) - known):
            raise ValueError(
                f"{where}, criterion {number}: unknown key {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )
        try:
            found.append(Criterion(**{"id": str(number), **named}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    check_rubric(found, where)
    return tuple(found)


def check_rubric(criteria: Sequence[Criterion], where: str) -> None:
    """ValueError for ids that are there twice, and without a criterion of positive weight."""
    ids = [c.id for c in criteria]
    if twice := next((id for id in ids if ids.count(id) > 1), None):
        raise ValueError(f"{where}: the criterion {twice!r} is there twice")
    if criteria and not any(c.weight > 0 for c in criteria):
        raise ValueError(f"{where}: no criterion has a positive weight, so there is nothing to reach")


class Rubric:
    """A rubric as a reward in [0, 1]; every score is graded, and its `parts` are the ratings.

    criteria: for rows without a field `rubric` of their own. judges: what rates, by the name in `Criterion.judge`; ""
    is the rubric's own, and a name that is not there is opened by `open_judge`. strict: a completion with a missing
    rating has no reward. reads: "whole", or "answer", what follows a completion's thoughts.
    """

    def __init__(
        self,
        judge: LMJudge | None,
        criteria: Sequence[Criterion] = (),
        *,
        others: Mapping[str, LMJudge | Reward] | None = None,
        template: str = TEMPLATE,
        strict: bool = False,
        reads: Literal["whole", "answer"] = "whole",
        name: str = "rubric",
    ):
        check_rubric(criteria, name)
        self.judges: dict[str, LMJudge | Reward] = dict(others or {})
        if judge is not None:
            self.judges[""] = judge
        self.criteria, self.template, self.strict = tuple(criteria), template, strict
        self.reads: Literal["whole", "answer"] = reads
        self.name = name
        for criterion in self.criteria:
            self._check(criterion)

    def _check(self, criterion: Criterion) -> None:
        judge = self.judges.get(criterion.judge)
        if judge is None:
            wanted = f"names the judge {criterion.judge!r}" if criterion.judge else "has no judge"
            raise ValueError(f"criterion {criterion.id!r} {wanted}; {self.name} knows {sorted(self.judges)}")
        if isinstance(judge, LMJudge):
            _ = criterion.scale
            if not criterion.description:
                raise ValueError(f"criterion {criterion.id!r} has no description, by which a language model judges it")

    def __call__(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Score]:
        began = time.perf_counter()
        rubrics = [self._rubric(*pair) for pair in zip(completions, rows, strict=True)]
        wanted = [(i, c) for i, rubric in enumerate(rubrics) if not isinstance(rubric, Score) for c in rubric]
        parts: list[dict[str, Score]] = [{} for _ in rows]
        for name, judge in self.judges.items():
            mine = [(i, c) for i, c in wanted if c.judge == name]
            for (i, criterion), score in zip(mine, self._rate(judge, mine, completions, rows), strict=True):
                parts[i][criterion.id] = score
        each = (time.perf_counter() - began) / max(len(rows), 1)
        both = zip(rubrics, parts, strict=True)
        scores = [rubric if isinstance(rubric, Score) else self._score(rubric, found) for rubric, found in both]
        return [replace(score, seconds=each) for score in scores]

    def _rubric(self, completion: str, row: Mapping[str, Any]) -> tuple[Criterion, ...] | Score:
        """The criteria of a row, or the score that says why there are none."""
        if self.reads == "answer" and output_of(completion, row.get("prompt", "")) is None:
            return Score(None, "unparseable", "the completion ends inside its thoughts")
        if row.get("rubric") is None:
            return self.criteria or Score(
                None, "skipped", f"the row has no field 'rubric', and {self.name} no criteria"
            )
        try:
            found = read_rubric(row["rubric"])
            for criterion in found:
                self._check(criterion)
        except ValueError as error:
            return Score(None, "skipped", str(error))
        return found

    def _rate(
        self,
        judge: LMJudge | Reward,
        wanted: Sequence[tuple[int, Criterion]],
        completions: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
    ) -> list[Score]:
        """The rating of each criterion of a completion, unclipped."""
        if not wanted:
            return []
        if isinstance(judge, LMJudge):
            questions = [self._question(judge, c, completions[i], rows[i]) for i, c in wanted]
            return [score_of(votes) for votes in judge.ask(questions)]
        scores = judge([completions[i] for i, _ in wanted], [dict(rows[i]) for i, _ in wanted])
        return [s if s.graded or s.value is None else _plain(s, c) for s, (_, c) in zip(scores, wanted, strict=True)]

    def _question(self, judge: LMJudge, criterion: Criterion, completion: str, row: Mapping[str, Any]) -> Question:
        low, high = criterion.scale
        response = completion if self.reads == "whole" else output_of(completion, row.get("prompt", "")) or ""
        ends = {"low": str(low), "high": str(high)}
        values = {
            **{name: str(value) for name, value in row.items()},
            **ends,
            "criterion": criterion.description,
            "prompt": transcript(row.get("prompt", "")),
            "response": response.strip(),
            "task": fill(RATE_TASKS[judge.mode, judge.reasoning], ends),
        }
        return rating_question(fill(self.template, values), (low, high))

    def _score(self, criteria: Sequence[Criterion], parts: dict[str, Score]) -> Score:
        rated = rubric_value(criteria, {id: part.value for id, part in parts.items()}, self.strict)
        parts = {c.id: _clipped(parts[c.id], c) for c in criteria}
        number = len(criteria)
        flags = {"rubric/clipped": rated.clipped / number, "rubric/missing": rated.missing / number}
        for name in sorted({name for part in parts.values() for name in part.flags}):
            flags[name] = fmean(part.flags[name] for part in parts.values() if name in part.flags)
        if rated.value is None:
            first = next((p for p in parts.values() if p.value is None), None)
            why = f"{rated.missing} of {number} criteria have no rating: {first.why if first else ''}"
            return Score(None, first.verdict if first else "skipped", why, parts, flags=flags)
        why = ", ".join(f"{id} {part.value:g}" for id, part in parts.items() if part.value is not None)
        verdict = "correct" if rated.value >= 1 else "wrong"
        return Score(rated.value, verdict, why, parts, graded=True, flags=flags)


def _plain(score: Score, criterion: Criterion) -> Score:
    """A verdict as a rating: all of the criterion, or nothing."""
    return replace(score, value=criterion.max if score.verdict == "correct" else criterion.min, graded=True)


def _clipped(part: Score, criterion: Criterion) -> Score:
    if part.value is None:
        return part
    return replace(part, value=min(max(part.value, criterion.min), criterion.max))
