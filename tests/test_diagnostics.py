"""Diagnostics of preference training, by hand arithmetic, enumeration and closed forms."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.config import Run
from fiducial.core.tokens import collate
from fiducial.core.types import Decoding, Demo, Encoded, Pair, Problem, Rollout, Score
from fiducial.data import Item
from fiducial.evals import audit
from fiducial.evals.diagnostics import (
    agreement,
    completion_kl,
    disputed_majorities,
    flips,
    idealised_ranking_accuracies,
    right,
    squared_distance,
    weights_distance,
)
from fiducial.evals.frontier import Frontier, Point, frontier_of, read_frontier
from fiducial.exact.curves import OveroptimisationCurve
from fiducial.methods import METHODS
from fiducial.store import RunFolder
from fiducial.train.measure import Meter, measure_pairs
from fiducial.train.runtime import Runtime

# -- rankings ----------------------------------------------------------------------------------------------------


def test_the_standard_metrics_of_pairs_by_hand():
    """Two pairs of weights 3 and 1, lengths 2, 4 and 1, 1.

    log-probs  chosen -2, -3; rejected -3, -1     so the first is ranked right, the second wrong: 3/4
    per token  -1, -3 and -3/4, -1                so neither is: 0
    reference  chosen -1, -5; rejected -4, -1     rewards at beta 1/2: chosen -1/2, +1; rejected +1/2, 0
    """
    batch = collate([Encoded([0, 1], [False, True])] * 4, weight=[3.0, 1.0, 3.0, 1.0], pairs=True)
    tensors = {
        "chosen_logprobs": torch.tensor([-2.0, -3.0]),
        "rejected_logprobs": torch.tensor([-3.0, -1.0]),
        "ref_chosen_logprobs": torch.tensor([-1.0, -5.0]),
        "ref_rejected_logprobs": torch.tensor([-4.0, -1.0]),
        "chosen_lengths": torch.tensor([2, 1]),
        "rejected_lengths": torch.tensor([4, 1]),
    }
    meter = Meter()
    measure_pairs(Run(hparams=METHODS["dpo"].settings({"beta": 0.5})), tensors, {}, batch, {}, meter)
    assert meter.reduce(Runtime()) == pytest.approx(
        {
            "logps/chosen": (3 * -2 - 3) / 4,
            "logps/rejected": (3 * -3 - 1) / 4,
            "logps/ref_chosen": (3 * -1 - 5) / 4,
            "logps/ref_rejected": (3 * -4 - 1) / 4,
            "length/chosen": 7 / 4,
            "length/rejected": 13 / 4,
            "ranking_accuracy": 3 / 4,
            "ranking_accuracy_len_norm": 0.0,
            "ranking_ties": 0.0,
            "rewards/chosen": (3 * -0.5 + 1) / 4,
            "rewards/rejected": (3 * 0.5 + 0) / 4,
            "rewards/margins": (3 * -1 + 1) / 4,
            "rewards/accuracies": 1 / 4,
        }
    )


def test_a_reward_model_is_measured_by_which_side_is_longer():
    """Lengths 2 > 1 (right), 1 < 3 (wrong), 1 < 2 (a tie), 2 = 2 (right, and in neither)."""
    lengths = [2, 1, 1, 2, 1, 3, 2, 2]
    batch = collate([Encoded([0] * (n + 1), [False] + [True] * n) for n in lengths], pairs=True)
    scores = torch.tensor([1.0, 0.0, 2.0, 5.0, 0.0, 1.0, 2.0, 4.0])
    meter = Meter()
    measure_pairs(Run(), {}, {"scores": scores}, batch, {}, meter)
    found = meter.reduce(Runtime())
    assert (found["accuracy/longer"], found["accuracy/shorter"], found["accuracy"]) == (1.0, 0.25, 2.5 / 4)


def test_flips_by_hand():
    """right -> right, right -> wrong, wrong -> right, wrong -> wrong, a tie -> right, a tie that stays one."""
    before, after = torch.tensor([1, 1, 0, 0, 0.5, 0.5]).double(), torch.tensor([1, 0, 1, 0, 1, 0.5]).double()
    found = {name.removeprefix("flips/"): share.tolist() for name, share in flips(before, after).items()}
    assert found == {
        "correct_correct": [1, 0, 0, 0, 0.5, 0.5],
        "correct_wrong": [0, 1, 0, 0, 0, 0],
        "wrong_correct": [0, 0, 1, 0, 0.5, 0],
        "wrong_wrong": [0, 0, 0, 1, 0, 0.5],
    }


LOGPS = st.lists(st.tuples(*[st.sampled_from([-3.0, -2.0, -1.0])] * 4), min_size=1, max_size=8)


@given(LOGPS)
def test_flips_have_both_accuracies_as_their_sums(rows):
    columns = torch.tensor(rows, dtype=torch.float64).T
    before, after = right(columns[0], columns[1]), right(columns[2], columns[3])
    found = flips(before, after)
    both = found["flips/correct_correct"]
    torch.testing.assert_close(both + found["flips/correct_wrong"], before)
    torch.testing.assert_close(both + found["flips/wrong_correct"], after)
    torch.testing.assert_close(sum(found.values()), torch.ones(len(rows), dtype=torch.float64))


def test_agreement_is_the_share_of_raters_or_of_a_soft_preference():
    """Two raters for a, one for b: 2/3 and 1/3. A soft preference of 0.9 is two pairs of weights 0.9 and 0.1. The last
    pair was judged once. The same completions of another prompt are another pair."""
    pairs = [
        *(Pair("x", "a", "b"), Pair("x", "b", "a"), Pair("x", "a", "b")),
        *(Pair("y", "a", "b", weight=0.9, pref_prob=0.9), Pair("y", "b", "a", weight=0.1, pref_prob=0.1)),
        Pair("z", "a", "b"),
    ]
    assert agreement(pairs) == pytest.approx([2 / 3, 1 / 3, 2 / 3, 0.9, 0.1, 1.0])
    places, shares = disputed_majorities(pairs)
    assert places == [0, 3, 5] and shares.tolist() == pytest.approx([2 / 3, 0.9, 1.0])
    assert disputed_majorities([pairs[5], Pair("q", "a", "b")])[0] == []  # nobody disagrees with anybody
    assert disputed_majorities([Pair("x", "a", "b"), Pair("x", "b", "a")])[0] == []  # no majority


def test_idealised_accuracy_by_hand():
    """ref(chosen) / ref(rejected) = 1/2 and 1/8, a = 4/5, so a / (1 - a) = 4. Right where 4^(1/beta) exceeds 2 and 8:
    beta < 2 and beta < 2/3. Over 0.5, 1, 4 that is 1, 1/2, 0. By length (1, 1 and 3, 1): the second ratio is
    (1/8)^(1/3) / 1 = 1/2, so both change at 2: 1, 1, 0."""
    chosen, rejected = torch.tensor([0.5, 0.125]).double().log(), torch.zeros(2).double()
    shares, betas = torch.tensor([0.8, 0.8]).double(), (0.5, 1.0, 4.0)
    assert idealised_ranking_accuracies(chosen, rejected, shares, betas=betas) == {"min": 0, "median": 0.5, "max": 1}
    lengths = (torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    found = idealised_ranking_accuracies(chosen, rejected, shares, lengths, betas)
    assert found == {"min": 0, "median": 1, "max": 1}


# -- distances ---------------------------------------------------------------------------------------------------


def test_kl_estimates_have_the_sequence_divergence_as_their_mean():
    """All nine completions of two tokens over three words, each with its probability. KL(p || q) = sum p log p/q over
    them; k1, k3 and exact have it as their mean to 1e-12, and k2 has not."""
    draw = torch.Generator().manual_seed(0)
    tables = {side: torch.randn(4, 3, generator=draw, dtype=torch.float64) for side in "pq"}  # first word; after each
    words = list(product(range(3), range(3)))
    ids = torch.tensor([[0, first, second] for first, second in words])
    logits = {
        side: torch.stack([torch.stack([torch.zeros(3).double(), t[0], t[1 + first]]) for first, _ in words])
        for side, t in tables.items()
    }
    scores = {side: x.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1) for side, x in logits.items()}
    mask = torch.tensor([[False, True, True]] * 9)
    whole = {side: x[:, 1:].sum(1) for side, x in scores.items()}
    chance = whole["p"].exp()
    truth = float((chance * (whole["p"] - whole["q"])).sum())
    found = completion_kl(scores["p"], scores["q"], mask, logits["p"], logits["q"])
    means = {name: float((chance * values).sum()) for name, values in found.items()}
    assert [means[name] for name in ("k1", "k3", "exact")] == pytest.approx([truth] * 3, abs=1e-12)
    assert abs(means["k2"] - truth) > 0.01 * truth
    assert (found["k3"] >= 0).all() and (found["k2"] >= 0).all() and (found["k1"] < 0).any()
    spread = {name: float((chance * (x - truth) ** 2).sum()) for name, x in found.items()}
    assert spread["exact"] < spread["k1"]


def test_exact_kl_of_two_tables():
    """KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 log 3/2 + 1/4 log 1/2, on the one masked token."""
    logits = torch.tensor([[[9.0, 1.0], [3.0, 1.0]]]).log()
    found = completion_kl(
        torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[False, True]]), logits, torch.zeros(1, 2, 2)
    )
    assert float(found["exact"]) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    assert float(found["k1"]) == float(found["k3"]) == 0.0


def test_weights_distance_is_zero_at_the_start_and_adds_up_in_squares():
    """(3, 0) and (0, 4) moved from (6, 0) and (0, 8): 5 in all, half of 10. In two parts as in one, and in bfloat16."""
    start = [torch.tensor([6.0, 0.0]), torch.tensor([[0.0], [8.0]])]
    assert weights_distance([squared_distance(start, start)]) == {"weights_distance": 0, "weights_distance/relative": 0}
    now = [torch.tensor([9.0, 0.0]), torch.tensor([[0.0], [4.0]])]
    whole = squared_distance(now, start)
    parts = [squared_distance([a], [b]) for a, b in zip(now, start, strict=True)]
    assert whole == (25.0, 100.0) and parts == [(9.0, 36.0), (16.0, 64.0)]
    expected = {"weights_distance": 5.0, "weights_distance/relative": 0.5}
    assert weights_distance([whole]) == weights_distance(parts) == expected
    assert weights_distance([squared_distance([x.bfloat16() for x in now], start)]) == expected
    assert weights_distance([squared_distance(now, [torch.zeros(2), torch.zeros(2, 1)])]).keys() == {"weights_distance"}


# -- the audit ---------------------------------------------------------------------------------------------------


def item(ids, start, example):
    return Item(example, [Encoded(ids, [i >= start for i in range(len(ids))])])


def test_prompts_are_different_have_room_and_are_shown_as_written():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    items = [
        item([1, 2, 3], 2, Demo("one", "x", index=4)),
        item([1, 2, 9], 2, Demo("one", "y")),  # the same prompt
        item([5, 6], 0, Demo("", "text")),  # none
        item([1, 2, 3, 4, 5, 6, 7], 6, Demo("long", "x")),  # no room for a token in 6
        item([7, 8, 9], 2, Demo("", turns)),
        item([8, 8, 9], 2, Demo("more", "x")),
    ]
    found = audit.prompts_of(items, limit=6, most=2)
    assert [one.ids for one in found] == [[1, 2], [7, 8]]
    assert [one.problem for one in found] == [Problem("one", {}, 4), Problem(turns[:1], {}, 0)]


def test_a_kl_is_drawn_from_the_policy_itself():
    found = audit.of_the_policy(Decoding(7, 0.2, 5, 0.5, 0.1, ("x",)), temperature=0.9)
    assert found == Decoding(7, 0.9, stop=("x",))


def test_divergence_and_its_interval():
    found, intervals = audit.divergence([{"k1": -1.0, "exact": 1.0}, {"k1": 3.0, "exact": 3.0}])
    assert found == {"kl/k1": 1.0, "kl/exact": 2.0}
    # Two values 1 and 3: mean 2, standard error 1, Student's t of one degree at 97.5 %: tan(0.475 pi) = 12.706
    assert intervals["kl/exact"].high == pytest.approx(2 + math.tan(0.475 * math.pi))
    assert audit.divergence([{"exact": 1.0}])[1] == {}


class Length:
    """Judges by length; what is empty it cannot judge."""

    name = "length"

    def __call__(self, completions, rows):
        return [Score.of_number(float(len(c))) if c else Score(None, "skipped", "empty") for c in completions]


def test_gold_is_a_mean_over_prompts_and_counts_what_it_failed_on():
    """Prompt 0: lengths 1 and 3, mean 2; prompt 1: 4, and one that is skipped: mean 3, a quarter unjudged."""
    texts = [["a", "abc"], ["abcd", ""]]
    groups = [[Rollout("p", text, [0], [True], [0.0], group=i) for text in row] for i, row in enumerate(texts)]
    found, intervals = audit.gold(groups, [Problem("p"), Problem("q")], Length(), Run().reward_of)
    assert found == {"gold/unjudged": 0.25, "gold": 3.0}
    assert intervals["gold"].low < 3 < intervals["gold"].high
    assert audit.gold([groups[1][1:]], [Problem("p"), Problem("q")], Length(), Run().reward_of)[0] == {
        "gold/unjudged": 1.0
    }


# -- reward against distance -------------------------------------------------------------------------------------


def evaluation(step, kl, gold, proxy):
    return {"step": step, "eval/kl/exact": kl, "eval/gold": gold, "eval/reward": proxy}


def test_a_frontier_recovers_the_curve_that_made_it(tmp_path):
    """Gold 5 + d (2 - 1.5 log d) at d = 0, 1, 2, 4: alpha 2, beta 1.5, and the peak of the curve at exp(2/1.5 - 1)."""
    truth = OveroptimisationCurve("rl", 2.0, 1.5)
    folders = []
    for name, distances in (("a", (0.0, 1.0, 4.0)), ("b", (0.0, 2.0))):
        folder = RunFolder(tmp_path / name).create({"method": "x"})
        for step, d in enumerate(distances):
            gain = float(truth(torch.tensor(d, dtype=torch.float64))) if d else 0.0
            folder.append_metrics({"step": step, "loss": 1.0})
            folder.append_metrics(evaluation(step, d * d, 5 + gain, 7 + 3 * d))
        folders.append(folder.path)
    found = read_frontier(folders)
    assert [point.distance for point in found.points] == [0, 0, 1, 2, 4]
    assert [point.proxy for point in found.points] == pytest.approx([0, 0, 3, 6, 12])
    assert (found.proxy, found.gold) == ("eval/reward", "eval/gold")
    assert found.curve is not None
    assert (found.curve.alpha, found.curve.beta) == pytest.approx((2.0, 1.5), abs=1e-6)
    assert found.curve.peak == pytest.approx(math.exp(1 / 3))
    assert (found.peak.distance, found.peak.run) == (1, str(folders[0]))  # 2 at 1, 1.92 at 2


def test_a_frontiers_area_and_a_run_that_stayed_where_it_was():
    points = [Point("r", i, d, g, 0) for i, (d, g) in enumerate([(0, 0), (1, 2), (3, 1)])]
    assert Frontier(points, "", "", None).area == 1 * (0 + 2) / 2 + 2 * (2 + 1) / 2
    still = frontier_of([("r", [evaluation(0, 0.0, 1.0, 1.0), evaluation(5, 0.0, 1.0, 1.0)])])
    assert still is not None and still.curve is None


def test_a_run_without_the_numbers_is_named(tmp_path):
    whole, none = (RunFolder(tmp_path / name).create({"method": "x"}) for name in ("whole", "none"))
    whole.append_metrics(evaluation(0, 0.0, 1.0, 1.0))
    none.append_metrics({"step": 0, "eval/kl/exact": 1.0})
    with pytest.raises(ValueError, match=r"none has no evaluation with eval/kl/exact, .*eval/gold"):
        read_frontier([whole.path, none.path])
    with pytest.raises(ValueError, match="is not a run folder"):
        read_frontier([tmp_path / "nowhere"])
