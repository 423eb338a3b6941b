"""Judgements of two or more completions: records, ratings, rankings, safety, and what training reads of them."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.config import RecipeError, Run, from_table
from fiducial.core.types import Demo, Encoded, Label, Pair, Problem
from fiducial.data import BadRow, Criteria, Dataset, Grading, ListRows, Preference, parse
from fiducial.data.preferences import shapes
from fiducial.data.preferences.record import from_ranking, reverse, to_paired, to_unpaired
from fiducial.data.view import Row
from fiducial.methods import METHODS

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TEXT = st.text("ab ", min_size=1, max_size=4).filter(str.strip)
DEGREE = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])


@st.composite
def records(draw):
    """Any judgement of two different texts."""
    a, b, c = draw(st.lists(TEXT, min_size=3, max_size=3, unique=True))
    given_by = draw(st.sampled_from(["rating", "pref_prob", "criteria"]))
    judged = {
        "rating": lambda: {"rating": draw(DEGREE)},
        "pref_prob": lambda: {"pref_prob": draw(st.floats(0, 1))},
        "criteria": lambda: {"criteria": Criteria(draw(DEGREE), draw(DEGREE), draw(DEGREE), draw(DEGREE))},
    }[given_by]()
    return Preference(
        draw(TEXT),
        a,
        b,
        **judged,
        margin=draw(st.sampled_from([0.0, 0.5])),
        edited=draw(st.sampled_from([None, c])),
        harm_a=draw(st.sampled_from([-1.0, 0.0, 1.0])),
        harm_b=draw(st.sampled_from([-1.0, 0.0, 1.0])),
        rater_id=draw(st.sampled_from(["", "r1"])),
        group_id=draw(st.sampled_from(["", "g1"])),
        source=draw(st.sampled_from(["", "human"])),
        weight=draw(st.sampled_from([1.0, 2.0])),
    )


# -- the record --------------------------------------------------------------------------------------------------------


@given(records())
def test_a_judgement_is_the_same_record_in_either_order(record):
    other = record.swapped()
    assert other.response_a == record.response_b and other.lean == pytest.approx(-record.lean)
    assert other == record and hash(other) == hash(record) and other.key == record.key
    assert other.pair_key == record.pair_key
    assert len({record, other, other.swapped()}) == 1
    # whatever is turned round alone makes another record
    turned = replace(record, response_a=record.response_b, response_b=record.response_a)
    if abs(record.lean) > 1e-6 or record.harm_a != record.harm_b:
        assert turned != record and turned.pair_key == record.pair_key


@given(records())
def test_a_row_reads_back_as_the_record(record):
    row = json.loads(json.dumps(record.to_row()))
    assert shapes.judgement(Row(row, {}, 0)) == record
    assert {"chosen", "response_a"} & set(row)


@given(records(), st.sampled_from(["half", "keep"]))
def test_pairs_weigh_what_the_record_does(record, ties):
    pairs = record.to_pairs(Grading(ties=ties))
    assert math.fsum(pair.weight for pair in pairs) == pytest.approx(record.weight)
    # A over B, whatever the order of the rows, has the record's probability of it
    share = sum(p.weight for p in pairs if p.chosen == record.response_a and p.rejected == record.response_b)
    tied = any(p.tied for p in pairs)
    if not tied:
        expected = (
            record.pref_prob
            if record.pref_prob is not None
            else 0.5 + 0.5 * (record.lean > 0) - 0.5 * (record.lean < 0)
        )
        assert share / (record.weight / (3 if record.edited else 1)) == pytest.approx(expected, abs=1e-12)
    swapped = record.swapped().to_pairs(Grading(ties=ties))
    if abs(record.lean) > 1e-9:  # of a tie either order may come first
        key = lambda p: (p.chosen, p.rejected, round(p.weight, 9), round(p.margin, 9), p.rating, p.chosen_harm)  # noqa: E731
        assert Counter(map(key, pairs)) == Counter(map(key, swapped))


@given(st.lists(records(), max_size=8))
def test_pair_to_unpaired_and_back_keeps_the_multiset(found):
    pairs = [pair for record in found for pair in record.to_pairs(Grading(ties="half"))]
    labels = to_unpaired(pairs)
    assert Counter((x.prompt, x.completion) for x in labels if x.desirable) == Counter(
        (p.prompt, p.chosen) for p in pairs
    )
    assert Counter((x.prompt, x.completion) for x in labels if not x.desirable) == Counter(
        (p.prompt, p.rejected) for p in pairs
    )
    again, left = to_paired(labels)
    rest = Counter((x.prompt, x.completion, x.desirable) for x in labels)
    rest.subtract((x.prompt, x.completion, x.desirable) for x in to_unpaired(again))
    assert sum(rest.values()) == left and all(count >= 0 for count in rest.values())


def test_unpaired_rows_make_pairs_and_leftovers():
    labels = [Label("p", "g1", True), Label("p", "b1", False, 0.5), Label("p", "g2", True), Label("q", "b", False)]
    assert to_paired(labels) == ([Pair("p", "g1", "b1", weight=0.5)], 2)


BROKEN = [
    ({"rating": 3.0}, "out of range", r"\[-2, 2\].*it is 3"),
    ({"rating": float("nan")}, "out of range", "it is nan"),
    ({"pref_prob": 1.5}, "out of range", "it is 1.5"),
    ({"rating": 1.0, "pref_prob": 0.2}, "contradiction", "prefer different responses"),
    ({}, "missing field", "give a rating, pref_prob or criteria"),
    ({"rating": 1.0, "edited": "b"}, "equal sides", "are the same"),
    ({"rating": 1.0, "harm_a": 0.5}, "out of range", "harm_a"),
    ({"rating": 1.0, "weight": 0.0}, "out of range", "weight must be above 0"),
]


@pytest.mark.parametrize("fields, reason, detail", BROKEN)
def test_a_broken_record_says_what_is_wrong(fields, reason, detail):
    with pytest.raises(BadRow, match=detail) as caught:
        Preference("x", "a", "b", **fields)
    assert caught.value.reason == reason


# -- criteria and ratings ----------------------------------------------------------------------------------------------

GUIDELINES = [  # helpful, truthful, harmless, user_risk, high_stakes -> rating
    ((1, 0, 0, 0, False), 1),  # only help differs
    ((1, -1, 0, 0, False), -1),  # truth outranks help
    ((2, 0, -2, 0, False), -2),  # much more helpful, but much more harmful
    ((2, -1, 0, 0, False), 1),  # much more helpful, slightly less truthful: help wins, slightly
    ((2, -1, 0, 0, True), -1),  # but not where much is at stake
    ((2, 1, 1, 0, False), 2),  # all agree
    ((1, 2, 0, 0, False), 2),
    ((0, 1, -1, 0, False), 0),  # different harms, unclear which is worse: a tie
    ((0, 1, -1, 1, False), 1),  # A is less likely to hurt a user
    ((1, 2, -2, -1, False), -1),
    ((0, 0, 0, 0, False), 0),
]


@pytest.mark.parametrize("criteria, rating", GUIDELINES)
def test_truth_and_harmlessness_outrank_help_with_the_guidelines_exceptions(criteria, rating):
    assert Criteria(*criteria).rating() == rating


def test_criteria_are_antisymmetric():
    for values in product((-2, -1, 0, 1, 2), repeat=4):
        for stakes in (False, True):
            found = Criteria(*values, high_stakes=stakes)
            assert found.swapped().rating() == -found.rating()


@given(st.floats(-2, 2), st.floats(0.01, 10))
def test_soft_labels_are_antisymmetric(rating, scale):
    grading = Grading("soft", scale)
    p = grading.pref_prob(rating)
    assert grading.pref_prob(-rating) == 1 - p
    assert p == pytest.approx(torch.sigmoid(torch.tensor(scale * rating, dtype=torch.float64)).item(), abs=1e-12)
    assert grading.pref_prob(0) == 0.5


ROW = {"prompt": "x", "response_a": "a", "response_b": "b"}
S1, S2 = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-1.0))  # sigmoid of 0.5 x 1 and 0.5 x 2
MAPPED = [
    (Grading(), -1, [Pair("x", "b", "a", rating=1.0)]),
    (Grading("margin", 0.5), 2, [Pair("x", "a", "b", 1.0, rating=2.0)]),
    (Grading("margin", 0.5), -1, [Pair("x", "b", "a", 0.5, rating=1.0)]),
    (Grading("filter_slight"), -2, [Pair("x", "b", "a", rating=2.0)]),
    (Grading("filter_slight"), 1, "slight"),
    (
        Grading("soft", 0.5),
        -1,
        [
            Pair("x", "b", "a", 0.0, S1, pref_prob=S1, rating=1.0),
            Pair("x", "a", "b", 0.0, 1 - S1, pref_prob=1 - S1, rating=-1.0),
        ],
    ),
    (
        Grading("soft", 0.5),
        2,
        [
            Pair("x", "a", "b", 0.0, S2, pref_prob=S2, rating=2.0),
            Pair("x", "b", "a", 0.0, 1 - S2, pref_prob=1 - S2, rating=-2.0),
        ],
    ),
    (Grading(), 0, "tie"),
    (Grading("margin", 1.0), 0, "tie"),
    (Grading("filter_slight"), 0, "tie"),
    (Grading(ties="keep"), 0, [Pair("x", "a", "b", pref_prob=0.5, tied=True, rating=0.0)]),
    *(
        (
            grading,
            0,
            [
                Pair("x", "a", "b", 0.0, 0.5, pref_prob=0.5, rating=0.0),
                Pair("x", "b", "a", 0.0, 0.5, pref_prob=0.5, rating=0.0),
            ],
        )
        for grading in (Grading(ties="half"), Grading("soft", 3.0), Grading("margin", 1.0, ties="half"))
    ),
]


@pytest.mark.parametrize("grading, rating, expected", MAPPED)
def test_what_a_rating_becomes(grading, rating, expected):
    row = {**ROW, "rating": rating}
    if isinstance(expected, str):
        with pytest.raises(BadRow) as caught:
            parse(row, "pairs", grading=grading)
        assert caught.value.reason == expected
    else:
        assert parse(row, "pairs", grading=grading) == expected


def test_a_stated_probability_is_not_graded_again_and_slight_ones_can_still_be_left_out():
    row = {**ROW, "pref_prob": 0.75, "rating": 1}
    weights = [(p.chosen, p.weight) for p in parse(row, "pairs", grading=Grading("soft", 9.0))]
    assert weights == [("a", 0.75), ("b", 0.25)]
    with pytest.raises(BadRow, match="slight"):
        parse(row, "pairs", grading=Grading("filter_slight"))


def test_gradings_that_make_no_sense_are_refused():
    for arguments, message in [
        (("soft",), 'data.ratings = "soft" needs data.rating_scale'),
        (("margin", 0.0), "needs data.rating_scale"),
        (("soft", float("inf")), "needs data.rating_scale"),
        (("hard", 1.0), "data.rating_scale belongs to"),
        (("linear",), "data.ratings must be one of hard, soft, margin, filter_slight"),
        (("hard", 0.0, "maybe"), "data.ties must be one of drop, half, keep"),
    ]:
        with pytest.raises(ValueError, match=message):
            Grading(*arguments)


def test_a_tie_at_half_has_no_gradient_at_equal_scores():
    """Both orders at weight 1/2: d/dr of -1/2 log s(r_a - r_b) - 1/2 log s(r_b - r_a) is 0 where r_a = r_b."""
    pairs = parse({**ROW, "rating": 0}, "pairs", grading=Grading(ties="half"))
    scores = {"a": torch.tensor(0.7, dtype=torch.float64, requires_grad=True)}
    scores["b"] = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    method = METHODS["bt_reward_model"]
    tensors = {
        "chosen_scores": torch.stack([scores[p.chosen] for p in pairs]),
        "rejected_scores": torch.stack([scores[p.rejected] for p in pairs]),
        "margin": torch.tensor([p.margin for p in pairs], dtype=torch.float64),
        "pref_prob": torch.tensor([p.pref_prob for p in pairs], dtype=torch.float64),
        "weight": torch.tensor([p.weight for p in pairs], dtype=torch.float64),
    }
    loss = method.call_loss(tensors, method.settings({}))
    (loss * tensors["weight"]).sum().backward()
    assert scores["a"].grad == 0 and scores["b"].grad == 0
    assert float((loss * tensors["weight"]).sum().detach()) == pytest.approx(math.log(2), abs=1e-12)


# -- rankings ----------------------------------------------------------------------------------------------------------


def test_a_ranking_gives_all_its_pairs_and_they_share_its_weight():
    row = {"prompt": "x", "completions": ["a", "b", "c", "d"], "ranks": [2, 1, 4, 3], "weight": 3}
    pairs = parse(row, "pairs")
    assert {(p.chosen, p.rejected) for p in pairs} == {tuple(pair) for pair in ("ba", "bd", "bc", "ad", "ac", "dc")}
    assert [p.weight for p in pairs] == [0.5] * 6  # 3 / (4 choose 2)
    scored = {"prompt": "x", "completions": ["a", "b", "c", "d"], "scores": [7, 9, 1, 2.5], "weight": 3}
    assert parse(scored, "pairs") == pairs
    assert parse(row, "demos") == [Demo("x", "b", 3.0)]
    assert parse({**row, "ranks": json.dumps(row["ranks"])}, "pairs") == pairs  # as a CSV spells it
    assert parse({"prompt": "x", "completions": ["a", "b"], "ranks": [1, 2]}, "labels") == [
        Label("x", "a", True),
        Label("x", "b", False),
    ]
    assert parse(row, "problems") == [Problem("x", {k: v for k, v in row.items() if k != "prompt"})]


def test_ties_and_copies_within_a_ranking_are_left_out_and_counted():
    row = {"prompt": "x", "completions": ["a", "b", "c", "c"], "ratings": [3, 3, 1, 0]}
    left_out = Counter()
    pairs = parse(row, "pairs", left_out=left_out)
    assert left_out == {"tie": 1, "equal sides": 1}  # a with b; c with its copy
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "c"), ("a", "c"), ("b", "c"), ("b", "c")]
    assert [p.weight for p in pairs] == [0.25] * 4
    kept = parse(row, "pairs", grading=Grading(ties="keep"))
    assert [p.tied for p in kept] == [True, False, False, False, False] and [p.weight for p in kept] == [0.2] * 5
    half = parse(row, "pairs", grading=Grading(ties="half"))
    assert sorted(p.weight for p in half) == [0.1, 0.1, *[0.2] * 4]
    soft = parse({**row, "completions": ["a", "b"], "ratings": [3, 1]}, "pairs", grading=Grading("soft", 0.5))
    assert [p.pref_prob for p in soft] == [S2, 1 - S2]  # sigmoid(0.5 (3 - 1))
    margins = parse({**row, "completions": ["a", "b"], "ratings": [3, 1]}, "pairs", grading=Grading("margin", 0.5))
    assert margins == [Pair("x", "a", "b", 1.0)]
    for values in ([3, 3, 3, 3], [1, 1, 1, 1]):
        with pytest.raises(BadRow, match="no two of its completions") as caught:
            parse({**row, "ratings": values}, "pairs")
        assert caught.value.reason == "tie"
        with pytest.raises(BadRow, match="all completions rank alike"):
            parse({**row, "ratings": values}, "demos")


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_records_of_a_ranking_agree_with_its_order(values):
    names = "abcdef"[: len(values)]
    found, left_out = from_ranking("x", list(names), values)
    assert len(found) == math.comb(len(values), 2) and not left_out
    assert math.fsum(p.weight for p in found) == pytest.approx(1)
    for p in found:
        i, j = names.index(str(p.response_a)), names.index(str(p.response_b))
        assert (p.lean > 0, p.lean < 0) == (values[i] > values[j], values[i] < values[j])


def test_a_data_set_counts_ties_as_rows_and_within_rows():
    def encode(example):
        sides = (example.chosen, example.rejected)
        return [Encoded([0, *map(ord, side)], [False] + [True] * len(side)) for side in sides]

    rows = [
        {"prompt": "x", "completions": ["a", "b", "c"], "ranks": [1, 1, 2]},
        {**ROW, "rating": 0},
        {**ROW, "rating": 2},
    ]
    data = Dataset(ListRows(rows), "pairs", encode, max_length=9)
    assert (len(data), data.report.used) == (3, 2)
    assert data.report.counted == {"tie": 1} and data.report.left_out == {"tie": 1}
    assert data.report.summary()["left_out"] == {"tie": 1}
    assert "left out 1 comparisons within rankings: tie" in data.report.render()
    kept = Dataset(ListRows(rows), "pairs", encode, max_length=9, grading=Grading(ties="keep"))
    assert [item.example.tied for item in kept] == [True, False, False, True, False] and not kept.report.left_out
    with pytest.raises(
        ValueError, match="no row is left to train as pairs: 2 tie"
    ):  # all ties: refused, with the reason
        Dataset(ListRows([rows[1]] * 2), "pairs", encode, max_length=9)


# -- safety ------------------------------------------------------------------------------------------------------------

SAFE = {"prompt": "x", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}


def test_safety_rows_prefer_the_better_one_as_pairs_and_the_more_harmful_one_as_costs():
    row = {**SAFE, "is_response_0_safe": False, "is_response_1_safe": True}
    assert parse(row, "pairs") == [Pair("x", "a", "b", chosen_harm=1.0, rejected_harm=-1.0)]
    assert parse(row, "costs") == [Pair("x", "a", "b", pref_prob=1.0, chosen_harm=1.0, rejected_harm=-1.0)]
    row = {**SAFE, "safer_response_id": 0, "is_response_0_safe": False, "is_response_1_safe": False}
    assert parse(row, "costs") == [Pair("x", "b", "a", chosen_harm=1.0, rejected_harm=1.0)]
    assert parse(SAFE, "costs") == [Pair("x", "a", "b")]  # nobody said what is safe: 0, not given
    with pytest.raises(BadRow, match="names the side that is marked as harmful"):
        parse({**SAFE, "is_response_0_safe": True, "is_response_1_safe": False}, "costs")
    with pytest.raises(BadRow, match="'safer_response_id' is missing"):
        parse({k: v for k, v in SAFE.items() if k != "safer_response_id"}, "costs")
    with pytest.raises(BadRow, match="'better_response_id' must be 0 or 1; it is 2"):
        parse({**SAFE, "better_response_id": 2}, "pairs")


def test_pairs_with_safety_labels_as_costs():
    row = {"prompt": "x", "chosen": "a", "rejected": "b"}
    # the judgement is about safety unless the labels say otherwise
    assert parse({**row, "chosen_safe": True, "rejected_safe": True}, "costs") == [
        Pair("x", "b", "a", chosen_harm=-1.0, rejected_harm=-1.0)
    ]
    assert parse({**row, "chosen_safe": "false", "rejected_safe": "true"}, "costs") == [
        Pair("x", "a", "b", chosen_harm=1.0, rejected_harm=-1.0)
    ]
    assert parse({**row, "rejected_safe": False}, "costs") == [Pair("x", "b", "a", chosen_harm=1.0)]
    assert parse(row, "costs") == [Pair("x", "b", "a")]
    soft = parse({**row, "pref_prob": 0.75, "margin": 2}, "costs")  # 3 of 4 find a the safer one
    assert soft == [Pair("x", "b", "a", 2.0, 0.75, pref_prob=0.75), Pair("x", "a", "b", -2.0, 0.25, pref_prob=0.25)]


@given(records())
def test_reversing_a_pair_twice_changes_nothing(record):
    for pair in record.to_pairs(Grading(ties="half")):
        again = reverse(reverse(pair))
        assert again.pref_prob == pytest.approx(pair.pref_prob) and replace(again, pref_prob=pair.pref_prob) == pair
        turned = reverse(pair)
        assert (turned.margin, turned.chosen_harm, turned.rejected_harm) == (
            -pair.margin,
            pair.rejected_harm,
            pair.chosen_harm,
        )


# -- rows --------------------------------------------------------------------------------------------------------------

BAD = [
    ({**ROW, "rating": 3}, "out of range", r"'rating' must lie in \[-2, 2\]; it is 3"),
    ({**ROW, "rating": "strong"}, "wrong type", "'rating' must be a number"),
    ({**ROW, "rating": 2, "pref_prob": 0.1}, "contradiction", "prefer different responses"),
    ({**ROW, "rating": 1, "tied": True}, "contradiction", "'tied' is true, but the row prefers one side"),
    ({**ROW, "criteria": {"funny": 1}}, "wrong type", "some of helpful, truthful, harmless"),
    ({**ROW, "criteria": {"helpful": 3}}, "out of range", "criteria.helpful must lie in"),
    ({**ROW, "criteria": "helpful"}, "wrong type", "'criteria' must be an object"),
    (
        {"prompt": "x", "chosen": "a", "rejected": "b", "rating": -1},
        "contradiction",
        "the rating -1 speaks against the side in 'chosen'",
    ),
    ({"prompt": "x", "chosen": "a", "rejected": "b", "rating": 0}, "tie", "neither is better"),
    ({"prompt": "x", "response_0": "a", "response_1": "b"}, "missing field", "'better_response_id' is missing"),
    ({"prompt": "x", "completions": ["a", "b"], "ranks": [1]}, "unequal lists", "2 completions and 1 in 'ranks'"),
    ({"prompt": "x", "completions": ["a"], "ranks": [1]}, "one completion", "at least two"),
    ({"prompt": "x", "completions": ["a", "b"]}, "missing field", "need one of ranks, ratings, scores"),
    ({"prompt": "x", "completions": ["a", " "], "ranks": [1, 2]}, "empty field", "'completions', number 2 is empty"),
    ({"prompt": "x", "completions": ["a", "b"], "ranks": [1, "x"]}, "wrong type", "'ranks', number 2 must be a number"),
]


@pytest.mark.parametrize("row, reason, detail", BAD)
def test_bad_preferences_say_what_is_wrong(row, reason, detail):
    with pytest.raises(BadRow, match=detail) as caught:
        parse(row, "pairs")
    assert caught.value.reason == reason


def test_rows_of_criteria_and_ties():
    row = {**ROW, "criteria": {"helpful": 1, "harmless": -2}}
    assert parse(row, "pairs") == [Pair("x", "b", "a", rating=2.0)]
    assert parse({**row, "criteria": json.dumps(row["criteria"])}, "pairs") == parse(row, "pairs")
    assert parse({**ROW, "tied": True}, "pairs", grading=Grading(ties="keep"))[0].tied
    with pytest.raises(BadRow, match="tie"):
        parse({**ROW, "tied": "true"}, "pairs")
    assert parse({**ROW, "tied": False, "rating": 1}, "pairs") == [Pair("x", "a", "b", rating=1.0)]
    with pytest.raises(BadRow, match="neither side of a tie is unwanted"):
        parse({**ROW, "rating": 0}, "labels", grading=Grading(ties="keep"))


def test_rankings_may_hold_chats():
    user, good, bad = ({"role": r, "content": c} for r, c in (("user", "x"), ("assistant", "a"), ("assistant", "b")))
    row = {"prompt": [user], "completions": [[bad], [good]], "ranks": [2, 1]}
    assert parse(row, "pairs") == [Pair([user], [good], [bad])]


def recipe(**data):
    table = {"method": "dpo", "model": {"path": "m"}, "data": {"path": "pairs.jsonl", **data}}
    return from_table(Run, table).resolved()


def test_a_recipe_says_what_ratings_become():
    assert recipe(ratings="soft", rating_scale=0.5).data.grading == Grading("soft", 0.5)
    assert recipe().data.grading == Grading()
    with pytest.raises(ValueError, match="needs data.rating_scale"):
        recipe(ratings="soft")
    with pytest.raises(RecipeError, match='data.ties = "keep" is for a method that models ties, which dpo does not'):
        recipe(ties="keep")
