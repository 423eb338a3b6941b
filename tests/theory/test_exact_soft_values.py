"""The token view of a sequence optimum, and rewards in place of Q and back (spec 3.17, 3.18)."""

import math

import pytest
import torch

from fiducial.exact.optima import rlhf_optimum
from fiducial.exact.soft_values import inverse_soft_bellman, soft_q, soft_state_value, soft_tree
from fiducial.exact.tables import TokenTree

D = torch.float64
BETA = 0.4


@pytest.fixture
def problem():
    ref = TokenTree(3, 3, prompts=2, seed=1)
    rewards = torch.randn(len(ref.responses()), generator=torch.Generator().manual_seed(2), dtype=D)
    return ref, rewards


def node_of(prefix, vocab=3):
    node = 0
    for token in prefix:
        node = node * (vocab + 1) + token + 1
    return node


def test_the_token_optimum_is_the_sequence_optimum(problem):
    """ref exp(r / beta) / Z over whole responses, and V(s_0) = beta log Z, on a random tree of depth 3."""
    ref, rewards = problem
    for prompt in range(2):
        q, v, optimum = soft_tree(ref, rewards, BETA, prompt)
        law = ref.response_logprobs(prompt).detach().exp()
        torch.testing.assert_close(law @ (rewards / BETA).exp(), (v[0] / BETA).exp(), rtol=1e-12, atol=0)
        expected = rlhf_optimum(law, rewards, BETA)
        torch.testing.assert_close(optimum.response_logprobs().detach().exp(), expected, atol=1e-12, rtol=0)


def test_token_rewards_telescope(problem):
    """They add up to r(y) - V(s_0); their prefix sum is beta log E_ref[exp(r / beta) | prefix] - V(s_0)."""
    ref, rewards = problem
    q, v, optimum = soft_tree(ref, rewards, BETA)
    responses, law = ref.responses(), ref.response_logprobs().detach().exp()
    for response, reward in zip(responses, rewards.tolist(), strict=True):
        so_far = 0.0
        for t in range(len(response)):
            node = node_of(response[:t])
            gain = optimum.theta[0, node].log_softmax(-1) - ref.theta[0, node].log_softmax(-1)
            so_far += float(BETA * gain[response[t]].detach())
            prefix = response[: t + 1]
            inside = torch.tensor([y[: t + 1] == prefix for y in responses])
            mean = (law * (rewards / BETA).exp())[inside].sum() / law[inside].sum()
            assert so_far == pytest.approx(float(BETA * mean.log() - v[0]), abs=1e-12)
        assert so_far == pytest.approx(reward - float(v[0]), abs=1e-12)


def test_soft_values_of_one_token_are_by_hand():
    """V = beta log sum ref exp(r / beta) with ref = (1/4, 3/4), r = (1, 0), beta = 1."""
    ref = TokenTree(2, 1, torch.tensor([[[1.0, 3.0], [0, 0], [0, 0]]], dtype=D).log().nan_to_num(neginf=0.0))
    q, v, _ = soft_tree(ref, torch.tensor([1.0, 0.0], dtype=D), 1.0)
    assert q[0].tolist() == [1.0, 0.0]
    assert float(v[0]) == pytest.approx(math.log(0.25 * math.e + 0.75), abs=1e-12)


@pytest.fixture
def mdp():
    """Five states, three actions, some of which end the episode with a chance."""
    draw = torch.Generator().manual_seed(3)
    transition = torch.rand(5, 3, 5, generator=draw, dtype=D)
    transition /= transition.sum(-1, keepdim=True)
    transition[0] *= 0.5
    mu, policy = (torch.randn(5, 3, generator=draw, dtype=D).softmax(-1) for _ in range(2))
    return transition, mu, policy, torch.randn(5, 3, generator=draw, dtype=D)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_rewards_and_q_are_one_to_one(mdp, gamma):
    transition, mu, policy, q = mdp
    for pi in (policy, None):
        r = inverse_soft_bellman(q, transition, mu, 0.33, gamma, pi)
        torch.testing.assert_close(soft_q(r, transition, mu, 0.33, gamma, pi), q, atol=1e-10, rtol=0)
        there = soft_q(q, transition, mu, 0.33, gamma, pi)  # the same numbers taken for rewards
        torch.testing.assert_close(inverse_soft_bellman(there, transition, mu, 0.33, gamma, pi), q, atol=1e-10, rtol=0)


def test_soft_q_is_the_limit_of_soft_value_iteration(mdp):
    transition, mu, _, r = mdp
    q = torch.zeros_like(r)
    for _ in range(400):
        v = 0.5 * (mu * (q / 0.5).exp()).sum(-1).log()
        q = r + 0.9 * torch.einsum("sat,t->sa", transition, v)
    torch.testing.assert_close(soft_q(r, transition, mu, 0.5, 0.9), q, atol=1e-10, rtol=0)
    best = (mu.log() + q / 0.5).softmax(-1)  # whose own value is the best one
    torch.testing.assert_close(soft_state_value(q, mu, 0.5, best), soft_state_value(q, mu, 0.5), atol=1e-12, rtol=0)


def test_a_constant_in_q_shifts_the_reward_by_one_minus_gamma(mdp):
    transition, mu, policy, q = mdp
    transition = transition / transition.sum(-1, keepdim=True)  # without an end
    for gamma, pi in ((0.9, policy), (0.9, None), (1.0, None)):
        shifted = inverse_soft_bellman(q + 7, transition, mu, 0.33, gamma, pi)
        expected = inverse_soft_bellman(q, transition, mu, 0.33, gamma, pi) + (1 - gamma) * 7
        torch.testing.assert_close(shifted, expected, atol=1e-12, rtol=0)


def test_ipl_of_one_step_and_of_tokens_is_the_dpo_logit(problem):
    """gamma = 0: Q = alpha log(pi / mu) + V gives the logit alpha (log pi/mu (y1) - log pi/mu (y2)). gamma = 1 on
    deterministic tokens: step rewards of a response add up to alpha log pi/mu + V(s_0), so V cancels in a pair."""
    alpha = 0.33
    mu, pi, v = (torch.randn(1, 4, generator=torch.Generator().manual_seed(i), dtype=D) for i in range(3))
    mu, pi = mu.softmax(-1), pi.softmax(-1)
    q = alpha * (pi / mu).log() + v[:, :1]
    implied = inverse_soft_bellman(q, torch.zeros(1, 4, 1, dtype=D), mu, alpha, 0.0)
    for y1, y2 in ((0, 1), (3, 2)):
        logit = alpha * float((pi[0, y1] / mu[0, y1]).log() - (pi[0, y2] / mu[0, y2]).log())
        assert float(implied[0, y1] - implied[0, y2]) == pytest.approx(logit, abs=1e-12)

    ref, rewards = problem
    tree_q, tree_v, optimum = soft_tree(ref, rewards, alpha)
    states, actions = tree_q.shape
    transition = torch.zeros(states, actions, states, dtype=D)
    for prefix in {y[:t] for y in ref.responses() for t in range(1, len(y))}:
        transition[node_of(prefix[:-1]), prefix[-1], node_of(prefix)] = 1.0
    step_rewards = inverse_soft_bellman(tree_q, transition, ref.theta.detach()[0].softmax(-1), alpha, 1.0)
    gains = alpha * (optimum.response_logprobs() - ref.response_logprobs()).detach()
    for y, gain in zip(ref.responses(), gains.tolist(), strict=True):
        total = sum(float(step_rewards[node_of(y[:t]), y[t]]) for t in range(len(y)))
        assert total == pytest.approx(gain + float(tree_v[0]), abs=1e-10)
