"""Rewards of length, repetition and language, and several rewards as one, by arithmetic on paper."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.core.shaping import (
    length_reward,
    normalise_then_sum,
    normalised,
    overlong_penalty,
    sum_then_normalise,
    weighted_sum,
)
from fiducial.core.types import Score
from fiducial.rewards import build
from fiducial.rewards.shaping import LanguageConsistency, detected_share, prose, script_share

NAN = math.nan

# ---------------------------------------------------------------- length


def test_overlong_is_dapos_piecewise_penalty():
    # L_max 20480, cache 4096: 0 up to 16384, half at 18432, -1 at 20480 and beyond
    for length, value in ((0, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5), (20480, -1), (10**6, -1)):
        assert overlong_penalty(length, 20480, 4096) == value
        (score,) = build("overlong")(["x"], [{"num_tokens": length}])
        assert score.value == value and score.graded
    assert [overlong_penalty(n, 10, 0) for n in (10, 11)] == [0, -1]
    with pytest.raises(ValueError, match="cache must be from 0 to max_length = 10; it is 11"):
        build("overlong(max_length=10, cache=11)")
    (score,) = build("overlong")(["x"], [{}])
    assert score.verdict == "skipped" and "'num_tokens'" in score.why


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 1200))
def test_overlong_is_continuous_and_within_its_range(max_length, cache, length):
    cache = min(cache, max_length)
    here, next_ = (overlong_penalty(n, max_length, cache) for n in (length, length + 1))
    assert -1 <= next_ <= here <= 0
    assert here - next_ <= 1 / max(cache, 1) + 1e-12  # no step larger than the slope


def test_length_reward_by_hand():
    # shortest 10, longest 30: lambda = .5, .25, 0, -.5; a wrong one is never paid
    assert length_reward([10, 15, 20, 30], [True] * 4) == [0.5, 0.25, 0, -0.5]
    assert length_reward([10, 15, 20, 30], [False] * 4) == [0, 0, 0, -0.5]
    assert length_reward([7, 7], [True, False]) == [0, 0]
    assert length_reward([], []) == []
    with pytest.raises(ValueError, match="2 lengths and 1 verdicts"):
        length_reward([1, 2], [True])


# ---------------------------------------------------------------- several sources within a group


def test_normalised_by_hand():
    # 1, 3, 5: mean 3, population std sqrt(8/3)
    found = normalised(torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]).double())
    assert found[0].tolist() == pytest.approx([-2 / math.sqrt(8 / 3), 0, 2 / math.sqrt(8 / 3)])
    assert found[1].tolist() == [0, 0, 0]
    assert normalised(torch.full((7,), 7.3)).tolist() == [0] * 7  # their float32 mean is none of them


def test_sources_are_summed_over_those_that_apply():
    rewards = torch.tensor([[1.0, NAN, NAN], [10.0, 20.0, NAN]])
    found = weighted_sum(rewards, torch.tensor([2.0, 0.5]))
    assert found[:2].tolist() == [2 * 1 + 0.5 * 10, 0.5 * 20] and found[2].isnan()
    assert weighted_sum(torch.tensor([[4.0, 5.0], [9.0, 9.0]]), torch.tensor([1.0, 0.0])).tolist() == [4, 5]


def test_the_two_orders_differ_where_scales_do():
    # one source in {0, 1}, one in {0, 100}, disagreeing: summed first the large one decides, normalised first neither
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 100.0, 0.0, 100.0]])
    weights = torch.ones(2)
    assert sum_then_normalise(rewards, weights).tolist() == pytest.approx([-1, 1, -1, 1])
    assert normalise_then_sum(rewards, weights).tolist() == pytest.approx([0, 0, 0, 0])
    alone = torch.tensor([1.0, 0.0])
    first = normalised(rewards[0]).tolist()
    assert sum_then_normalise(rewards, alone).tolist() == normalise_then_sum(rewards, alone).tolist() == first


@given(st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=4))
def test_each_source_has_unit_variance_within_the_group(rows):
    rewards = torch.tensor(rows, dtype=torch.float64)
    for source, scaled in zip(rewards, normalised(rewards), strict=True):
        spread = float(source.var(unbiased=False).sqrt())
        if spread > 1e-6:
            assert float(scaled.var(unbiased=False)) == pytest.approx(1, abs=1e-6)
        assert float(scaled.mean()) == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- clips, gates, routes in a recipe's table


def test_parts_of_a_table():
    row = {"answer": "4", "num_tokens": 30, "source": "sums"}
    reward = build(
        {
            "numeric": {"weight": 2.0, "when": {"source": ["sums", "products"]}},
            "short": {"verifier": "overlong(max_length=20, cache=10)", "clip": [-0.25, 0]},
            "form": {"verifier": "format", "weight": 0, "gate": -3},
        }
    )
    good = "<think>2 + 2</think><answer>4</answer>"
    (score,) = reward([good], [row])
    assert (score.value, score.verdict) == (2.0 * 1 - 0.25, "correct")  # 30 tokens cost -1, held at -0.25
    assert score.parts["short"].value == -1 and set(score.parts) == {"numeric", "short", "form"}
    assert reward(["4"], [row])[0].value == -3  # the gate
    (other,) = reward([good], [{**row, "source": "prose", "answer": "no number"}])
    assert "numeric" not in other.parts and other.value == -0.25
    routed = build({"numeric": {"when": {"source": "sums"}}, "exact": {"when": {"source": "capitals"}}})
    rows = [{"answer": "4", "source": "sums"}, {"answer": "Rome", "source": "capitals"}, {"answer": "4"}]
    scores = routed(["the answer is 4", "the answer is Rome", "the answer is 4"], rows)
    assert [score.verdict for score in scores] == ["correct", "correct", "skipped"]
    assert "no part with a positive weight is for this row" in scores[2].why


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "name at least one verifier"),
        ({"exact": {"wieght": 1}}, "reward.exact has no setting 'wieght'; it has verifier, weight"),
        ({"exact": {"clip": [1]}}, "reward.exact.clip must be two numbers"),
        ({"exact": {"clip": [1, 0]}}, "clip must be the lower and the upper end"),
        ({"exact": {"gate": "yes"}}, "reward.exact.gate must be the number"),
        ({"exact": {"gate": 0}, "format": {"gate": 0}}, "one part may be the gate; there are exact, format"),
        ({"exact": {"when": "gsm8k"}}, "reward.exact.when must be a table"),
        ({"exact": {"weight": "1"}}, "the weight must be a finite number"),
        ({"exacty": 1.0}, "there is no verifier 'exacty'"),
        ({"exact": -1.0}, "at least one weight must be above 0"),
    ],
)
def test_tables_that_make_no_sense_are_refused(table, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        build(table)


# ---------------------------------------------------------------- repetition, language


def test_repetition_reward():
    long = " ".join(["no"] * 10)  # eight 3-grams, one of them distinct: p (1 - 1/8)
    for text, value in ((long, -7 / 8), ("one two three four", 0.0), ("", 0.0)):
        assert build("repetition")([text], [{}])[0].value == pytest.approx(value)
    assert build("repetition(n=1, penalty=-2.0)")(["a a b b"], [{}])[0].value == -2 * (1 - 2 / 4)
    with pytest.raises(ValueError, match="penalty 0 or less"):
        build("repetition(penalty=1.0)")


def share(text, **row):
    (score,) = LanguageConsistency()([text], [row])
    return score.value


def test_language_consistency():
    assert share("<think>All of it is here.</think><answer>没有</answer>") == 1  # the answer does not count
    assert share("<think>one два three четыре</think>") == 0.5
    assert share("<think>one два three четыре</think>", language="ru") == 0.5
    assert share("<think>这里都是中文</think>", language="zh") == 1
    assert share("因为 then 所以 so", language="zh") == 0.5  # four letters are two words
    assert share("<think>x = `größe` $\\alpha$ ```代码``` well</think>") == 1  # code and formulas do not count
    assert share("<think>wоrd word</think>") == 1  # one Cyrillic letter in a word is no other language
    for empty in ("<think></think><answer>Some words</answer>", "<think>12 + 3</think>", ""):
        (score,) = LanguageConsistency()([empty], [{}])
        assert (score.value, score.verdict) == (None, "unparseable")
    (score,) = LanguageConsistency()(["words"], [{"language": "tlh"}])
    assert score.verdict == "skipped" and "'tlh'" in score.why
    assert prose("a `b` c $d$ \\(e\\) https://f.g/h i").split() == ["a", "c", "i"]


def test_the_detector_tells_languages_of_one_script_apart():
    pytest.importorskip("langdetect", reason="tells languages apart; an optional extra")
    mixed = "The weather was very fine this morning. Das Wetter war heute Morgen wirklich schön. 12 34."
    assert script_share(mixed, "en") == 1
    assert detected_share(mixed, "en") == 0.5  # seven words of fourteen
    assert detected_share("12 34", "en") is None
    text = f"<think>{mixed}</think>"
    assert build("language_consistency(by='detector')")([text], [{"language": "de"}])[0].value == 0.5


@given(st.text(max_size=200))
def test_any_text_gets_a_grade(text):
    for name in ("repetition", "language_consistency"):
        (score,) = build(name)([text], [{}])
        assert score.value is None or -1 <= score.value <= 1
        assert isinstance(score, Score) and score.verdict in ("correct", "wrong", "unparseable")


def test_no_text_takes_long():
    for text in (
        "`" * 99_999,
        "$" * 99_999,
        "\\(" * 50_000,
        "```a" * 30_000,
        "<a" * 50_000,
        "字" * 100_000,
        "a " * 90_000,
    ):
        for name in ("repetition", "language_consistency"):
            (score,) = build(name)([text], [{}])
            assert score.seconds < 5
