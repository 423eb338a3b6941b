"""Simulated raters and what they agree on: Condorcet's cycle, noise, habits, Fleiss' kappa, poisoning."""

import json
import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.data.preferences.agreement import Votes, binomial_test, fleiss_kappa, slices
from fiducial.data.preferences.population import condorcet, is_population, over_pairs, read_population
from fiducial.data.preferences.raters import Rater, aggregate, bradley_terry, poison, simulate, three_raters
from fiducial.data.preferences.record import Preference

DOUBLE = torch.float64
REWARDS = st.lists(st.floats(-5, 5), min_size=3, max_size=5)


def test_three_consistent_raters_average_to_a_cycle():
    """Orders 3>1>2, 2>3>1, 1>2>3: of the three, the first and third put 1 over 2, and so on round. Exactly 2/3 each."""
    for rater in three_raters():
        p = rater.preferences()[0]
        beats = {(i, j) for i, j in permutations(range(3), 2) if p[i, j] == 1}
        assert len(beats) == 3  # every pair is decided
        assert all((i, k) in beats for i, j in beats for j2, k in beats if j == j2)  # transitive
    p = aggregate(three_raters())[0]
    for i, j in ((0, 1), (1, 2), (2, 0)):
        assert float(p[i, j]) == pytest.approx(2 / 3, abs=1e-15)
    assert torch.equal(p.diagonal(), torch.full((3,), 0.5, dtype=DOUBLE))


def test_nobody_wins_the_cycle_and_no_reward_explains_it():
    pytest.importorskip("scipy")
    from fiducial.exact.minmax import minmax_winner
    from fiducial.exact.optima import bradley_terry_fit

    p = aggregate(three_raters())[0]
    winner = minmax_winner(p)
    assert winner.is_unique and torch.allclose(winner.policy, torch.full((3,), 1 / 3, dtype=DOUBLE), atol=1e-6)
    assert bradley_terry_fit(p, torch.full((3,), 1 / 3, dtype=DOUBLE)).abs().max() < 1e-9


@given(REWARDS, st.floats(-100, 100), st.floats(0.1, 10))
def test_bradley_terry(rewards, shift, temperature):
    r = torch.tensor(rewards, dtype=DOUBLE)
    p = bradley_terry(r, temperature)
    assert torch.allclose(p + p.T, torch.ones_like(p), atol=1e-15)
    assert torch.allclose(bradley_terry(r + shift, temperature), p, atol=1e-11)  # a prompt's constant is not seen
    odds = p / p.T
    for i, j, k in combinations(range(len(rewards)), 3):
        assert torch.log(odds[i, j] * odds[j, k] / odds[i, k]).abs() < 1e-12  # the product rule
    for i, j, k in permutations(range(len(rewards)), 3):
        if p[i, j] >= 0.5 and p[j, k] >= 0.5:
            assert p[i, k] >= max(p[i, j], p[j, k]) - 1e-12  # strong stochastic transitivity
    assert torch.log(odds[0, 1]) == pytest.approx(float((r[0] - r[1]) / temperature), abs=1e-9)


def test_noise_temperature_and_length():
    matrix = torch.tensor([[0.5, 0.9], [0.1, 0.5]], dtype=DOUBLE)
    noisy = Rater("r", matrix=matrix, noise=0.25).preferences()[0]
    assert noisy[0, 1] == pytest.approx(0.75 * 0.9 + 0.25 * 0.1)  # (1 - e) P + e (1 - P)
    assert torch.allclose(Rater("r", matrix=matrix, noise=0.5).preferences(), torch.tensor(0.5, dtype=DOUBLE))
    table = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert Rater("r", table, temperature=0.0).preferences()[:, 0, 1].tolist() == [1.0, 0.5]
    assert Rater("r", table, temperature=2.0).preferences()[0, 0, 1] == pytest.approx(1 / (1 + math.exp(-0.5)))
    # 3 words less, 0.5 each: 1 - 0 + 0.5 (2 - 5) = -0.5
    lengths = torch.tensor([[2.0, 5.0], [1.0, 1.0]], dtype=DOUBLE)
    fond = Rater("r", table, length_bias=0.5)
    assert fond.preferences(lengths)[0, 0, 1] == pytest.approx(1 / (1 + math.exp(0.5)))
    with pytest.raises(ValueError, match="looks at length"):
        fond.preferences()


def test_weights_count_and_need_not_add_up_to_one():
    up, down = torch.tensor([[0.5, 1.0], [0.0, 0.5]]), torch.tensor([[0.5, 0.0], [1.0, 0.5]])
    p = aggregate([Rater("a", matrix=up, weight=6.0), Rater("b", matrix=down, weight=2.0)])
    assert p[0].tolist() == [[0.5, 0.75], [0.25, 0.5]]


WRONG = [
    (dict(), "either rewards or a matrix"),
    (dict(rewards=torch.zeros(2), matrix=torch.full((2, 2), 0.5)), "either rewards or a matrix"),
    (dict(matrix=torch.tensor([[0.5, 0.9], [0.2, 0.5]])), r"matrix\[j\]\[i\] must be 1"),
    (dict(matrix=torch.tensor([[0.5, 1.5], [-0.5, 0.5]])), "probabilities"),
    (dict(rewards=torch.zeros(2), noise=1.5), "noise is a share"),
    (dict(rewards=torch.zeros(2), weight=0.0), "weight must be above 0"),
    (dict(rewards=torch.zeros(2), temperature=-1.0), "temperature must be 0 or more"),
    (dict(rewards=torch.tensor([0.0, float("nan")])), "finite numbers"),
    (dict(matrix=torch.full((2, 2), 0.5), length_bias=1.0), "length_bias shifts rewards"),
]


@pytest.mark.parametrize("settings, message", WRONG)
def test_a_rater_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Rater("r", **settings)


# -- simulation --------------------------------------------------------------------------------------------------------


def shares(records, count):
    """How often response i was preferred to j, from the texts "0", "1", ..."""
    wins = torch.zeros(count, count, dtype=DOUBLE)
    for r in records:
        i, j = int(str(r.response_a)), int(str(r.response_b))
        wins[(i, j) if r.lean > 0 else (j, i)] += 1
    return wins / (wins + wins.T)


def test_judgements_follow_the_population():
    raters = [Rater("a", torch.tensor([0.0, 1.0, 2.0])), Rater("b", torch.tensor([1.0, 0.0, 0.0]), weight=3.0)]
    records = simulate(raters, ["x"], [["0", "1", "2"]], 6000, seed=0)
    expected = aggregate(raters)[0]
    for i, j in combinations(range(3), 2):  # about 2000 draws each: a standard error of at most 0.0112
        assert float(shares(records, 3)[i, j]) == pytest.approx(float(expected[i, j]), abs=0.045)
    who = Counter(r.rater_id for r in records)
    assert who["b"] / 6000 == pytest.approx(0.75, abs=0.023)  # 4 standard errors of sqrt(3/16 / 6000)
    first = Counter((r.response_a, r.response_b) for r in records)
    assert all(first[a, b] / 6000 == pytest.approx(1 / 6, abs=0.02) for a, b in permutations("012", 2))
    assert {r.source for r in records} == {"simulated"} and {r.rating for r in records} == {2.0, -2.0}
    # a shorter call gives the beginning of a longer one
    assert simulate(raters, ["x"], [["0", "1", "2"]], 50, seed=0) == records[:50]
    assert simulate(raters, ["x"], [["0", "1", "2"]], 50, seed=1) != records[:50]


def test_without_replacement_each_pair_is_judged_once():
    """Two prompts with three responses each have 2 x 3 pairs, and asking for one more is refused."""
    raters = [Rater("r", torch.tensor([[0.0, 0.1, 0.2], [0.2, 0.1, 0.0]]))]
    world = (raters, ["x", "y"], [["0", "1", "2"], ["3", "4", "5"]])
    every = simulate(*world, None, seed=0)
    keys = [frozenset((r.prompt, r.response_a, r.response_b)) for r in every]
    assert keys == [
        frozenset((x, a, b)) for x, texts in (("x", "012"), ("y", "345")) for a, b in combinations(texts, 2)
    ]
    some = simulate(*world, 4, seed=0, replacement=False)
    said = {key: (r.response_a, r.rating) for key, r in zip(keys, every, strict=True)}
    assert len({r.pair_key for r in some}) == 4
    assert all(said[frozenset((r.prompt, r.response_a, r.response_b))] == (r.response_a, r.rating) for r in some)
    chosen = Counter(r.pair_key for seed in range(300) for r in simulate(*world, 1, seed=seed, replacement=False))
    assert len(chosen) == 6 and max(chosen.values()) < 50 + 4 * 6.5  # sqrt(300 x 1/6 x 5/6) = 6.5
    with pytest.raises(ValueError, match="n = 7 is more than the 6 pairs there are"):
        simulate(*world, 7, seed=0, replacement=False)
    assert len(simulate(*world, 7, seed=0)) == 7


def test_degrees_positions_and_traits():
    """Rewards 0, 0.2, 3: |2 P - 1| = tanh(gap / 2) is 0.0997 for 0.2, 0.886 for 2.8, 0.905 for 3."""
    rater = Rater("r", torch.tensor([0.0, 0.2, 3.0]), tie_below=0.1, slight_below=0.9, traits={"country": "x"})
    records = simulate([rater], ["x"], [["0", "1", "2"]], 300, seed=0)
    degree = {frozenset((r.response_a, r.response_b)): abs(r.rating) for r in records}
    assert degree == {frozenset("01"): 0.0, frozenset("12"): 1.0, frozenset("02"): 2.0}
    assert all(r.fields == {"country": "x"} and r.to_row()["country"] == "x" for r in records)
    always = simulate([Rater("r", torch.zeros(2), position_bias=1.0)], ["x"], [["0", "1"]], 20, seed=0)
    assert all(r.rating == 2 for r in always) and {r.response_a for r in always} == {"0", "1"}


def test_several_raters_judge_one_pair():
    records = simulate(three_raters(), ["x"], [["0", "1", "2"]], 10, seed=0, raters_per_pair=3)
    assert len(records) == 30
    for i in range(0, 30, 3):
        assert {r.rater_id for r in records[i : i + 3]} == {"rater 1", "rater 2", "rater 3"}
        assert len({r.pair_key for r in records[i : i + 3]}) == 1
    for arguments, message in [
        ((["x", "y"], [["0", "1", "2"]], 5, 0, 1), "1 prompts with 3 responses"),
        ((["x"], [["0", "1"]], 5, 0, 1), "1 prompts with 3 responses"),
        ((["x"], [["0", "1", "2"]], 0, 0, 1), "nothing to compare"),
        ((["x"], [["0", "1", "2"]], 5, 0, 4), "from 1 to the 3 raters"),
    ]:
        with pytest.raises(ValueError, match=message):
            simulate(three_raters(), *arguments)
    with pytest.raises(ValueError, match="two raters have the same id"):
        simulate([Rater("r", torch.zeros(2))] * 2, ["x"], [["0", "1"]], 5, 0)


# -- agreement ---------------------------------------------------------------------------------------------------------


def test_fleiss_kappa_of_the_worked_example():
    """Ten subjects, fourteen raters, five categories: the table and kappa = 0.210 of Wikipedia, "Fleiss' kappa".

    In fractions: P = mean of (sum n^2 - 14) / (14 x 13), P_e = sum of squared column shares.
    """
    table = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    agree = sum(Fraction(sum(n * n for n in row) - 14, 14 * 13) for row in table) / 10
    chance = sum(Fraction(sum(column), 140) ** 2 for column in zip(*table, strict=True))
    assert fleiss_kappa(table) == pytest.approx(float((agree - chance) / (1 - chance)), abs=1e-12)
    assert round(fleiss_kappa(table), 3) == 0.210


def test_kappa_at_its_ends():
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1.0
    assert fleiss_kappa([[2, 1], [1, 2]]) == pytest.approx(-1 / 3)  # P = 1/3, P_e = 1/2
    assert fleiss_kappa([[3, 0], [3, 0]]) is None  # all is one category: chance always agrees
    with pytest.raises(ValueError, match="at least two raters"):
        fleiss_kappa([[1, 0]])


def test_votes_of_the_cycle():
    """On each pair two of three agree: P = 1/3, and both orders make P_e = 1/2, so kappa = -1/3; every rater is with
    the majority on two of its three pairs."""
    votes = Votes(simulate(three_raters(), ["x"], [["0", "1", "2"]], 60, seed=0, raters_per_pair=3))
    assert votes.raters == ["rater 1", "rater 2", "rater 3"]
    assert votes.kappa() == pytest.approx(-1 / 3)
    assert votes.accuracy() == {f"rater {i}": (pytest.approx(2 / 3), 3) for i in (1, 2, 3)}
    assert (len(votes.pairs), votes.disputed(), votes.contradictions()) == (3, 3, 0)
    assert votes.repeats() == 60 * 3 - 9  # each rater says the same of the same pair


def test_kappa_does_not_depend_on_the_order_of_sides():
    records = simulate(three_raters(), ["x"], [["0", "1", "2"]], 30, seed=1, raters_per_pair=2)
    assert Votes(records).kappa() == Votes([r.swapped() for r in records]).kappa()


def judged(rater, a, b, rating, prompt="x", **fields):
    return Preference(prompt, a, b, rating, rater_id=rater, fields=fields)


def test_contradictions_repeats_and_disputes():
    votes = Votes(
        [
            judged("r", "a", "b", 1),
            judged("r", "b", "a", 1),  # both ways
            judged("s", "c", "d", 1),
            judged("s", "d", "c", -2),  # again, and the same
            judged("t", "c", "d", -1),  # another rater: a dispute, no contradiction
            judged("s", "c", "d", 0, prompt="y"),
        ]
    )
    assert (votes.contradictions(), votes.repeats(), votes.disputed()) == (1, 1, 2)  # r disagrees with itself, s with t
    unnamed = Votes([judged("", "a", "b", 1), judged("", "b", "a", 1)])
    assert (unnamed.contradictions(), unnamed.disputed(), unnamed.kappa()) == (1, 0, None)


def test_a_rater_who_always_answers_a_is_found_and_a_fair_one_is_not():
    fair = [judged("fair", f"a{i}", f"b{i}", 1 if i % 2 else -1) for i in range(40)]
    votes = Votes([*fair, *(judged("lazy", f"a{i}", f"b{i}", 2) for i in range(12))])
    (lazy,) = votes.biased()
    assert (lazy.rater_id, lazy.a, lazy.b, lazy.n) == ("lazy", 12, 0, 12)
    assert lazy.p_value == pytest.approx(2 / 2**12)  # all of 12 tosses alike, either way
    assert not Votes(judged("new", f"a{i}", f"b{i}", 2) for i in range(7)).biased()  # 2 / 2^7 = 0.016: could be chance
    assert not Votes([judged("tied", "a", "b", 0)]).biased()


@given(st.integers(0, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_binomial_test_by_enumeration(case):
    k, n = case
    far = [math.comb(n, i) for i in range(n + 1) if abs(i - n / 2) >= abs(k - n / 2)]
    assert binomial_test(k, n) == pytest.approx(sum(far) / 2**n, rel=1e-9)
    with pytest.raises(ValueError, match="there cannot be"):
        binomial_test(n + 1, n)


def test_slices_by_a_column_and_by_a_field():
    north = [judged(r, "a", "b", 2, country="north") for r in ("n1", "n2", "n3")]
    south = [judged(r, "a", "b", -2, country="south") for r in ("s1", "s2")]
    found = slices([*north, *south], "country")
    assert found["north"] == {"n": 3, "share_a": 1.0, "kappa": 1.0, "majority": 1.0}
    assert found["south"] == {"n": 2, "share_a": 0.0, "kappa": 1.0, "majority": 0.0}  # two against three
    assert set(slices(north, "rater_id")) == {"n1", "n2", "n3"}
    assert set(slices(north, "age")) == {None}


# -- populations -------------------------------------------------------------------------------------------------------


def test_poisoned_raters_say_the_opposite():
    raters = [Rater(f"r{i}", torch.tensor([1.0, 0.0]), noise=0.1) for i in range(5)]
    turned = poison(raters, 0.4, seed=3)
    liars = [r for r in turned if r.traits["poisoned"]]
    assert len(liars) == 2
    honest = raters[0].preferences()[0, 0, 1]
    assert all(r.preferences()[0, 0, 1] == pytest.approx(float(1 - honest)) for r in liars)
    expected = 0.6 * honest + 0.4 * (1 - honest)
    assert aggregate(turned)[0, 0, 1] == pytest.approx(float(expected))
    assert torch.allclose(aggregate(poison(raters, 0.0)), aggregate(raters))
    with pytest.raises(ValueError, match="a share of the raters"):
        poison(raters, 1.5)


def test_poisoning_moves_the_winner_and_the_fit():
    """Two raters, s(1) = 0.731 for the first of two: with one of them turned round the average is 1/2, so the winner
    moves from the first alone by a total variation of at least 1/2, and the fit from (1/2, -1/2) to (0, 0)."""
    pytest.importorskip("scipy")
    from fiducial.evals.poisoning import poisoning_shift

    raters = [Rater("a", torch.tensor([1.0, 0.0])), Rater("b", torch.tensor([1.0, 0.0]))]
    shift = poisoning_shift(raters, 0.5)
    assert shift.minmax[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert torch.allclose(shift.preference[1], torch.full((2, 2), 0.5, dtype=DOUBLE))
    assert shift.rewards[0].tolist() == pytest.approx([0.5, -0.5], abs=1e-6)
    assert shift.rewards_shift == pytest.approx(0.5, abs=1e-6)
    everybody = poisoning_shift(raters, 1.0)
    assert everybody.winner_shift == pytest.approx(1.0, abs=1e-6)
    assert everybody.rewards_shift == pytest.approx(1.0, abs=1e-6)
    assert poisoning_shift(raters, 0.0).winner_shift == 0.0


def test_a_population_over_pairs():
    records = [
        Preference("x", "good", "bad", pref_prob=1.0),
        Preference("y", "worse", "better", -2),
        Preference("z", "one", "other", 0),
        Preference([{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "a"}],
                   [{"role": "assistant", "content": "b"}], 1),
    ]  # fmt: skip
    raters, prompts, responses = over_pairs(records, 2, temperature=0.0)
    assert (prompts, responses) == (["x", "y", "z"], [["good", "bad"], ["worse", "better"], ["one", "other"]])
    assert raters[1].preferences()[:, 0, 1].tolist() == [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="no pair of texts"):
        over_pairs(records[3:], 2)
    with pytest.raises(ValueError, match="at least one rater"):
        over_pairs(records, 0)


def test_a_population_from_a_file(tmp_path):
    path = tmp_path / "population.json"
    table = {
        "prompts": ["x"],
        "responses": [["a", "b"]],
        "raters": [
            {"id": "one", "rewards": [[1, 0]], "temperature": 0.5, "traits": {"age": 3}},
            {"matrix": [[[0.5, 0.25], [0.75, 0.5]]], "noise": 0.0, "weight": 2},
        ],
    }
    path.write_text(json.dumps(table))
    assert is_population(path)
    raters, prompts, responses = read_population(path)
    assert [r.id for r in raters] == ["one", "rater 2"] and (prompts, responses) == (["x"], [["a", "b"]])
    assert raters[0].preferences()[0, 0, 1] == pytest.approx(1 / (1 + math.exp(-2)))
    assert aggregate(raters)[0, 0, 1] == pytest.approx((1 / (1 + math.exp(-2)) + 2 * 0.25) / 3)
    for change, message in [
        ({"raters": []}, "raters is missing"),
        ({"raters": [{"rewards": [[1, 0]], "nois": 0.1}]}, "rater 1: a rater is an object with some of id, rewards"),
        ({"raters": [{"rewards": [[1, 0]], "noise": 2}]}, "rater 1: .*noise is a share"),
        ({"raters": [{"rewards": "high"}]}, "rater 1"),
    ]:
        path.write_text(json.dumps({**table, **change}))
        with pytest.raises(ValueError, match=message) as caught:
            read_population(path)
        assert "population.json" in str(caught.value)
    path.write_text("[{}]")
    assert not is_population(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="population.json is not a readable JSON file"):
        read_population(path)
    assert len(condorcet()[0]) == 3
