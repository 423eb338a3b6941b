"""Losses of reward, cost, tie and preference models, and what measures such models, by hand arithmetic."""

import math
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.core.tokens import collate
from fiducial.core.total import count, total
from fiducial.core.types import Encoded
from fiducial.evals.calibration import accuracy_by_rating, calibration_error, cycle_rate, order_consistency, reliability
from fiducial.exact.optima import bradley_terry, davidson
from fiducial.methods import METHODS
from fiducial.methods.bt_reward_model import bt_reward_model
from fiducial.methods.cost_model import cost_model
from fiducial.methods.pairwise_preference_model import pairwise_preference_model
from fiducial.methods.tie_model import tie_model

CYCLE = torch.tensor([[1 / 2, 2 / 3, 1 / 3], [1 / 3, 1 / 2, 2 / 3], [2 / 3, 1 / 3, 1 / 2]], dtype=torch.float64)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# -- Bradley-Terry -----------------------------------------------------------------------------------------------------


def test_bt_slopes():
    """-sigmoid(-(r_w - r_l - m)) on the chosen score, its negative on the other; 1/2 at equal scores and no margin."""
    for gap, margin in ((0.0, 0.0), (1.5, 0.4), (-2.0, 0.0)):
        w, r = t(gap).requires_grad_(), t(0).requires_grad_()
        loss = bt_reward_model(w, r, t(margin))
        loss.sum().backward()
        assert loss.item() == pytest.approx(softplus(margin - gap), abs=1e-14)
        assert w.grad is not None and r.grad is not None
        assert w.grad.item() == pytest.approx(-1 / (1 + math.exp(gap - margin)), abs=1e-14) and r.grad == -w.grad


def test_soft_labels_are_two_weighted_rows():
    """-p log s(d) - (1 - p) log s(-d), whose slope is 0 at p = s(d): at equal scores for a tie."""
    for p in (0.5, 0.8, 1.0):
        for model in (lambda a, b: bt_reward_model(a, b, t(0)), lambda a, b: pairwise_preference_model(2 * a, 2 * b)):
            gap = math.log(p / (1 - p)) if p < 1 else 3.0
            x = t(gap).requires_grad_()
            loss = p * model(x, t(0)) + (1 - p) * model(t(0), x)
            assert loss.item() == pytest.approx(p * softplus(-gap) + (1 - p) * softplus(gap), abs=1e-14)
            loss.sum().backward()
            assert x.grad is not None
            assert abs(x.grad.item()) < 1e-15 if p < 1 else x.grad.item() < 0


def test_a_ranking_of_k_counts_as_one_example():
    """All pairs of K responses at weight 1 / C(K, 2): their average (Ouyang et al. 2022), whatever other rows do."""
    scores = [2.0, 0.5, -1.0, 0.0]
    better = list(combinations(range(4), 2))  # ranked in this order
    rows = [Encoded([0, i], [False, True]) for i in (*(i for i, _ in better), 0, *(j for _, j in better), 1)]
    batch = collate(rows, pairs=True, weight=[*[1 / 6] * 6, 1.0] * 2)
    batch.weight = batch.weight.double()
    chosen, rejected = t(*[scores[i] for i, _ in better], 1.0), t(*[scores[j] for _, j in better], 0.0)
    loss = bt_reward_model(chosen, rejected, torch.zeros(7).double())
    value = total(loss, batch.mask, batch.weight[:7], "row", count(batch))
    average = sum(softplus(scores[j] - scores[i]) for i, j in better) / 6
    assert value.item() == pytest.approx((average + softplus(-1)) / 2, abs=1e-7)


def test_bt_probabilities():
    r = t(1.0, 0.3, -0.7)
    p = bradley_terry(r)
    torch.testing.assert_close(p + p.T, torch.ones(3, 3).double(), atol=1e-15, rtol=0)
    torch.testing.assert_close(bradley_terry(r + 5), p, atol=1e-12, rtol=0)
    odds = p / p.T
    assert (odds[0, 1] * odds[1, 2]).item() == pytest.approx(odds[0, 2].item(), rel=1e-12)
    assert p[0, 2] >= max(p[0, 1], p[1, 2])  # strong stochastic transitivity


# -- general preferences -----------------------------------------------------------------------------------------------


def fitted_loss(g: torch.Tensor) -> float:
    """Mean loss over the cycle's ordered pairs, g [3, 3]."""
    pairs = list(permutations(range(3), 2))
    chosen, rejected = torch.stack([g[i, j] for i, j in pairs]), torch.stack([g[j, i] for i, j in pairs])
    weight = torch.stack([CYCLE[i, j] for i, j in pairs])
    return ((pairwise_preference_model(chosen, rejected) * weight).sum() / weight.sum()).item()


def test_the_general_model_holds_a_cycle_that_no_reward_can():
    """g = logit P reaches the entropy H(2/3) = 0.636514; g = r - r' does no better than log 2."""
    assert fitted_loss(torch.logit(CYCLE)) == pytest.approx(0.636514, abs=1e-6)
    for seed in range(5):
        r = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert fitted_loss(r[:, None] - r[None, :]) >= math.log(2) - 1e-12
    assert fitted_loss(torch.zeros(3, 3).double()) == pytest.approx(math.log(2), abs=1e-15)


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-3, 3), st.floats(-3, 3))
def test_both_orders_make_one_probability(g, back, r, s):
    """P(y, y') + P(y', y) = 1 for any g; P(y, y) = 1/2; g = r - r' is Bradley-Terry."""
    p, q = (math.exp(-pairwise_preference_model(*x).item()) for x in ((t(g), t(back)), (t(back), t(g))))
    assert p + q == pytest.approx(1, abs=1e-6)
    assert math.exp(-pairwise_preference_model(t(g), t(g)).item()) == pytest.approx(0.5, abs=1e-12)
    special = pairwise_preference_model(t(r - s), t(s - r))
    assert special.item() == pytest.approx(bt_reward_model(t(r), t(s), t(0)).item(), abs=1e-12)


def test_what_the_two_orders_say_apart():
    # both orders for the chosen; both for what is shown first; one says nothing
    measures = METHODS["pairwise_preference_model"].call_measures(
        {"chosen_scores": t(2, 2, 0), "rejected_scores": t(-1, 1, -1)}, {}
    )
    assert measures["order_consistency"].tolist() == [1, 0, 0]
    bias = [abs(1 / (1 + math.exp(-a)) + 1 / (1 + math.exp(-b)) - 1) for a, b in ((2, -1), (2, 1), (0, -1))]
    torch.testing.assert_close(measures["position_bias"], t(*bias))


# -- ties --------------------------------------------------------------------------------------------------------------


@given(st.floats(-8, 8), st.floats(-8, 8), st.floats(0.01, 9))
def test_davidson(first, second, nu):
    """The three outcomes sum to 1, are the closed form, and are Bradley-Terry where there is no tie."""
    a, b = t(first), t(second)
    said = torch.tensor([False]), torch.tensor([True])
    losses = tie_model(a, b, said[0], nu=nu), tie_model(b, a, said[0], nu=nu), tie_model(a, b, said[1], nu=nu)
    win, lose, tie = (math.exp(-x.item()) for x in losses)
    assert win + lose + tie == pytest.approx(1, abs=1e-12)
    assert [win, lose, tie] == pytest.approx(davidson(a[0], b[0], nu).tolist(), abs=1e-12)
    assert win / (win + lose) == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-9)
    assert tie <= nu / (2 + nu) + 1e-12


def test_ties_at_the_ends_of_nu():
    # equal scores: nu / (2 + nu) = 3 / 5; nu = 0: Bradley-Terry
    assert math.exp(-tie_model(t(1), t(1), torch.tensor([True]), nu=3.0).item()) == pytest.approx(0.6)
    torch.testing.assert_close(
        tie_model(t(1.0), t(-0.5), torch.tensor([False]), nu=0.0), bt_reward_model(t(1.0), t(-0.5), t(0))
    )
    with pytest.raises(ValueError, match="nu = 0 gives ties no chance"):
        tie_model(t(1), t(1), torch.tensor([True]), nu=0.0)


def test_measures_of_ties():
    named = {"chosen_scores": t(1, 0, 3, 1), "rejected_scores": t(0, 1, 3, 1)}
    found = METHODS["tie_model"].call_measures(
        {**named, "tied": torch.tensor([False, False, False, True])}, {"nu": 2.0}
    )
    right, weight = found["accuracy_decided"]
    assert right.tolist() == [1, 0, 0.5, 0.5] and weight.tolist() == [1, 1, 1, 0]
    at_one = 2 * math.exp(0.5) / (1 + math.e + 2 * math.exp(0.5))
    torch.testing.assert_close(found["ties/expected"], t(at_one, at_one, 0.5, 0.5))


# -- costs -------------------------------------------------------------------------------------------------------------


def test_cost_terms_by_hand():
    # -log s(1.5) for the order, -log s(1) for a harmful 1, -log s(0.5) for a safe -0.5
    loss = cost_model(t(1), t(-0.5), t(1), t(-1)).item()
    assert loss == pytest.approx(softplus(-1.5) + softplus(-1) + softplus(-0.5), abs=1e-14)
    assert cost_model(t(1), t(-0.5), t(0), t(0)).item() == pytest.approx(softplus(-1.5), abs=1e-14)
    assert cost_model(t(1), t(-0.5), t(0), t(1)).item() == pytest.approx(softplus(-1.5) + softplus(0.5), abs=1e-14)


@given(*[st.floats(-9, 9)] * 2, *[st.sampled_from([-1.0, 0.0, 1.0])] * 2)
def test_cost_symmetry(w, r, s, u):
    """Costs negated, labels negated, roles exchanged: the same loss."""
    there, back = cost_model(t(w), t(r), t(s), t(u)), cost_model(t(-r), t(-w), t(-u), t(-s))
    assert there.item() == pytest.approx(back.item(), abs=1e-12)


def test_absolute_terms_fade_where_the_sign_is_sure():
    """The slope of -log s(s C) is -s s(-s C): 0 as s C grows. The order's, between two equal costs, stays 1/2."""
    for sign in (1.0, -1.0):
        x = t(50 * sign).requires_grad_()
        cost_model(x, t(50 * sign), t(sign), t(sign)).sum().backward()
        assert x.grad is not None and x.grad.item() == pytest.approx(-0.5, abs=1e-12)


def test_measures_of_costs():
    # costs (2, -1), (-1, 1), (0, 0); labels: both right; chosen wrong, rejected unlabelled; a safe 0 is right
    found = METHODS["cost_model"].call_measures(
        {
            "chosen_scores": t(2, -1, 0),
            "rejected_scores": t(-1, 1, 0),
            "chosen_harm": t(1, 1, -1),
            "rejected_harm": t(-1, 0, 1),
        },
        {},
    )
    values, weight = found["cost/sign_accuracy"]
    assert values.tolist() == [1, 0, 0.5] and weight.tolist() == [2, 1, 2]
    assert found["cost/mean"].tolist() == [0.5, 0, 0]
    assert found["cost/pair_accuracy"].tolist() == [1, 0, 0.5]
    assert found["safe_frac"].tolist() == [0.5, 0.5, 1]


# -- measuring preference models ---------------------------------------------------------------------------------------


def test_calibration_by_hand():
    # margins log 3 are 0.75 sure: 3 of 4 right is calibrated; log 9 are 0.9 sure: 1 of 2 right is 0.4 off
    margins = t(*[math.log(3)] * 3, -math.log(3), math.log(9), -math.log(9))
    assert calibration_error(margins[:4]) == pytest.approx(0, abs=1e-12)
    assert calibration_error(margins) == pytest.approx(2 / 6 * 0.4, abs=1e-12)
    bins = reliability(margins)
    assert [(b.confidence, b.accuracy, b.weight) for b in bins] == [
        pytest.approx((0.75, 0.75, 4.0)),
        pytest.approx((0.9, 0.5, 2.0)),
    ]
    assert calibration_error(margins, t(1, 1, 1, 1, 0, 0)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least one pair"):
        calibration_error(t())


def test_a_model_that_says_the_truth_is_calibrated():
    """Exact outcomes as weights: chosen wins p of the time."""
    margins = torch.linspace(-4, 4, 81, dtype=torch.float64)
    assert calibration_error(torch.cat([margins, -margins]), torch.sigmoid(torch.cat([margins, -margins]))) < 1e-12
    overconfident = torch.cat([3 * margins, -3 * margins])
    assert calibration_error(overconfident, torch.sigmoid(overconfident / 3)) > 0.1


def test_accuracy_by_rating():
    # slight: 1 of 2 right; clear: weights 3 right, 1 wrong; ties and unrated rows are left out
    found = accuracy_by_rating([1, -1, 2, 2, 5, 5], [1, 1, 2, -2, 0, None], [1, 1, 3, 1, 9, 9])
    assert {rating: bin.accuracy for rating, bin in found.items()} == {1: 0.5, 2: 0.75}
    assert found[2].weight == 4 and found[2].confidence == pytest.approx(1 / (1 + math.exp(-2)))


def test_order_consistency():
    assert order_consistency(t(0.9, 0.2, 0.9, 0.5), t(0.1, 0.8, 0.9, 0.5)) == 0.5


@given(st.integers(0, 1000), st.integers(3, 7))
def test_cycles_are_counted(seed, n):
    """Against a count over all triples, and none where there is a reward."""
    draw = torch.Generator().manual_seed(seed)
    p = torch.rand(n, n, generator=draw).triu(1)
    p = p + (1 - p.T).tril(-1) + torch.eye(n) / 2

    def circle(i, j, k):
        return all(p[a, b] > 0.5 for a, b in ((i, j), (j, k), (k, i)))

    triples = list(combinations(range(n), 3))
    share = sum(circle(i, j, k) or circle(i, k, j) for i, j, k in triples) / len(triples)
    assert cycle_rate(p) == pytest.approx(share)
    assert cycle_rate(bradley_terry(torch.randn(2, n, generator=draw))) == 0
    assert cycle_rate(torch.stack([p, p])) == pytest.approx(share)


def test_the_condorcet_cycle_is_one():
    assert cycle_rate(CYCLE) == 1
    with pytest.raises(ValueError, match="three completions"):
        cycle_rate(CYCLE[:2, :2])
