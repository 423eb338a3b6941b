"""Estimates against closed forms, enumeration, published tables and slow independent implementations."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiducial.evals import stats
from fiducial.evals.stats import effective_size, maj_at_k, majority, pass_at_k, proportion_interval, self_bleu, wilson

COUNTS = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(COUNTS)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(counts):
    n, c, k = counts
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize("p", [Fraction(1, 10), Fraction(1, 3), Fraction(9, 10)])
def test_pass_at_k_is_unbiased_where_the_naive_estimate_is_low(p):
    """E over c ~ Bin(n, p) equals 1 - (1 - p)^k exactly; plugging c/n into that formula falls short for k > 1."""
    n = 9
    for k in range(1, n + 1):
        weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        mean = sum(float(w) * pass_at_k(n, c, k) for c, w in enumerate(weights))
        naive = sum(float(w) * (1 - (1 - c / n) ** k) for c, w in enumerate(weights))
        truth = float(1 - (1 - p) ** k)
        assert mean == pytest.approx(truth, abs=1e-12)
        assert naive == pytest.approx(truth, abs=1e-12) if k == 1 else naive < truth - 1e-6


@given(COUNTS)
def test_pass_at_1_is_the_share_and_more_tries_never_hurt(counts):
    n, c, _ = counts
    values = [pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert values[0] == pytest.approx(c / n) and values == sorted(values)


def test_pass_at_k_of_many_samples_does_not_overflow():
    # 1 - C(9000, 500) / C(10000, 500): the log of the ratio by lgamma, an independent route
    log_ratio = (math.lgamma(9001) - math.lgamma(8501)) - (math.lgamma(10001) - math.lgamma(9501))
    assert 1 - pass_at_k(10000, 1000, 500) == pytest.approx(math.exp(log_ratio), abs=1e-15)


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_what_has_no_meaning(n, c, k):
    with pytest.raises(ValueError, match=f"n = {n}, c = {c}, k = {k}"):
        pass_at_k(n, c, k)


def test_majority_breaks_ties_by_first_occurrence_and_ignores_missing_answers():
    assert majority(["b", "a", "a", "b"]) == 0  # two each, b came first
    assert majority([None, None, None, "a"]) == 3  # None has no vote
    assert majority(["a", "b", "b"]) == 1
    assert majority([None, None]) is None and majority([]) is None


def test_maj_at_k_by_hand():
    # Answers 7 7 8 with 7 correct. k = 1: 2/3. k = 2: {7,7} right, {7,8} twice a tie that 7 wins: 1. k = 3: 1.
    answers, correct = ["7", "7", "8"], [True, True, False]
    assert [maj_at_k(answers, correct, k) for k in (1, 2, 3)] == pytest.approx([2 / 3, 1, 1])
    # The wrong answer first: k = 2: {8,7} twice a tie that 8 wins, {7,7} right: 1/3.
    assert maj_at_k(["8", "7", "7"], [False, True, True], 2) == pytest.approx(1 / 3)
    assert maj_at_k([None, None], [False, False], 2) == 0.0


def test_maj_at_k_draws_agree_with_enumeration():
    answers = ["a", "b", "a", "c", "b", "a", None, "b", "c", "a"]
    correct = [answer == "a" for answer in answers]
    exact = maj_at_k(answers, correct, 5, draws=252)  # C(10, 5) = 252
    drawn = maj_at_k(answers, correct, 5, draws=251)  # one too few: sampled
    assert drawn != exact and drawn == maj_at_k(answers, correct, 5, draws=251)
    many = np.mean([maj_at_k(answers, correct, 5, seed=seed, draws=251) for seed in range(40)])
    assert many == pytest.approx(exact, abs=4.5 * 0.5 / math.sqrt(40 * 251))  # 4.5 standard errors at most


def test_maj_at_k_refuses_missing_verdicts():
    with pytest.raises(ValueError, match="n = 2, verdicts 1, k = 1"):
        maj_at_k(["a", "b"], [True], 1)


@pytest.mark.parametrize(
    "successes, n, low, high",
    # p = s/n, z^2 = 3.84146: (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n); 0 of 10 gives z^2 / (10 + z^2)
    [(8, 10, 0.49016, 0.94332), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (15, 50, 0.19104, 0.43750)],
)
def test_wilson_matches_its_formula_and_its_defining_equation(successes, n, low, high):
    interval = wilson(successes, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-5)
    for end in (interval.low, interval.high):
        if 0 < end < 1:  # the ends are where the score test just rejects: |p - end| = z sqrt(end (1 - end) / n)
            assert abs(successes / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 16))
def test_a_proportions_interval_holds_its_value_and_stays_in_bounds(values, samples):
    interval = proportion_interval(values, samples)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.value == pytest.approx(sum(values) / len(values))


def test_weighted_examples_tell_as_much_as_fewer_equal_ones():
    # (3 + 1 + 1 + 1)^2 / (9 + 1 + 1 + 1) = 3; equal weights of any size count in full; a weight of 0 counts nothing
    assert effective_size([3.0, 1.0, 1.0, 1.0]) == pytest.approx(3)
    assert effective_size([0.25] * 7 + [0.0]) == pytest.approx(7)


def test_one_sample_per_problem_gives_wilson_and_clusters_count_once():
    assert proportion_interval([1.0] * 8 + [0.0] * 2) == wilson(8, 10)
    # Samples of a problem all agree: 8 each tell no more than 1. With 40 problems, variance of the mean is
    # p (1-p) / (n - 1), so the effective number is n - 1 = 39.
    clustered = proportion_interval([1.0] * 24 + [0.0] * 16, samples=8)
    assert clustered == wilson(0.6 * 39, 39)
    # Every problem has the same share: samples are as good as independent, 40 x 8 draws.
    assert proportion_interval([0.5] * 40, samples=8) == wilson(160, 320)
    # Nothing ever succeeds: no evidence that samples of a problem are independent, so problems count.
    assert proportion_interval([0.0] * 40, samples=8) == wilson(0, 40)


@pytest.mark.parametrize("a, b", [(2.0, 2.0), (0.3, 0.7)])
def test_a_proportions_interval_covers_the_truth_as_often_as_it_says(a, b):
    """Problems of unequal difficulty, Beta(a, b), 8 samples each. Taking all samples as independent covers less."""
    draw = np.random.default_rng(0)
    problems, samples, rounds = 50, 8, 600
    truth, ours, naive = a / (a + b), 0, 0
    for _ in range(rounds):
        shares = draw.binomial(samples, draw.beta(a, b, problems)) / samples
        interval = proportion_interval(shares.tolist(), samples)
        ours += interval.low <= truth <= interval.high
        flat = wilson(shares.sum() * samples, problems * samples)
        naive += flat.low <= truth <= flat.high
    assert 0.925 <= ours / rounds <= 0.975  # 95 % within 2.8 standard errors of 0.9 %
    assert naive / rounds < 0.85


@pytest.mark.parametrize(
    "degrees, quantile",
    # Student's t at 0.975, any statistics table
    [
        (1, 12.7062),
        (2, 4.302653),
        (3, 3.182446),
        (4, 2.776445),
        (9, 2.262157),
        (12, 2.178813),
        (29, 2.04523),
        (99, 1.984217),
    ],
)
def test_t_quantiles_match_the_tables(degrees, quantile):
    bound = 1e-5 if degrees >= 12 or degrees <= 2 else (1e-3 if degrees >= 4 else 1e-2)
    assert stats.t_quantile(0.975, degrees) == pytest.approx(quantile, abs=bound)


def test_mean_interval_by_hand():
    # 2 4 4 4 6: mean 4, variance (4 + 4) / 4 = 2, standard error sqrt(2/5) = 0.63246, t(4) = 2.776445 -> 4 +- 1.75597
    interval = stats.mean_interval([2, 4, 4, 4, 6])
    assert (interval.low, interval.high) == pytest.approx((2.24403, 5.75597), abs=1e-3)
    assert stats.mean_interval([3.0]).low == -math.inf
    with pytest.raises(ValueError, match="at least one value"):
        stats.mean_interval([])


def test_equal_values_are_no_certainty_where_their_bounds_are_known():
    """If a share q of problems differs, n equal ones are seen with chance (1 - q)^n, which is 5 % where
    q = 1 - 0.05^(1/n): 0.6316 for n = 3, 0.0295 for 100. Those q may lie anywhere between the bounds."""
    cube = 1 - 0.05 ** (1 / 3)
    found = stats.mean_interval([0.25] * 3, bounds=(0, 1))
    assert (found.low, found.high) == pytest.approx((0.25 - cube * 0.25, 0.25 + cube * 0.75))
    assert stats.mean_interval([1.0] * 100, bounds=(0, 1)).low == pytest.approx(1 - 0.02951, abs=1e-5)
    assert stats.mean_interval([0.0], bounds=(0, 1)).high == pytest.approx(0.95)
    assert stats.mean_interval([2, 4], bounds=(0, 9)) == stats.mean_interval([2, 4])
    same = stats.paired_difference([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])
    assert (same.low, same.value, same.high) == pytest.approx((-cube, 0, cube))


def test_a_paired_difference_sees_a_small_gain_that_separate_intervals_hide():
    before = [0.1, 0.3, 0.5, 0.7, 0.9] * 8
    after = [value + gain for value, gain in zip(before, [0.04, 0.06] * 20, strict=True)]
    change = stats.paired_difference(before, after)
    assert change.value == pytest.approx(0.05) and 0.046 < change.low < change.high < 0.054
    assert proportion_interval(before, 8).high > proportion_interval(after, 8).low  # these overlap
    with pytest.raises(ValueError, match="they have 2, 1"):
        stats.paired_difference([0, 1], [1])


def test_distinct_n_by_hand():
    # a b a / a b: unigrams a b a a b -> 2 of 5; bigrams ab ba ab -> 2 of 3; no trigrams but aba -> 1 of 1
    samples = [list("aba"), list("ab")]
    assert [stats.distinct_n(samples, n) for n in (1, 2, 3, 4)] == pytest.approx([2 / 5, 2 / 3, 1.0, 0.0])


def slow_self_bleu(samples):
    """BLEU as its paper states it, one sample against the list of all others."""
    total = 0.0
    for i, hypothesis in enumerate(samples):
        others = samples[:i] + samples[i + 1 :]
        logs = []
        for n in range(1, min(4, len(hypothesis)) + 1):

            def grams(tokens, n=n):
                return Counter(tuple(tokens[j : j + n]) for j in range(len(tokens) - n + 1))

            mine = grams(hypothesis)
            clipped = sum(min(count, max(grams(other)[gram] for other in others)) for gram, count in mine.items())
            logs.append(math.log((clipped if clipped else 0.1) / sum(mine.values())))
        closest = sorted(map(len, others), key=lambda length: (abs(length - len(hypothesis)), length))[0]
        penalty = 1.0 if len(hypothesis) >= closest else math.exp(1 - closest / len(hypothesis))
        total += penalty * math.exp(sum(logs) / len(logs))
    return total / len(samples)


@given(st.lists(st.text("abc", min_size=1, max_size=9).map(list), min_size=2, max_size=6))
def test_self_bleu_matches_the_definition(samples):
    assert self_bleu(samples) == pytest.approx(slow_self_bleu(samples), rel=1e-9)


def test_self_bleu_by_hand_and_at_its_ends():
    assert self_bleu([list("the same")] * 4) == pytest.approx(1.0)
    assert self_bleu([["a"], ["a"]]) == pytest.approx(1.0)  # shorter than four tokens
    # a b c against a b d, and the reverse: precisions 2/3, 1/2, 0.1/1; (1/3 * 0.1)^(1/3) = 0.32183
    assert self_bleu([list("abc"), list("abd")]) == pytest.approx(0.3218298, abs=1e-6)
    assert self_bleu([list("aaaa"), list("bbbb")]) < 0.05
    with pytest.raises(ValueError, match="needs two that are not empty"):
        self_bleu([[1, 2], []])


def test_answer_entropy_is_zero_for_one_answer_and_log_k_for_k():
    assert stats.answer_entropy(["4"] * 5) == 0.0
    for order in permutations(["1", "2", None]):
        assert stats.answer_entropy(order) == pytest.approx(math.log(3))
