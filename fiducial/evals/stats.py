"""Estimates from several samples per problem, their intervals, and how different the samples are.

Intervals are over *problems*, which are the independent draws: samples of one problem resemble each other, and counting
each of them would make every interval too narrow. Two forms, both closed, so that a number is the same every time:
`proportion_interval` for averages of values in [0, 1], `mean_interval` for everything else.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, fmean, variance

LEVEL = 0.95  # of every interval, unless the caller says otherwise


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


# -- success out of k --------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples is correct, estimated without bias from c correct among n.

    1 - C(n-c, k) / C(n, k), as a product (Chen et al. 2021, arXiv:2107.03374). ValueError unless 0 <= c <= n and
    1 <= k <= n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n; it has n = {n}, c = {c}, k = {k}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority(answers: Sequence[Hashable | None]) -> int | None:
    """Index of the first sample that gives the most frequent answer; of tied answers the one that came first.

    A sample without an answer (None) has no vote. None if there is no vote at all.

    >>> majority(["7", "8", None, "8", "7"])
    0
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None
    most = max(votes.values())
    return next(i for i, answer in enumerate(answers) if answer is not None and votes[answer] == most)


def maj_at_k(
    answers: Sequence[Hashable | None], correct: Sequence[bool], k: int, *, seed: int = 0, draws: int = 1000
) -> float:
    """Chance that the majority answer of k of the n samples is correct (self-consistency, Wang et al. 2022,
    arXiv:2203.11171).

    The k samples are drawn without replacement and keep their order. All subsets are counted if there are at most
    `draws` of them, else `draws` seeded ones. ValueError unless 1 <= k <= n.
    """
    n = len(answers)
    if len(correct) != n or not 1 <= k <= n:
        raise ValueError(
            f"maj@k needs one verdict per answer and 1 <= k <= n; n = {n}, verdicts {len(correct)}, k = {k}"
        )
    wins = total = 0
    for subset in _subsets(n, k, seed, draws):
        first = majority([answers[i] for i in subset])
        wins += first is not None and correct[subset[first]]
        total += 1
    return wins / total


def _subsets(n: int, k: int, seed: int, draws: int) -> Iterator[Sequence[int]]:
    if math.comb(n, k) <= draws:
        yield from combinations(range(n), k)
        return
    random_ = random.Random(seed)
    for _ in range(draws):
        yield sorted(random_.sample(range(n), k))


# -- intervals ---------------------------------------------------------------------------------------------------


def effective_size(weights: Sequence[float]) -> float:
    """How many equal examples tell as much as these weighted ones: (sum w)^2 / sum w^2 (Kish 1965).

    >>> effective_size([2.0, 2.0]), effective_size([3.0, 1.0])
    (2.0, 1.6)
    """
    return sum(weights) ** 2 / sum(w * w for w in weights)


def wilson(successes: float, n: float, level: float = LEVEL) -> Interval:
    """Score interval of a proportion from n independent draws (Wilson 1927). It stays in [0, 1] and has a width even
    when all succeed or all fail. ValueError unless 0 <= successes <= n, n > 0.

    >>> round(wilson(0, 10).high, 4)
    0.2775
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0; it has {successes} of {n}")
    z = _z(level)
    p, shrink = successes / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))


def proportion_interval(values: Sequence[float], samples: float = 1, level: float = LEVEL) -> Interval:
    """Interval of the mean of one value in [0, 1] per problem, such as its share of correct samples.

    Wilson's interval at the effective number of draws n_eff = p (1 - p) / (variance of the mean over problems), after
    Korn and Graubard (1998). It is at most problems x `samples`, reached when samples of one problem are as different
    as those of two. One sample per problem gives Wilson's interval itself. ValueError for no values or values outside.
    """
    n = len(values)
    if n == 0 or not are_shares(values):
        raise ValueError("a proportion's interval needs at least one problem, and values between 0 and 1")
    p = min(fmean(values), 1.0)
    spread = variance(values) / n if n > 1 else 0.0
    if samples == 1 or p in (0.0, 1.0):
        effective = float(n)  # with no spread at all problems are all that is known to be independent
    else:
        effective = min(p * (1 - p) / spread, n * samples) if spread > 0 else n * samples
    return wilson(p * effective, effective, level)


def mean_interval(values: Sequence[float], level: float = LEVEL, bounds: tuple[float, float] | None = None) -> Interval:
    """Student's t interval of a mean; infinite ends for a single value. ValueError for none.

    Values that are all the same have no spread to judge by, and the interval no width, unless their `bounds` are known:
    then up to 1 - (1 - level)^(1/n) of what was not seen may differ, and lie as far off as the bounds allow.

    >>> mean_interval([1.0, 1.0, 1.0], bounds=(0, 1)).low == (1 - LEVEL) ** (1 / 3)
    True
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = fmean(values)
    if bounds and min(values) == max(values):
        unseen = 1 - (1 - level) ** (1 / n)
        return Interval(mean, mean - unseen * (mean - bounds[0]), mean + unseen * (bounds[1] - mean))
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    half = t_quantile((1 + level) / 2, n - 1) * math.sqrt(variance(values) / n)
    return Interval(mean, mean - half, mean + half)


def paired_difference(before: Sequence[float], after: Sequence[float], level: float = LEVEL) -> Interval:
    """Interval of the mean change, problem by problem. Far narrower than comparing two intervals, because how hard each
    problem is cancels. ValueError if the lengths differ."""
    if len(before) != len(after):
        raise ValueError(
            f"a paired difference needs the same problems on both sides; they have {len(before)}, {len(after)}"
        )
    bounds = (-1.0, 1.0) if are_shares([*before, *after]) else None
    return mean_interval([b - a for a, b in zip(before, after, strict=True)], level, bounds)


def are_shares(values: Sequence[float]) -> bool:
    """Whether all lie in [0, 1]."""
    return all(0 <= value <= 1 for value in values)


def t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t by its expansion in 1/degrees (Abramowitz and Stegun 26.7.5): within 5e-3 of its value
    at 3 degrees of freedom, 1e-3 from 4 on, 1e-5 from 12. For one and two degrees the closed forms."""
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    x, v = NormalDist().inv_cdf(p), degrees
    return x + (
        (x**3 + x) / (4 * v)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * v**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * v**3)
        + (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / (92160 * v**4)
    )


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"an interval's level must lie in (0, 1); it is {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


# -- diversity ---------------------------------------------------------------------------------------------------


def ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    """All runs of n tokens, in order."""
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def distinct_n(samples: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams of the samples together (Li et al. 2016, arXiv:1510.03055); 0 without any.

    >>> distinct_n([["a", "b"], ["a", "b"]], 1)
    0.5
    """
    found = [gram for sample in samples for gram in ngrams(sample, n)]
    return len(set(found)) / len(found) if found else 0.0


def self_bleu(samples: Sequence[Sequence[Hashable]], max_n: int = 4) -> float:
    """Mean BLEU of each sample against all others (Zhu et al. 2018, arXiv:1802.01886): 1 if they are all the same.

    BLEU (Papineni et al. 2002): geometric mean of the clipped n-gram precisions, n = 1..max_n but no longer than the
    sample, times the brevity penalty to the closest other length. A precision of zero counts as 0.1 matches (Chen and
    Cherry 2014, method 1). Empty samples are left out. ValueError with fewer than two others.
    """
    samples = [sample for sample in samples if len(sample)]
    if len(samples) < 2:
        raise ValueError("self-BLEU compares samples with each other: it needs two that are not empty")
    best = [_two_largest_counts(samples, n) for n in range(1, max_n + 1)]
    return fmean(_bleu(i, samples, best) for i in range(len(samples)))


def _two_largest_counts(
    samples: Sequence[Sequence[Hashable]], n: int
) -> dict[tuple[Hashable, ...], tuple[int, int, int]]:
    """For each n-gram: its largest count in one sample, which sample that is, and the largest count in any other.

    The clip of sample i, the largest count among the others, is then one look-up instead of a pass over all samples.
    """
    table: dict[tuple[Hashable, ...], tuple[int, int, int]] = {}
    for i, sample in enumerate(samples):
        for gram, count in Counter(ngrams(sample, n)).items():
            first, owner, second = table.get(gram, (0, -1, 0))
            table[gram] = (count, i, first) if count > first else (first, owner, max(second, count))
    return table


def _bleu(i: int, samples: Sequence[Sequence[Hashable]], best: Sequence[dict]) -> float:
    length = len(samples[i])
    orders = range(1, min(len(best), length) + 1)
    logs = []
    for n in orders:
        matches = 0
        for gram, count in Counter(ngrams(samples[i], n)).items():
            first, owner, second = best[n - 1][gram]
            matches += min(count, second if owner == i else first)
        logs.append(math.log((matches or 0.1) / (length - n + 1)))
    others = (len(sample) for j, sample in enumerate(samples) if j != i)
    closest = min(others, key=lambda other: (abs(other - length), other))
    penalty = min(0.0, 1 - closest / length)
    return math.exp(penalty + fmean(logs))


def answer_entropy(answers: Sequence[Hashable | None]) -> float:
    """Entropy in nats of the answers' frequencies; no answer (None) counts as one more kind. 0 for no samples.

    >>> answer_entropy(["4", "4"])
    0.0
    """
    total = len(answers)
    shares = [count / total for count in Counter(answers).values()]
    return -sum((share * math.log(share) for share in shares), 0.0) + 0.0  # not minus zero
