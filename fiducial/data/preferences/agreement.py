"""What raters agree on: votes by pair and rater, Fleiss' kappa, accuracy against the majority, habits of position."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fiducial.data.preferences.record import Preference, side_key

UNLIKELY = 0.01  # a habit of position is told when chance gives it less often than this, over all raters together


@dataclass
class Habits:
    """What one rater answers, whatever is shown."""

    rater_id: str
    a: int = 0  # judgements for the response shown as A
    b: int = 0
    ties: int = 0

    @property
    def n(self) -> int:
        return self.a + self.b + self.ties

    @property
    def p_value(self) -> float:
        """How often a rater without a habit leans at least as much to one position."""
        return binomial_test(self.a, self.a + self.b) if self.a + self.b else 1.0


class Votes:
    """Judgements, collected one by one; only hashes of the texts stay in memory."""

    def __init__(self, records: Iterable[Preference] = ()):
        self.pairs: dict[str, list[tuple[str, int]]] = {}  # pair -> (rater, 1 the first side, -1 the second, 0 tie)
        self.habits: dict[str, Habits] = {}
        for record in records:
            self.add(record)

    def add(self, record: Preference, shown: bool = True) -> None:
        """One more judgement. `shown` False: the data do not say which response was shown first."""
        vote = (record.lean > 0) - (record.lean < 0)
        first = side_key(record.response_a) <= side_key(record.response_b)
        self.pairs.setdefault(record.pair_key, []).append((record.rater_id, vote if first else -vote))
        if shown:
            habits = self.habits.setdefault(record.rater_id, Habits(record.rater_id))
            habits.a, habits.b = habits.a + (vote > 0), habits.b + (vote < 0)
            habits.ties += vote == 0

    @property
    def raters(self) -> list[str]:
        """Those who are named."""
        return sorted({rater for votes in self.pairs.values() for rater, _ in votes if rater})

    def contradictions(self) -> int:
        """Pairs that one rater, or in rows without raters the file, judged both ways."""
        return sum(_both_ways(votes) for votes in self.pairs.values())

    def repeats(self) -> int:
        """Judgements that are there again, by the same rater of the same pair."""
        return sum(len(votes) - len(set(votes)) for votes in self.pairs.values())

    def disputed(self) -> int:
        """Pairs on which named raters disagree."""
        return sum(len({vote for rater, vote in votes if rater}) > 1 for votes in self.pairs.values())

    def kappa(self) -> float | None:
        """Fleiss' kappa of the named raters over first, second and tie.

        Each pair enters in both orders, since which side comes first is no judgement; a rater's first judgement of a
        pair counts. None without pairs that two raters judged.
        """
        table = []
        for votes in self.pairs.values():
            counts = Counter(_first_votes(votes).values())
            if counts.total() > 1:
                table += [[counts[1], counts[-1], counts[0]], [counts[-1], counts[1], counts[0]]]
        return fleiss_kappa(table) if table else None

    def accuracy(self) -> dict[str, tuple[float, int]]:
        """Of each named rater the share of judgements that agree with the majority of all, and of how many: pairs that
        at least two raters judged and that have a majority."""
        right: Counter[str] = Counter()
        number: Counter[str] = Counter()
        for votes in self.pairs.values():
            first = _first_votes(votes)
            ranked = Counter(first.values()).most_common()
            if len(first) < 2 or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
                continue
            number.update(first.keys())
            right.update(rater for rater, vote in first.items() if vote == ranked[0][0])
        return {rater: (right[rater] / number[rater], number[rater]) for rater in sorted(number)}

    def biased(self) -> list[Habits]:
        """Raters whose answers depend on the position beyond chance, the least likely first; p-values are compared
        with `UNLIKELY` over the number of raters (Bonferroni)."""
        found = [h for h in self.habits.values() if h.p_value < UNLIKELY / len(self.habits)]
        return sorted(found, key=lambda habits: habits.p_value)


def slices(records: Iterable[Preference], by: str) -> dict[Hashable, dict[str, Any]]:
    """Agreement within each value of a field, a record's own (`source`, ...) or a column of its row (a country, ...).

    Each with `n` judgements, the `share_a` of those that are no tie for the response shown as A, and `kappa`. And
    `majority`: the share of the slice's judgements that agree with the majority of everybody. A record without the
    field is under None.
    """
    records = list(records)
    groups: dict[Hashable, list[Preference]] = {}
    for record in records:
        groups.setdefault(getattr(record, by, None) or record.fields.get(by), []).append(record)
    majority = {pair: _majority(votes) for pair, votes in Votes(records).pairs.items()}
    found = {}
    for value, members in groups.items():
        votes = Votes(members)
        for_a = sum(h.a for h in votes.habits.values())
        decided = for_a + sum(h.b for h in votes.habits.values())
        known = [vote == majority[pair] for pair, cast in votes.pairs.items() for _, vote in cast if majority[pair]]
        found[value] = {
            "n": len(members),
            "share_a": for_a / decided if decided else None,
            "kappa": votes.kappa(),
            "majority": sum(known) / len(known) if known else None,
        }
    return found


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement of several raters beyond chance (Fleiss 1971): counts[i][j] raters put item i into category j.

    (P - P_e) / (1 - P_e), P the mean over items of the share of agreeing pairs of raters, P_e = sum_j p_j^2 from the
    pooled shares p_j. Items may have different numbers of raters, at least two. None where all is one category, so
    that chance alone agrees always.

    >>> fleiss_kappa([[2, 0], [0, 2], [1, 1], [1, 1]])  # P = 1/2 = P_e
    0.0
    """
    totals = [sum(row) for row in counts]
    if not totals or min(totals) < 2:
        raise ValueError("Fleiss' kappa needs items that at least two raters judged")
    agree = [sum(c * (c - 1) for c in row) / (n * (n - 1)) for row, n in zip(counts, totals, strict=True)]
    shares = [sum(column) / sum(totals) for column in zip(*counts, strict=True)]
    chance = sum(share * share for share in shares)
    return None if chance == 1 else (sum(agree) / len(agree) - chance) / (1 - chance)


def binomial_test(successes: int, n: int) -> float:
    """Two-sided p-value of `successes` in n fair coin tosses, exact.

    >>> round(binomial_test(1, 5), 6), binomial_test(5, 10)  # 2 (1 + 5) / 2^5
    (0.375, 1.0)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"there cannot be {successes} successes in {n} tosses")
    k = min(successes, n - successes)
    term = total = math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
    while k and term > 1e-17 * total:  # C(n, k - 1) = C(n, k) k / (n - k + 1)
        term *= k / (n - k + 1)
        total += term
        k -= 1
    return min(1.0, 2 * total)


def _first_votes(votes: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Each named rater's first judgement."""
    return {rater: vote for rater, vote in reversed(votes) if rater}


def _majority(votes: Sequence[tuple[str, int]]) -> int:
    """1 or -1, the side that most judgements are for; 0 where they balance."""
    total = sum(vote for _, vote in votes)
    return (total > 0) - (total < 0)


def _both_ways(votes: Sequence[tuple[str, int]]) -> bool:
    said = set(votes)
    return any((rater, -vote) in said for rater, vote in said if vote)
