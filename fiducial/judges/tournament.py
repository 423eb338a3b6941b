"""A judge of two completions as a reward, and in both orders as one that does not care about the order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any, Literal, cast

import torch
from torch import Tensor

from fiducial.core.types import FAILED, Prompt, Score, Verdict
from fiducial.data.feedback.comparing import Comparison, Judgement, PairJudge, both_orders, position_bias
from fiducial.data.feedback.labelling import TOO_LONG, answers
from fiducial.judges.asking import agreement

Key = tuple[str, str, str]  # repr of a prompt, and two completions in this order


@dataclass(frozen=True)
class Ordered:
    """A judge that is asked in both orders, or with `swap_positions` False in the one it is given; `disagreement` is
    what becomes of two orders that part (`both_orders`)."""

    judge: PairJudge
    swap_positions: bool = True
    disagreement: Literal["average", "tie"] = "average"
    symmetric = True  # nobody else need ask it twice

    @property
    def name(self) -> str:
        """The judge's own."""
        return self.judge.name

    @property
    def reasoning(self) -> bool:
        """Whether the judge gives reasons before its verdict."""
        return getattr(self.judge, "reasoning", False)

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        if self.swap_positions:
            return both_orders(self.judge, comparisons, self.disagreement)
        return self.judge(comparisons)


class Tournament:
    """A completion's mean chance against the other completions of its prompt in the same call, under a judge of two: a
    reward that is `graded` and means nothing outside of that company. N completions are N (N - 1) / 2 comparisons.

    `preferences` gives a prompt's whole table, for methods that ask for it. Where some comparisons have no verdict,
    the fewest completions leave that make the table of the others whole, and what they get is the judge's failure.
    """

    def __init__(self, judge: PairJudge, name: str = ""):
        self.judge, self.name = judge, name or judge.name
        self._last: dict[Key, Judgement] = {}  # of the last call, so that a selection that asks after it costs nothing

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        began = time.perf_counter()
        company: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            company.setdefault(repr(row.get("prompt", "")), []).append(i)
        wanted: list[tuple[Prompt, str, str, dict[str, Any]]] = []
        for members in company.values():
            row = rows[members[0]]
            fields = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
            different = sorted({completions[i] for i in members})
            wanted += [(row.get("prompt", ""), a, b, fields) for a, b in combinations(different, 2)]
        self._last = self._judged(wanted)
        scores: list[Score | None] = [None] * len(rows)
        for prompt, members in company.items():
            for i, score in zip(members, self._scores(prompt, [completions[i] for i in members]), strict=True):
                scores[i] = score
        each = (time.perf_counter() - began) / max(len(rows), 1)
        return [replace(score, seconds=each) for score in scores if score is not None]

    def preferences(self, prompt: Prompt, completions: Sequence[str]) -> Tensor:
        """How likely completion i is better than j: [N, N], 1/2 for equals. ValueError if two were not judged."""
        pairs = combinations(sorted(set(completions)), 2)
        found = self._judged([(prompt, a, b, {}) for a, b in pairs])
        chance = _chances(found, repr(prompt))
        table = torch.full((len(completions), len(completions)), 0.5)
        for i, a in enumerate(completions):
            for j, b in enumerate(completions):
                known = chance(a, b)
                if known is None:
                    why = found[_key(repr(prompt), a, b)].why
                    raise ValueError(
                        f"two completions of {prompt!r:.60} have no verdict of {self.name} ({why}): set "
                        "sampling.max_new_tokens lower if it is their length, and leave verdicts.failed at 'drop'"
                    )
                table[i, j] = known
        return table

    def _judged(self, wanted: Sequence[tuple[Prompt, str, str, dict[str, Any]]]) -> dict[Key, Judgement]:
        """The judgements of prompts with two different completions each, a < b; those of the last call are kept."""
        keys = [(repr(prompt), a, b) for prompt, a, b, _ in wanted]
        new = [i for i, key in enumerate(keys) if key not in self._last]
        asked = both_orders(self.judge, [Comparison(*wanted[i]) for i in new]) if new else []
        found = {**self._last, **dict(zip([keys[i] for i in new], asked, strict=True))}
        return {key: found[key] for key in keys}

    def _scores(self, prompt: str, texts: Sequence[str]) -> list[Score]:
        """The scores of one prompt's completions."""
        chance = _chances(self._last, prompt)
        kept = _whole(texts, chance)
        scores = []
        for i, text in enumerate(texts):
            judgements = [self._last[_key(prompt, text, other)] for other in sorted(set(texts)) if other != text]
            flags = judge_flags(judgements)
            if i in kept:
                chances = [cast(float, chance(text, texts[j])) for j in sorted(kept) if j != i]
                scores.append(self._score(chances, flags))
            else:
                why = next(j.why for j in judgements if j.probability is None)
                scores.append(Score(None, failure(why), f"{self.name}: {why}", flags=flags))
        return scores

    def _score(self, chances: Sequence[float], flags: dict[str, float]) -> Score:
        if not chances:
            return Score(None, "skipped", f"{self.name} compares, and the prompt has no other completion here")
        value = fmean(chances)
        return Score(value, "correct" if value >= 1 else "wrong", graded=True, flags=flags)


def _key(prompt: str, a: str, b: str) -> Key:
    return (prompt, min(a, b), max(a, b))


def _chances(found: dict[Key, Judgement], prompt: str) -> Callable[[str, str], float | None]:
    """How likely one completion of a prompt is better than another, from judgements that are kept in one order."""

    def chance(a: str, b: str) -> float | None:
        if a == b:
            return 0.5
        known = found[_key(prompt, a, b)].probability
        return known if known is None or a < b else 1 - known

    return chance


def _whole(texts: Sequence[str], chance: Callable[[str, str], float | None]) -> set[int]:
    """Which completions stay so that any two have a verdict: the one that lacks most leaves, the last of equal ones."""
    kept = set(range(len(texts)))
    while True:
        lacking = {i: sum(chance(texts[i], texts[j]) is None for j in kept) for i in kept}
        worst = max(kept, key=lambda i: (lacking[i], i))
        if not lacking[worst]:
            return kept
        kept.remove(worst)


def failure(why: str) -> Verdict:
    """The verdict on what could not be compared, from a judgement's reason."""
    if why == TOO_LONG:
        return "skipped"
    return cast(Verdict, why) if why in FAILED else "crashed"


def judge_flags(judgements: Sequence[Judgement]) -> dict[str, float]:
    """What a language model's judgements tell of it: `judge/parse_rate`, `judge/agreement` and, of both orders,
    `judge/position_bias` and `judge/first_wins`; absent where there is nothing to tell."""
    votes = [vote for answer in answers(judgements) if answer.why != TOO_LONG for vote in answer.votes]
    flags = {"judge/parse_rate": fmean(vote is not None for vote in votes)} if votes else {}
    bias = position_bias(judgements)
    if bias is not None:
        shown_first = [order.outcome for j in judgements for order in j.orders if order.outcome is not None]
        flags |= {"judge/position_bias": bias, "judge/first_wins": fmean(shown_first)}
    same = [share for judgement in judgements if (share := agreement(_outcomes(judgement))) is not None]
    return {**flags, "judge/agreement": fmean(same)} if same else flags


def _outcomes(judgement: Judgement) -> list[float]:
    """Whom each readable answer behind a judgement calls better: 1 a, 0 b, 1/2 neither."""
    orders = judgement.orders or (judgement,)
    votes = [
        vote if not turned else 1 - vote
        for turned, order in enumerate(orders)
        for vote in order.votes
        if vote is not None
    ]
    return [Judgement(vote).outcome or 0.0 for vote in votes]
