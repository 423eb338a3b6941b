"""Judges of two completions and the win rate, against hand-made outcomes, enumeration and known intervals."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core.types import Problem, Rollout, Score
from fiducial.data.feedback import Comparison, Judgement
from fiducial.evals.stats import wilson
from fiducial.evals.win_rate import bootstrap_interval, head_to_head, win_rate
from fiducial.judges import pair_judge
from fiducial.judges.of_rewards import ScoreJudge, UserJudge


class Lengths:
    """The length is the score; an empty text cannot be scored, "?" is unparseable."""

    name = "lengths"

    def __init__(self):
        self.texts = []

    def __call__(self, completions, rows):
        self.texts += completions
        return [self.score(text) for text in completions]

    def score(self, text):
        if text in ("", "?"):
            return Score(None, "unparseable" if text else "timeout")
        return Score(float(len(text)), "correct")


class Table:
    """P(a wins) from a table of texts."""

    name, symmetric = "table", True

    def __init__(self, table):
        self.table, self.asked = table, 0

    def __call__(self, comparisons):
        self.asked += len(comparisons)
        return [Judgement(p, "" if p is not None else "skipped") for p in (self.table[c.a, c.b] for c in comparisons)]


# -- judges ------------------------------------------------------------------------------------------------------------


def test_a_reward_model_judges_by_bradley_terry():
    reward = Lengths()
    judge = ScoreJudge(reward, "sigmoid")
    found = judge([Comparison("q", "aaa", "b"), Comparison("q", "b", "aaa"), Comparison("q", "aaa", "cc")])
    sigma = 1 / (1 + math.exp(-2))
    assert [j.probability for j in found] == pytest.approx([sigma, 1 - sigma, 1 / (1 + math.exp(-1))])
    assert found[0].details == found[1].details == {"scores": [3.0, 1.0]}
    assert reward.texts == ["aaa", "b", "cc"]  # each once
    assert judge.symmetric


def test_a_verifier_judges_by_which_score_is_higher():
    found = ScoreJudge(Lengths(), "sign")(
        [Comparison("q", a, b) for a, b in [("aaa", "b"), ("b", "aaa"), ("x", "y"), ("?", "y"), ("", "y"), ("y", "")]]
    )
    # "?" is unparseable, which is worth 0 as in a recipe; what the verifier failed on ("") is not judged.
    assert [j.probability for j in found] == [1.0, 0.0, 0.5, 0.0, None, None]
    assert {j.why for j in found[4:]} == {"timeout"}


def test_the_same_text_under_two_prompts_is_scored_for_each():
    reward = Lengths()
    ScoreJudge(reward, "sign")([Comparison("q", "a", "b"), Comparison("r", "a", "b"), Comparison("r", "a", "b")])
    assert reward.texts == ["a", "b", "a", "b"]


def test_messages_cannot_be_scored_as_text():
    with pytest.raises(ValueError, match="one is a list of messages"):
        ScoreJudge(Lengths(), "sign")([Comparison("q", [{"role": "assistant", "content": "x"}], "b")])


JUDGES = '''
def better(prompt, a, b, bonus=0.0):
    """Probability that a wins."""
    if prompt == "none":
        return None
    return 0.5 + bonus * (len(a) - len(b))

def brevity(completion):
    return -len(completion)

def wild(a, b):
    return 7
'''


def test_a_users_function_of_two_completions(tmp_path):
    (tmp_path / "mine.py").write_text(JUDGES)
    judge = pair_judge(f"{tmp_path}/mine.py:better")
    assert isinstance(judge, UserJudge) and judge.name == "better" and not judge.symmetric
    found = judge(
        [Comparison("q", "aaa", "b", {"bonus": 0.1}), Comparison("q", "a", "b"), Comparison("none", "a", "b")]
    )
    assert [j.probability for j in found] == [pytest.approx(0.7), 0.5, None] and found[2].why == "skipped"
    with pytest.raises(ValueError, match="in \\[0, 1\\]; it said 7"):
        pair_judge(f"{tmp_path}/mine.py:wild")([Comparison("q", "a", "b")])


def test_names_of_judges(tmp_path):
    (tmp_path / "mine.py").write_text(JUDGES)
    scored = pair_judge(f"{tmp_path}/mine.py:brevity")
    assert isinstance(scored, ScoreJudge) and scored.link == "sign"
    assert scored([Comparison("q", "a", "bb")])[0].probability == 1.0
    numeric = pair_judge("numeric")
    assert numeric([Comparison("q", "#### 4", "#### 5", {"answer": "4"})])[0].probability == 1.0
    with pytest.raises(ValueError, match="there is no verifier 'nobody'"):
        pair_judge("nobody")


# -- the win rate ------------------------------------------------------------------------------------------------------


def groups(*pairs):
    return [[Comparison(f"p{i}", a, b)] for i, (a, b) in enumerate(pairs)]


def test_wins_ties_losses_and_both_intervals():
    judge = Table({("w", "l"): 0.9, ("l", "w"): 0.3, ("t", "u"): 0.5, ("n", "o"): None})
    found = win_rate(judge, groups(("w", "l"), ("w", "l"), ("l", "w"), ("t", "u"), ("s", "s"), ("n", "o")))
    assert (found.wins, found.ties, found.losses, found.n) == (2, 2, 1, 5)
    assert found.value == pytest.approx((2 + 0.5 * 2) / 5)
    assert (found.wilson.low, found.wilson.high) == pytest.approx((wilson(3, 5).low, wilson(3, 5).high))
    assert found.bootstrap.low < 0.6 < found.bootstrap.high and found.bootstrap.value == pytest.approx(0.6)
    assert found.identical == 1 and judge.asked == 5
    assert found.unjudged == {"skipped": 1} and found.share_unjudged == pytest.approx(1 / 6)


OUTCOMES = st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=3), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(OUTCOMES)
def test_the_two_sides_win_rates_add_up_to_one(probabilities):
    table = {(f"{i}.{j}", "b"): p for i, group in enumerate(probabilities) for j, p in enumerate(group)}
    table |= {("b", text): 1 - p for (text, _), p in table.items()}
    there = [[Comparison(f"p{i}", f"{i}.{j}", "b") for j in range(len(g))] for i, g in enumerate(probabilities)]
    back = [[comparison.swapped() for comparison in group] for group in there]
    ours, theirs = win_rate(Table(table), there), win_rate(Table(table), back)
    assert ours.value + theirs.value == pytest.approx(1)
    assert ours.wilson.low == pytest.approx(1 - theirs.wilson.high, abs=1e-9)


def test_it_is_the_bilinear_form_of_the_preference_matrix():
    """Policies (1/2, 1/4, 1/4) and (1/4, 3/4, 0) over rock, scissors, paper: pi' P pi with P in {0, 1/2, 1}."""
    matrix = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)
    ours, theirs = [0, 0, 1, 2], [0, 1, 1, 1]  # every draw equally often
    table = {(f"a{i}", f"b{j}"): float(matrix[i, j]) for i in range(3) for j in range(3)}
    found = win_rate(Table(table), [[Comparison("p", f"a{i}", f"b{j}") for i, j in product(ours, theirs)]])
    pi, other = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.25, 0.75, 0.0]).double()
    assert found.value == pytest.approx(float(pi @ matrix @ other))


def test_a_judge_that_goes_by_the_order_finds_only_ties():
    class First:
        name, symmetric = "first", False

        def __call__(self, comparisons):
            return [Judgement(0.7)] * len(comparisons)

    found = win_rate(First(), groups(*[("a", "b")] * 4))
    assert found.ties == 4 and found.value == 0.5 and found.position_bias == pytest.approx(0.4)


def test_nothing_judged_is_refused():
    with pytest.raises(ValueError, match="table judged none of the 2 comparisons: 2 skipped"):
        win_rate(Table({("a", "b"): None}), groups(("a", "b"), ("a", "b")))


def test_the_bootstrap_of_a_coin_is_its_normal_interval():
    """100 prompts, half of them won: 1/2 +- 1.96 * sqrt(1/4 / 100) = 0.402 .. 0.598."""
    found = bootstrap_interval([0.0, 1.0] * 50)
    assert (found.low, found.high) == pytest.approx((0.402, 0.598), abs=0.015)
    assert bootstrap_interval([0.0, 1.0] * 50) == found
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap_interval([])


def test_the_bootstrap_of_too_few_prompts_is_wilsons_interval():
    """Wilson's ends with z^2 = 3.8415. All of 3 won: n / (n + z^2) = 3 / 6.8415 = 0.4385 to 1. Three ties: 1/2 +-
    z / (2 sqrt(n + z^2)) = 1.96 / 5.2312 = 0.3747. 100 wins: 100 / 103.8415 = 0.9630. Resampling gives
    none of these any width."""
    for values, low, high in (
        ([1.0] * 3, 0.4385, 1.0),
        ([0.5] * 3, 0.1253, 0.8747),
        ([0.0] * 3, 0.0, 0.5615),
        ([1.0] * 100, 0.9630, 1.0),
        ([1.0], 0.2065, 1.0),
    ):
        found = bootstrap_interval(values)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert bootstrap_interval([0.0, 1.0, 1.0] * 3) == wilson(6, 9)


class Writes:
    """A policy that writes `words` tokens to every prompt, differently for each seed."""

    def __init__(self, words):
        self.words = words

    def sample(self, prompts, n=1, seed=0, **decoding):
        text = "x " * self.words
        ids = [1] + [2] * self.words
        return [
            Rollout(prompt, f"{text}{seed}.{copy}", ids, [False] + [True] * self.words, [0.0] * len(ids))
            for prompt in prompts
            for copy in range(n)
        ]


def test_a_model_against_itself_and_against_a_longer_one():
    problems = [Problem(f"p{i}") for i in range(3)]
    judge = ScoreJudge(Lengths(), "sigmoid")
    found, lengths = head_to_head(Writes(3), Writes(3), problems, judge, k=2)  # type: ignore[arg-type]
    assert found.value == 0.5 and found.identical == 6
    found, lengths = head_to_head(Writes(3), Writes(5), problems, judge, k=2)  # type: ignore[arg-type]
    assert found.value == 0.0 and (found.n, found.losses) == (3, 6)
    assert lengths == {"completions/mean_length": 3.0, "against/mean_length": 5.0}
