"""Over-optimisation, Goodhart's ways, wrong model classes and sparse rewards (spec section 6)."""

import math

import pytest
import torch

from fiducial.exact.curves import (
    GOODHART,
    OveroptimisationCurve,
    adversarial,
    causal,
    extremal,
    fit_overoptimisation,
    regressional,
    regressional_slope,
)
from fiducial.exact.divergences import kl
from fiducial.exact.misspecification import best_in_class, online_dpo_in_class, regularised_value, rlhf_vs_dpo
from fiducial.exact.optima import rlhf_optimum
from fiducial.exact.sparse import data_error, l1_weight, logistic_fit, sparse_pairs

D = torch.float64
UNIFORM = torch.full((3,), 1 / 3, dtype=D)


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


# -- curves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "peak"), [("bon", 2.0 / (2 * 0.7)), ("rl", math.exp(2.0 / 0.7 - 1))])
def test_curves_are_recovered_and_peak_where_they_should(form, peak):
    d = torch.linspace(0.0, 3, 20, dtype=D)
    bend = d if form == "bon" else torch.where(d > 0, d, 1.0).log()
    gains = d * (2.0 - 0.7 * bend)
    found = fit_overoptimisation(d, gains, form)
    assert (found.alpha, found.beta) == pytest.approx((2.0, 0.7), abs=1e-6)
    assert found.peak == pytest.approx(peak, abs=1e-6)
    around = torch.tensor([0.999, 1.0, 1.001], dtype=D) * found.peak
    assert found(around).argmax() == 1
    spoilt = torch.where(d < 1, gains + 5, gains)  # points below min_distance are not looked at
    assert fit_overoptimisation(d, spoilt, form, 1.0).alpha == pytest.approx(2.0, abs=1e-6)


def test_curves_without_a_bend_or_without_points():
    assert OveroptimisationCurve("rl", 1.0, -0.1).peak == math.inf
    with pytest.raises(ValueError, match="2 distances"):
        fit_overoptimisation(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]), "bon")
    with pytest.raises(ValueError, match="'bon' or 'rl'"):
        fit_overoptimisation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), "ppo")


def slope(x, y):
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def test_goodhart_regressional():
    """E[gold | proxy] = proxy / (1 + noise^2); within 3 errors sd(gold | proxy) / (sd(proxy) sqrt n)."""
    n, noise = 100_000, 1.5
    gold, proxy = regressional(n, 0, noise=noise)
    expected = regressional_slope(noise)
    assert expected == pytest.approx(1 / 3.25)
    error = math.sqrt(noise**2 / (1 + noise**2)) / (math.sqrt(1 + noise**2) * math.sqrt(n))
    assert abs(slope(proxy, gold) - expected) < 3 * error
    gold, proxy = regressional(n, 0, pressure=2.0, noise=noise)
    assert float(proxy.min()) >= 2 * math.sqrt(1 + noise**2) and len(gold) < 0.03 * n
    assert float(gold.mean()) == pytest.approx(expected * float(proxy.mean()), rel=0.05)


def test_goodhart_extremal():
    """Below the turn the slope is 1, beyond it -1; the more the proxy is pushed, the lower gold gets in the end."""
    gold, proxy = extremal(50_000, 1)
    below = proxy < 1
    assert slope(proxy[below], gold[below]) == pytest.approx(1, abs=0.01)
    assert slope(proxy[~below], gold[~below]) == pytest.approx(-1, abs=0.05)
    means = [float(extremal(50_000, 1, pressure=p).gold.mean()) for p in (0.0, 1.0, 4.0)]
    assert means[1] > means[0] > means[2]


def test_goodhart_causal():
    """Observed, gold goes with the proxy (slope 1/2 with noise 1); pushed, only the proxy moves."""
    gold, proxy = causal(50_000, 2)
    assert slope(proxy, gold) == pytest.approx(0.5, abs=0.01)
    pushed = causal(50_000, 2, pressure=3.0)
    assert pushed.gold.equal(gold) and float((pushed.proxy - proxy).mean()) == pytest.approx(3.0)


def test_goodhart_adversarial():
    """A budget b moved: gold - b, proxy + 2 b, so the means part by 3 E|N| = 3 sqrt(2 / pi) per unit of pressure."""
    gold, proxy = adversarial(200_000, 3, pressure=2.0)
    assert float((proxy - gold).mean()) == pytest.approx(6 * math.sqrt(2 / math.pi), rel=0.01)
    honest = adversarial(1000, 3)
    assert honest.gold.equal(honest.proxy)
    assert slope(proxy, gold) < 0 < slope(*causal(1000, 3))  # gaming turns the relation round
    assert set(GOODHART) == {"regressional", "extremal", "causal", "adversarial"}


# -- wrong classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_rlhf_against_dpo(seed):
    """The table of 6.1 on three arms, uniform reference, beta 1: who wins when which class holds the truth."""
    inside, other, free = normals(seed, 3, 1), normals(seed + 50, 3, 1), normals(seed + 100, 3)

    def gap(rewards, reward_features, policy_features):
        found = rlhf_vs_dpo(rewards, UNIFORM, reward_features, policy_features, 1.0)
        assert max(found.rlhf_value, found.dpo_value) <= found.best_value + 1e-9
        return found.rlhf_value - found.dpo_value

    realisable = 1.3 * inside[:, 0]
    assert abs(gap(realisable, inside, 2 * inside)) < 1e-8
    assert gap(realisable, inside, other) > 0
    assert gap(free, inside, free[:, None]) < 0
    assert abs(gap(free, inside, 2 * inside)) < 1e-8  # both wrong, the same column space


def test_with_both_classes_wrong_either_can_win():
    signs = set()
    for seed in range(12):
        found = rlhf_vs_dpo(normals(seed + 300, 3), UNIFORM, normals(seed, 3, 1), normals(seed + 50, 3, 1), 1.0)
        signs.add(found.rlhf_value > found.dpo_value)
    assert signs == {True, False}


def test_best_in_class_against_a_grid():
    """One free direction: the value on a fine grid of c is nowhere higher."""
    rewards, features, ref = normals(1, 4), normals(2, 4, 1), normals(3, 4).softmax(-1)
    grid = torch.linspace(-20, 20, 8001, dtype=D)
    policies = (ref.log() + grid[:, None] * features[:, 0]).softmax(-1)
    best = float(regularised_value(policies, rewards, ref, 0.5).max())
    found = regularised_value(best_in_class(rewards, ref, features, 0.5), rewards, ref, 0.5)
    assert best - 1e-12 <= float(found) <= best + 1e-4
    full = torch.eye(4, dtype=D)  # a class of all policies: the optimum itself
    torch.testing.assert_close(
        best_in_class(rewards, ref, full, 0.5), rlhf_optimum(ref, rewards, 0.5), atol=1e-9, rtol=0
    )


def test_the_value_is_its_regret():
    """V(pi*) - V(pi) = beta KL(pi || pi*)."""
    rewards, ref, pi = normals(4, 4), normals(5, 4).softmax(-1), normals(6, 4).softmax(-1)
    star = rlhf_optimum(ref, rewards, 0.5)
    regret = regularised_value(star, rewards, ref, 0.5) - regularised_value(pi, rewards, ref, 0.5)
    assert float(regret) == pytest.approx(0.5 * float(kl(pi, star)), abs=1e-12)


def test_online_dpo_settles_on_its_own_pairs():
    """Where the truth is in the class, it is the optimum; elsewhere the fixed point does not move any more."""
    features = normals(7, 3, 1)
    found = online_dpo_in_class(features[:, 0], UNIFORM, features, 0.5)
    torch.testing.assert_close(found, rlhf_optimum(UNIFORM, features[:, 0], 0.5), atol=1e-8, rtol=0)
    rewards = normals(8, 3)
    rounds = [online_dpo_in_class(rewards, UNIFORM, features, 1.0, n) for n in (40, 41)]
    torch.testing.assert_close(*rounds, atol=1e-7, rtol=0)


# -- sparse rewards ----------------------------------------------------------------------------------------------------


def test_logistic_fit_meets_its_optimality_conditions():
    """gradient = -l1 sign on entries in use, |gradient| <= l1 on the others; without penalty it is zero."""
    x, wins, theta = sparse_pairs(400, 12, 3, seed=0)
    y = wins.double()
    for l1 in (0.0, 0.05):
        found = logistic_fit(x, wins, l1)
        gradient = x.T @ ((x @ found).sigmoid() - y) / len(x)
        used = found != 0
        torch.testing.assert_close(gradient[used], -l1 * found[used].sign(), atol=1e-7, rtol=0)
        assert (gradient[~used].abs() <= l1 + 1e-9).all()
    assert int((logistic_fit(x, wins, 0.05) != 0).sum()) < 12
    assert not logistic_fit(x, wins, 10.0).any()
    assert theta.tolist() == [1.0] * 3 + [0.0] * 9
    shift = sparse_pairs(400, 12, 3, seed=0, dense=True).theta - theta
    assert float(shift.norm()) == pytest.approx(1) and (shift.abs() == shift.abs()[0]).all()


def test_sparse_rewards_are_learnt_from_few_pairs_and_dense_ones_are_not():
    """n = 2000, k = 3, eight times the dimensions: the dense error grows 5-fold or more, the l1 error 2.5-fold or less.

    Both targets are held to their better estimator."""
    errors = {}
    for d in (40, 320):
        sparse, dense = sparse_pairs(2000, d, 3, seed=1), sparse_pairs(2000, d, 3, seed=1, dense=True)
        errors["sparse", d] = data_error(
            sparse.x, logistic_fit(sparse.x, sparse.wins, l1_weight(2000, d)), sparse.theta
        )
        both = (logistic_fit(dense.x, dense.wins, weight) for weight in (0.0, l1_weight(2000, d)))
        errors["dense", d] = min(data_error(dense.x, found, dense.theta) for found in both)
    assert errors["dense", 320] / errors["dense", 40] > 5
    assert errors["sparse", 320] / errors["sparse", 40] < 2.5
