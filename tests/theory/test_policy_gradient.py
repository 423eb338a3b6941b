"""Policy gradients on enumerable trees: optima of the KL-regularised objective, and why a baseline helps."""

from itertools import product

import pytest
import torch

from fiducial.core.method import KL
from fiducial.exact.optima import rlhf_optimum
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.prove.gradients import TREE_REWARDS, TreeFeed, rollout_tokens
from fiducial.prove.problems import exact_run, ready, solve, value_and_gradient


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_exact_ascent_ends_at_the_tilted_reference(beta):
    """pi* = ref exp(R / beta) / Z in total variation (spec C1), by the trainer with RLOO and the KL in the reward."""
    tree, ref = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=5)
    run = exact_run(METHODS["rloo"], KL(beta, "k1", "reward"), steps=900)
    solve(run, METHODS["rloo"], tree, TreeFeed(tree, TREE_REWARDS), ref)
    found = tree.response_logprobs().detach().exp()
    goal = rlhf_optimum(ref.response_logprobs().detach().exp(), TREE_REWARDS, beta)
    assert float((found - goal).abs().sum() / 2) < 1e-3


@pytest.mark.parametrize("estimator", ["k2", "full"])
def test_a_kl_in_the_loss_reaches_the_same_optimum_for_one_token(estimator):
    """With one token the per-token k2 (or exact) gradient is that of the sequence KL, so both placements agree."""
    tree, ref = TokenTree(4, 1, seed=1), TokenTree(4, 1, seed=1)
    rewards = torch.tensor([1.0, 0.0, -1.0, 0.5]).double()
    run = exact_run(METHODS["rloo"], KL(0.5, estimator, "loss"), steps=900)
    solve(run, METHODS["rloo"], tree, TreeFeed(tree, rewards), ref)
    goal = rlhf_optimum(ref.response_logprobs().detach().exp(), rewards, 0.5)
    found = tree.response_logprobs().detach().exp()
    assert float((found - goal).abs().sum() / 2) < 1e-3


def test_a_constant_added_to_the_reward_changes_nothing():
    tree = TokenTree(3, 2, seed=5)
    run = exact_run(METHODS["rloo"], n=2)
    for members in ((0, 3), (2, 2), (6, 1)):
        gradients = []
        for rewards in (TREE_REWARDS, TREE_REWARDS + 10):
            parts, batch = ready(run, METHODS["rloo"], tree, rollout_tokens(tree, members, rewards), None)
            gradients.append(value_and_gradient(run, METHODS["rloo"], parts, batch, 2)[1])
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def variance(method, rewards, **hparams) -> float:
    """Trace of the covariance of the gradient estimate from two completions, enumerated."""
    tree = TokenTree(2, 1, seed=2)
    run = exact_run(method, n=2, hparams=hparams)
    chances = tree.response_logprobs().detach().exp()
    mean, square = torch.zeros(tree.theta.numel()).double(), 0.0
    for members in product(range(2), repeat=2):
        parts, batch = ready(run, method, tree, rollout_tokens(tree, members, rewards), None)
        gradient = value_and_gradient(run, method, parts, batch, 2)[1]
        chance = float(chances[list(members)].prod())
        mean += chance * gradient
        square += chance * float(gradient.square().sum())
    return square - float(mean.square().sum())


def test_leave_one_out_survives_a_large_offset():
    """Two arms, rewards 100 and 101: without a baseline the variance is that of the offset (spec C7)."""
    rewards = torch.tensor([100.0, 101.0]).double()
    plain = variance(METHODS["reinforce_lm"], rewards, baseline="none")
    assert variance(METHODS["rloo"], rewards) < plain / 1000
