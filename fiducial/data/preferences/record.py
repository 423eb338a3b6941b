"""A judgement between two responses as it was given, and what can be made of it: pairs, labels, rows of a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, zip_longest
from typing import Any

from fiducial.core.types import Label, Pair, Prompt
from fiducial.data.preferences.grading import LARGE, Criteria, Grading
from fiducial.data.view import BadRow, Side


@dataclass(frozen=True, eq=False)
class Preference:
    """One judgement of responses A and B to a prompt. Written in the other order it is the same record: equal, with the
    same `key` and hash.

    What is known of the judgement: a `rating` from +2 (A is better) to -2, a `pref_prob` that A is better, or
    `criteria`, from which the rating follows; the first of `pref_prob`, `rating`, `criteria` that is there decides.
    `margin` is by how much the better side should win. `edited` is a third response, better than both. `harm_a` and
    `harm_b` are +1 where a response does harm, -1 where it is safe, 0 where nobody said. `rater_id` gave the judgement,
    `source` is where it came from (human, ai, simulated), records with one `group_id` come from one tree or one
    ranking. `fields` are the row's other columns.

    Raises BadRow (a ValueError) for values out of range, equal responses, or a rating that contradicts `pref_prob`.
    """

    prompt: Prompt
    response_a: Side
    response_b: Side
    rating: float | None = None
    pref_prob: float | None = None
    criteria: Criteria | None = None
    margin: float = 0.0
    edited: Side | None = None
    harm_a: float = 0.0
    harm_b: float = 0.0
    rater_id: str = ""
    group_id: str = ""
    source: str = ""
    weight: float = 1.0
    index: int = 0
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        rating, prob = self.rating, self.pref_prob
        if rating is None and prob is None and self.criteria is None:
            raise BadRow("missing field", "'rating' is missing: give a rating, pref_prob or criteria")
        if rating is not None and not abs(rating) <= LARGE:
            raise BadRow("out of range", f"the rating must lie in [-2, 2], +2 for A is better; it is {rating:g}")
        if prob is not None and not 0 <= prob <= 1:
            raise BadRow("out of range", f"pref_prob must lie in [0, 1]; it is {prob:g}")
        if rating is not None and prob is not None and rating * (prob - 0.5) < 0:
            raise BadRow("contradiction", f"the rating {rating:g} and pref_prob {prob:g} prefer different responses")
        for name in ("harm_a", "harm_b"):
            if getattr(self, name) not in (-1, 0, 1):
                raise BadRow("out of range", f"{name} must be 1, -1 or 0 (not given); it is {getattr(self, name)}")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise BadRow("out of range", f"weight must be above 0; it is {self.weight}")
        sides = [self.response_a, self.response_b, *([] if self.edited is None else [self.edited])]
        if any(first == second for first, second in combinations(sides, 2)):
            raise BadRow("equal sides", "two responses of a judgement are the same")

    @property
    def degree(self) -> float | None:
        """The rating, or what the criteria add up to; None where only a probability was given."""
        return self.rating if self.rating is not None or self.criteria is None else self.criteria.rating()

    @property
    def lean(self) -> float:
        """Which response was judged better, whatever the grading: above 0 A, below 0 B, 0 a tie."""
        if self.pref_prob is not None:
            return self.pref_prob - 0.5
        assert self.degree is not None
        return self.degree

    @property
    def pair_key(self) -> str:
        """A hash of the prompt and the two responses in no order, the same for all judgements of one pair."""
        sides = sorted(map(side_key, (self.response_a, self.response_b)))
        return _digest([side_key(self.prompt), *sides])

    @property
    def key(self) -> str:
        """A hash of the whole record but `index` and `fields`, the same in either order."""
        first = self if side_key(self.response_a) <= side_key(self.response_b) else self.swapped()
        values = {name: value for name, value in asdict(first).items() if name not in ("index", "fields")}
        values["pref_prob"] = None if first.pref_prob is None else round(first.pref_prob, 12)  # 1 - (1 - p) is not p
        values["criteria"] = first.criteria and [float(value) for value in asdict(first.criteria).values()]
        numbers = {name: value + 0.0 for name, value in values.items() if isinstance(value, int | float)}  # no -0
        return _digest({**values, **numbers})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preference) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def swapped(self) -> Preference:
        """The same judgement with A and B exchanged."""
        return replace(
            self,
            response_a=self.response_b,
            response_b=self.response_a,
            rating=None if self.rating is None else -self.rating + 0.0,
            pref_prob=None if self.pref_prob is None else 1 - self.pref_prob,
            criteria=self.criteria and self.criteria.swapped(),
            harm_a=self.harm_b,
            harm_b=self.harm_a,
        )

    def to_pairs(self, grading: Grading | None = None) -> list[Pair]:
        """One pair; of a probability p two, of weights p and 1 - p; with `edited` two more. Together they weigh
        `weight`. BadRow where the grading does not use the rating."""
        better, certainty, margin, tied = self._graded(grading or Grading())
        degree = better.degree
        edited = [] if self.edited is None else [self.edited]
        share = self.weight / (3 if edited else 1)
        forth = Pair(
            prompt=self.prompt,
            chosen=better.response_a,
            rejected=better.response_b,
            margin=margin,
            weight=share * certainty,
            source=self.source,
            index=self.index,
            pref_prob=certainty,
            tied=tied,
            chosen_harm=better.harm_a,
            rejected_harm=better.harm_b,
            rating=degree,
        )
        made = [replace(forth, weight=share, pref_prob=0.5)] if tied else [forth]
        if certainty < 1 and not tied:
            made.append(replace(reverse(forth), weight=share * (1 - certainty)))
        for best in edited:
            for worse, harm in ((forth.chosen, forth.chosen_harm), (forth.rejected, forth.rejected_harm)):
                made.append(Pair(self.prompt, best, worse, 0.0, share, self.source, self.index, rejected_harm=harm))
        return made

    def _graded(self, grading: Grading) -> tuple[Preference, float, float, bool]:
        """The record with its better response first, how certain that is, by which margin, and whether it is a tie."""
        degree, margin = self.degree, self.margin
        if self.pref_prob is not None:
            certainty, tied = self.pref_prob, False
            if degree is not None and grading.ratings == "filter_slight":
                grading.pref_prob(degree)
        else:
            assert degree is not None
            certainty, margin = grading.pref_prob(degree), margin or grading.margin(degree)
            tied = degree == 0 and grading.ties == "keep" and grading.ratings != "soft"
        if certainty < 0.5:
            return self.swapped(), 1 - certainty, margin, tied
        return self, certainty, margin, tied

    def to_unpaired(self, grading: Grading | None = None) -> list[Label]:
        """One wanted and one unwanted completion of each pair."""
        return to_unpaired(self.to_pairs(grading))

    def to_row(self) -> dict[str, Any]:
        """A row that reads back as this record: `chosen` and `rejected` where that is all that is known, else
        `response_a` and `response_b`."""
        if self.pref_prob == 0 and self.rating is None:
            return self.swapped().to_row()
        plain = self.pref_prob == 1 and self.rating is None
        names = ("chosen", "rejected") if plain else ("response_a", "response_b")
        row: dict[str, Any] = {"prompt": self.prompt, names[0]: self.response_a, names[1]: self.response_b}
        if not plain:
            row |= {"rating": self.rating, "pref_prob": self.pref_prob}
        row |= {"criteria": self.criteria and asdict(self.criteria), "edited": self.edited}
        for name, harm in zip(names, (self.harm_a, self.harm_b), strict=True):
            row[f"{name}_safe"] = None if harm == 0 else harm < 0
        row |= {"margin": self.margin or None, "weight": None if self.weight == 1 else self.weight}
        row |= {name: getattr(self, name) or None for name in ("rater_id", "group_id", "source")}
        return {name: value for name, value in {**self.fields, **row}.items() if value is not None}


def from_ranking(
    prompt: Prompt,
    completions: Sequence[Side],
    values: Sequence[float],
    grading: Grading | None = None,
    **common: Any,
) -> tuple[list[Preference], Counter[str]]:
    """All K-choose-2 judgements in a ranking of K completions, `values` higher for better; each weighs its share of 1
    (Ouyang et al. 2022, arXiv:2203.02155). And how many comparisons were left out: of a completion with its copy, and
    those that `grading` does not use. Equal values are ties, which stay. A difference of values is graded as a rating.
    `common` are fields that all of them share.

    >>> found, left_out = from_ranking("x", ["a", "b", "c"], [1, 3, 2])
    >>> [(p.response_a, p.response_b, p.pref_prob) for p in found]
    [('a', 'b', 0.0), ('a', 'c', 0.0), ('b', 'c', 1.0)]
    """
    if len(values) != len(completions):
        raise BadRow("unequal lists", f"there are {len(completions)} completions and {len(values)} values to rank them")
    if len(completions) < 2:
        raise BadRow("one completion", "a ranking compares at least two completions")
    grading = grading or Grading()
    share = common.pop("weight", 1.0) / math.comb(len(completions), 2)
    found, left_out = [], Counter()
    for i, j in combinations(range(len(completions)), 2):
        ahead, judged = values[i] - values[j], {}
        try:
            if ahead:
                judged = {"pref_prob": grading.pref_prob(ahead), "margin": grading.margin(ahead)}
            judged = judged or {"rating": 0.0}
            found.append(Preference(prompt, completions[i], completions[j], weight=share, **judged, **common))
        except BadRow as bad:
            left_out[bad.reason] += 1
    return found, left_out


def reverse(pair: Pair) -> Pair:
    """The same judgement with the other side first. r(chosen) - r(rejected) - margin is the logit of "chosen is
    better"; of the opposite it is the negative."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        margin=-pair.margin + 0.0,
        pref_prob=1 - pair.pref_prob,
        chosen_harm=pair.rejected_harm,
        rejected_harm=pair.chosen_harm,
        rating=None if pair.rating is None else -pair.rating + 0.0,
    )


def to_unpaired(pairs: Sequence[Pair]) -> list[Label]:
    """Every pair as a wanted and an unwanted completion, each with the pair's weight. BadRow for a tie that was kept:
    neither of its sides is unwanted."""
    labels = []
    for pair in pairs:
        if pair.tied:
            raise BadRow("tie", "neither side of a tie is unwanted")
        for side, desirable in ((pair.chosen, True), (pair.rejected, False)):
            labels.append(Label(pair.prompt, side, desirable, pair.weight, pair.index))
    return labels


def to_paired(labels: Sequence[Label]) -> tuple[list[Pair], int]:
    """Pairs of the wanted and unwanted completions of each prompt, first with first, and how many were left over.

    A pair weighs what its lighter side does.
    """
    prompts: dict[str, tuple[list[Label], list[Label]]] = {}
    for label in labels:
        prompts.setdefault(side_key(label.prompt), ([], []))[not label.desirable].append(label)
    pairs, left = [], 0
    for wanted, unwanted in prompts.values():
        for good, bad in zip_longest(wanted, unwanted):
            if good is None or bad is None or good.completion == bad.completion:
                left += (good is not None) + (bad is not None)
                continue
            weight = min(good.weight, bad.weight)
            pairs.append(Pair(good.prompt, good.completion, bad.completion, weight=weight, index=good.index))
    return pairs, left


def side_key(side: Any) -> str:
    """A text or chat as one string, equal for equal ones, by which the two sides of a pair are ordered."""
    return json.dumps(side, sort_keys=True)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
