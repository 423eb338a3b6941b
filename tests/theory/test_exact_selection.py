"""Best of N and its relatives against enumeration of all draws (spec 3.14, 3.15)."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.exact.divergences import kl
from fiducial.exact.optima import bradley_terry, dpo_optimum, rlhf_optimum
from fiducial.exact.selection import best_and_worst, best_of_n, bon_kl, worst_of_n

D = torch.float64


def enumerate_draws(policy, rewards, n):
    """Joint law of (best, worst) over all A^n draws; among equal rewards each draw is as likely to be the one."""
    size = len(policy)
    joint = torch.zeros(size, size, dtype=D)
    for draw in product(range(size), repeat=n):
        values = [rewards[y] for y in draw]
        best = [y for y in draw if rewards[y] == max(values)]
        worst = [y for y in draw if rewards[y] == min(values)]
        chance = math.prod(float(policy[y]) for y in draw) / len(best) / len(worst)
        for i, j in product(best, worst):
            joint[i, j] += chance
    return joint


@given(
    st.integers(0, 1000), st.integers(1, 4), st.lists(st.sampled_from([0.0, 1.0, 2.5, -1.0]), min_size=4, max_size=4)
)
@settings(max_examples=25, deadline=None)
def test_laws_of_best_and_worst_with_ties(seed, n, rewards):
    policy = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=D).softmax(-1)
    joint = enumerate_draws(policy, rewards, n)
    r = torch.tensor(rewards, dtype=D)
    torch.testing.assert_close(best_of_n(policy, r, n), joint.sum(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(worst_of_n(policy, r, n), joint.sum(0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_joint_law(n):
    policy, rewards = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=D), torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=D)
    found = best_and_worst(policy, rewards, n)
    torch.testing.assert_close(found, enumerate_draws(policy, rewards.tolist(), n), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="ties"):
        best_and_worst(policy, torch.zeros(4), n)


def test_best_of_n_moves_towards_the_best():
    draw = torch.Generator().manual_seed(0)
    policy, rewards = torch.randn(6, generator=draw, dtype=D).softmax(-1), torch.randn(6, generator=draw, dtype=D)
    torch.testing.assert_close(best_of_n(policy, rewards, 1), policy)
    means = torch.tensor([float(best_of_n(policy, rewards, n) @ rewards) for n in range(1, 40)])
    assert (means.diff() > 0).all()
    for _ in range(20):  # rejection sampling, imitated exactly, again and again
        policy = best_of_n(policy, rewards, 2)
    assert float(policy[rewards.argmax()]) > 1 - 1e-9


def test_divergence_of_best_of_n():
    """KL <= log N - (N - 1) / N: met within 1e-3 with 200 equal arms for small N, strictly below for N = 64; a single
    likely best arm, p = 1/2, stays at log 2."""
    policy, rewards = torch.full((200,), 1 / 200, dtype=D), torch.arange(200, dtype=D)
    for n in (1, 2, 3, 4):
        found = float(kl(best_of_n(policy, rewards, n), policy))
        assert bon_kl(n) - 1e-3 < found <= bon_kl(n) + 1e-12
    assert float(kl(best_of_n(policy, rewards, 64), policy)) < bon_kl(64) - 1e-3
    coin = torch.tensor([0.5, 0.5], dtype=D)
    assert float(kl(best_of_n(coin, torch.tensor([0.0, 1.0], dtype=D), 64), coin)) == pytest.approx(
        math.log(2), abs=1e-9
    )
    assert bon_kl(1) == 0.0 and bon_kl(2) == pytest.approx(math.log(2) - 0.5)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_labelled_samples_leave_the_optimum_where_it_is(seed):
    """`random_two_labelled`: pairs drawn from any policy with full support, the current one too, teach DPO the same."""
    draw = torch.Generator().manual_seed(seed)
    ref, law = (torch.randn(4, generator=draw, dtype=D).softmax(-1) for _ in range(2))
    rewards = torch.randn(4, generator=draw, dtype=D)
    best = rlhf_optimum(ref, rewards, 0.5)
    for current in (ref, law, best):
        torch.testing.assert_close(dpo_optimum(ref, bradley_terry(rewards), current, 0.5), best, atol=1e-6, rtol=0)
