"""GAE, whitening, PPO's and the critic's losses against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.core.credit import gae, gae_credit, whiten
from fiducial.core.critic import value_loss
from fiducial.methods import METHODS

ALL = torch.tensor([[False, True, True, True]])


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_gae_by_hand():
    # rewards 0 1 2, values 1 2 3, gamma = lam = 1/2, backwards:
    # A_3 = 2 - 3 = -1;  A_2 = (1 + 3/2 - 2) + (-1)/4 = 1/4;  A_1 = (0 + 2/2 - 1) + (1/4)/4 = 1/16
    advantages, returns = gae(t([0, 0, 1, 2]), t([9, 1, 2, 3]), ALL, gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantages, t([0, 1 / 16, 1 / 4, -1]))
    torch.testing.assert_close(returns, t([0, 17 / 16, 9 / 4, 2]))  # A + V


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_limits_of_gae(rewards, values):
    r, v = t([0, *rewards]), t([0, *values])
    one_step, _ = gae(r, v, ALL, gamma=0.9, lam=0.0)
    for i in (1, 2, 3):  # lam = 0: the temporal difference alone
        after = v[0, i + 1] if i < 3 else 0.0
        assert one_step[0, i] == pytest.approx(float(r[0, i] + 0.9 * after - v[0, i]))
    whole, returns = gae(r, v, ALL, gamma=0.9, lam=1.0)
    for i in (1, 2, 3):  # lam = 1: what really came, less the forecast
        came = sum(0.9 ** (j - i) * float(r[0, j]) for j in range(i, 4))
        assert whole[0, i] == pytest.approx(came - float(v[0, i]))
        assert returns[0, i] == pytest.approx(came)


def test_padding_and_a_tools_tokens_are_passed_over():
    # The policy wrote tokens 1 and 3; token 2 is a tool's, 4 is padding. As if absent: r = (0.5, 2), v = (1, 3).
    mask = torch.tensor([[False, True, False, True, False]])
    nan = math.nan
    found = gae(t([nan, 0.5, 0, 2, 0]), t([nan, 1, nan, 3, nan]), mask, 0.9, 0.8)
    plain = gae(t([0, 0.5, 2]), t([0, 1, 3]), torch.tensor([[False, True, True]]), 0.9, 0.8)
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours[:, [1, 3]], theirs[:, 1:])
        assert not ours[:, [0, 2, 4]].any()


def test_a_reward_on_a_token_that_does_not_train_goes_to_the_one_before():
    mask = torch.tensor([[False, True, False]])
    _, returns = gae(t([0, 0, 7]), t([0, 1, 0]), mask, 1.0, 0.95)
    assert returns.tolist() == [[0, 7, 0]]


def test_whitening():
    # of 1 2 3: mean 2, deviation 1 (n - 1); the masked 100 does not count
    x, mask = t([1, 2, 3, 100]), torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(whiten(x, mask), t([-1, 0, 1, 0]), atol=1e-7, rtol=0)
    torch.testing.assert_close(whiten(x, mask, shift_mean=False), t([1, 2, 3, 0]), atol=1e-7, rtol=0)
    assert whiten(t([5, 5, 5, 1]), mask).tolist() == [[0, 0, 0, 0]]  # equal: 0, not noise blown up
    assert whiten(t([5, 1, 1, 1]), torch.tensor([[True, False, False, False]])).tolist() == [[0, 0, 0, 0]]


def test_rewards_are_scaled_and_not_centred():
    r, v = t([0, 1, 2, 3]), t([0, 0, 0, 0])  # deviation 1: nothing changes; returns are what is to come
    found = gae_credit(r, v, ALL, lam=1.0, whiten_rewards=True)
    torch.testing.assert_close(found["returns"], t([0, 6, 5, 3]), atol=1e-6, rtol=0)
    assert float(found["advantages"][ALL].mean()) == pytest.approx(0, abs=1e-7)


def gradient(loss, x):
    (slope,) = torch.autograd.grad(loss.sum(), x)
    return slope.flatten().tolist()


def test_zones_without_gradient():
    # rho = 1.5 and 0.5 at A = 1, then at A = -1, clip 0.2: flat where the ratio has already gone far enough
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5]], dtype=torch.float64)
    logprobs = ratio.log().requires_grad_()
    loss = METHODS["ppo_lm"].loss(logprobs, torch.zeros_like(ratio), t([1, 1, -1, -1]))
    torch.testing.assert_close(loss.detach(), t([-1.2, -0.5, 1.5, 0.8]))
    assert gradient(loss, logprobs) == pytest.approx([0, -0.5, 1.5, 0])


def test_dual_clip():
    # A = -1, rho = 10: the loss 10 is held at c = 3, and is flat there; rho = 2 is below it
    logprobs = torch.tensor([[10.0, 2.0]], dtype=torch.float64).log().requires_grad_()
    loss = METHODS["ppo_lm"].loss(logprobs, torch.zeros(1, 2).double(), t([-1, -1]), dual_clip=3.0)
    assert loss.tolist() == [pytest.approx([3, 2])]
    assert gradient(loss, logprobs) == pytest.approx([0, 2])


def test_value_loss_is_flat_where_the_clipped_branch_is_larger():
    # old 0, clip 0.2. Forecast 1 for goal 2: errors 1 and (0.2 - 2)^2 = 3.24, clipped one wins: 1.62, flat.
    # Forecast 1 for goal -1: 4 against 1.44: 2, slope v - G = 2. Forecast 0.1 for 2: within the clip, slope -1.9.
    values = t([1, 1, 0.1]).requires_grad_()
    loss = value_loss(values, t([0, 0, 0]), t([2, -1, 2]))
    torch.testing.assert_close(loss.detach(), t([1.62, 2, 1.805]))
    assert gradient(loss, values) == pytest.approx([0, 2, -1.9])
    assert value_loss(values, t([0, 0, 0]), t([2, -1, 2]), clip_value=0.0).tolist() == [pytest.approx([0.5, 2, 1.805])]
