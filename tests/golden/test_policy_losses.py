"""Credit and losses of the policy gradients without a critic, against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.config import Model, NewModel, RecipeError, Run, Sampling
from fiducial.core.credit import soft_baseline, step_normalized
from fiducial.core.divergence import proximal_kl
from fiducial.exact.optima import grpo_factor
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.prove.gradients import expected_gradient, objective_gradient
from fiducial.prove.problems import exact_run


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def slope(name, log_ratio, advantage, **hparams) -> float:
    """dL / dlogprob of a one-token completion whose ratio to the old policy is exp(log_ratio)."""
    logprobs = t([log_ratio]).requires_grad_()
    tensors = {"logprobs": logprobs, "old_logprobs": t([0.0]), "advantages": t([advantage]), "mask": t([1.0]).bool()}
    method = METHODS[name]
    loss = method.call_loss(tensors, method.settings(hparams))
    return float(torch.autograd.grad(loss.sum(), logprobs)[0])


def test_clips_of_the_papers():
    # A = 1: the slope is -rho up to 1 + clip_high, then 0
    for name, high in (("dapo", 1.28), ("dr_grpo", 1.2), ("reinforce_pp", 1.2), ("gspo", 1.0004)):
        assert slope(name, math.log(high - 1e-5), 1.0) == pytest.approx(-(high - 1e-5)), name
        assert slope(name, math.log(high + 1e-5), 1.0) == 0, name
    # A = -1: flat below 1 - clip_low
    for name, low in (("dapo", 0.8), ("dr_grpo", 0.8), ("reinforce_pp", 0.8), ("gspo", 0.9997)):
        assert slope(name, math.log(low + 1e-5), -1.0) == pytest.approx(low + 1e-5), name
        assert slope(name, math.log(low - 1e-5), -1.0) == 0, name


@pytest.mark.parametrize(("ratio", "weight"), [(0.1, 0.1), (0.5, 0.5), (1.0, 1.0), (4.0, 4.0), (7.0, 5.0), (50.0, 5.0)])
def test_cispo_is_the_detached_weight_times_the_log_prob(ratio, weight):
    """No token loses its gradient: what PPO's clip would cut keeps the weight at the bound, for either sign of A."""
    for advantage in (2.0, -2.0):
        assert slope("cispo", math.log(ratio), advantage) == pytest.approx(-weight * advantage)
    low = slope("cispo", math.log(ratio), 1.0, clip_low=0.2, clip_high=0.2)
    assert low == pytest.approx(-min(max(ratio, 0.8), 1.2))


def test_cispo_in_float32_far_away():
    logprobs = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = METHODS["cispo"].loss(logprobs, torch.zeros(1, 2), torch.ones(1, 2))
    loss.sum().backward()
    assert float(loss[0, 1].detach()) == pytest.approx(-5 * (1 + 1e4 - math.log(5)))
    assert logprobs.grad.tolist() == [[0, -5]]


def test_a_sequence_ratio_belongs_to_the_whole_completion():
    # three tokens, the middle one a tool's: log-ratios .4 (9) .2; sum .6, mean .3. The tool's token has no slope.
    logprobs = t([0.4, 9.0, 0.2]).requires_grad_()
    mask, zeros = torch.tensor([[True, False, True]]), t([0, 0, 0])
    loss = METHODS["gspo"].loss(logprobs, zeros, zeros + 1, mask, clip_high=9.0)
    assert loss[mask].tolist() == pytest.approx([-math.exp(0.3)] * 2)
    (found,) = torch.autograd.grad(loss[mask].mean(), logprobs)  # s / |y| at each of the policy's own
    torch.testing.assert_close(found, t([-math.exp(0.3) / 2, 0, -math.exp(0.3) / 2]))


# -- MDLOO -------------------------------------------------------------------------------------------------------------


def test_proximal_kl_is_unbiased_with_the_right_gradient():
    """sum_y old(y) k_iw(y) = KL(pi || old), and so its gradient: a softmax of four."""
    draw = torch.Generator().manual_seed(3)
    theta = torch.randn(4, generator=draw, dtype=torch.float64).requires_grad_()
    old = torch.randn(4, generator=draw, dtype=torch.float64).log_softmax(-1)
    policy = theta.log_softmax(-1)
    estimate = (old.exp() * proximal_kl(policy - old)).sum()
    exact = (policy.exp() * (policy - old)).sum()
    assert float(estimate.detach()) == pytest.approx(float(exact.detach()), abs=1e-14)
    one, two = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (estimate, exact))
    torch.testing.assert_close(one, two, atol=1e-14, rtol=0)
    assert float(proximal_kl(t([-3.0, -0.1, 0.0, 0.1, 3.0])).min()) == 0  # and nowhere negative


def test_mdloo_by_hand():
    # two tokens, log-ratios .5 and .3: rho = e^.8; its term, spread over the two, sums to -3 rho + .1 k_iw
    new, old, mask = t([0.5, 0.3]), t([0, 0]), torch.ones(1, 2).bool()
    rho = math.exp(0.8)
    expected = -3 * rho + 0.1 * (rho * 0.8 - (rho - 1))
    assert float(METHODS["mdloo"].loss(new, old, t([3, 3]), mask).sum()) == pytest.approx(expected)
    each = METHODS["mdloo"].loss(new, old, t([3, 3]), mask, ratio_level="token")
    by_token = [-3 * math.exp(u) + 0.1 * (math.exp(u) * u - math.exp(u) + 1) for u in (0.5, 0.3)]
    assert each.tolist() == [pytest.approx(by_token)]


def test_the_limits_of_mdloo():
    # at pi_old the slope is RLOO's whatever prox_coef; away from it, prox_coef -> 0 leaves -rho A, and a large one
    # pulls back: d k_iw / d log rho = rho log rho
    for prox in (1e-6, 0.1, 1e6):
        assert slope("mdloo", 0.0, 2.0, prox_coef=prox) == pytest.approx(-2)
    assert slope("mdloo", 0.5, 2.0, prox_coef=1e-9) == pytest.approx(-2 * math.exp(0.5))
    assert slope("mdloo", 0.5, 2.0, prox_coef=1e6) == pytest.approx(1e6 * 0.5 * math.exp(0.5), rel=1e-4)


def test_mdloo_wants_several_updates():
    run = Run(method="mdloo", task="arith", steps=1, sampling=Sampling(n=2), model=Model(new=NewModel()))
    with pytest.raises(
        RecipeError, match="mdloo is about several updates.*optim.epochs x optim.minibatches.*2 or more"
    ):
        run.resolved()


# -- REINFORCE++ -------------------------------------------------------------------------------------------------------


def normalized(earned, penalty, mask, group=(0, 1), **hparams):
    return step_normalized(t(*earned), t(*penalty), torch.tensor(group), torch.tensor(mask), **hparams)


ONES = [[False, True, True], [False, True, True]]


def test_reinforce_pp_by_hand():
    # Outcomes 2 and 0 on the last tokens, KL .1 .3 and .2 .2. To go: 2 - .4, 2 - .3, -.4, -.2; mean .675,
    # squares of the gaps: .925^2 + 1.025^2 + 1.075^2 + .875^2 = 3.8275, over 3: deviation 1.12953
    penalty = [[0, 0.1, 0.3], [0, 0.2, 0.2]]
    earned = [[0, -0.1, 1.7], [0, -0.2, -0.2]]  # as the trainer gives them, the KL taken off
    gaps = t([0, 0.925, 1.025], [0, -1.075, -0.875])
    found = normalized(earned, penalty, ONES)
    torch.testing.assert_close(found, gaps / math.sqrt(3.8275 / 3), atol=1e-7, rtol=0)


def test_reinforce_pp_clips_what_was_earned_and_not_the_kl():
    # 50 is held at 10, the KL of 20 is not: to go 10 - 20 = -10 and 0: -5 and 5 from the mean, deviation sqrt(50)
    found = normalized([[0, 30.0], [0, 0]], [[0, 20.0], [0, 0]], [[False, True]] * 2)
    torch.testing.assert_close(found, t([0, -5], [0, 5]) / math.sqrt(50), atol=1e-7, rtol=0)


def test_reinforce_pp_baseline():
    # groups (10, 8) and (1, 1): less their means 1 -1 0 0, deviation sqrt(2/3); without, the easy prompt wins
    earned, mask = [[0, 10.0], [0, 8], [0, 1], [0, 1]], [[False, True]] * 4
    nothing = [[0.0, 0]] * 4
    found = normalized(earned, nothing, mask, (0, 0, 1, 1), baseline=True)
    torch.testing.assert_close(found[:, 1], t(1, -1, 0, 0) / math.sqrt(2 / 3), atol=1e-7, rtol=0)
    assert (normalized(earned, nothing, mask, (0, 0, 1, 1))[:, 1] > 0).tolist() == [True, True, False, False]


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=6), st.integers(0, 99))
def test_reinforce_pp_statistics(rewards, seed):
    """Mean 0 and deviation 1 over tokens; without a KL constant along a completion, whose tokens count each."""
    n = len(rewards)
    lengths = torch.randint(1, 5, (n,), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(5)[None] <= lengths[:, None]
    mask[:, 0] = False
    token_rewards = torch.zeros(n, 5).double()
    token_rewards[torch.arange(n), lengths] = torch.tensor(rewards).double()
    found = step_normalized(token_rewards, torch.zeros(n, 5).double(), torch.arange(n), mask)
    live = torch.tensor(rewards).double().repeat_interleave(lengths)
    assert float(found[mask].mean()) == pytest.approx(0, abs=1e-6)
    if len(live) > 1 and float(live.std()) > 0.1:
        assert float(found[mask].std()) == pytest.approx(1, abs=1e-5)
        expected = (live - live.mean()) / live.std()
        torch.testing.assert_close(found[mask], expected, atol=1e-5, rtol=0)
    assert not found[~mask].any()


def test_reinforce_pp_per_micro_batch_would_be_another():
    earned, nothing = [[0, 1.0], [0, 0], [0, 0], [0, 0]], [[0.0, 0]] * 4
    whole = normalized(earned, nothing, [[False, True]] * 4, (0, 1, 2, 3))
    half = normalized(earned[:2], nothing[:2], [[False, True]] * 2)
    assert float(whole[0, 1]) == pytest.approx(1.5) and float(half[0, 1]) == pytest.approx(math.sqrt(0.5))  # .75 / .5


def test_reinforce_pp_on_one_prompt_has_the_factor_of_grpo():
    """One-token completions of one prompt, right or wrong: its gradient is c_G(p) grad p with the sample deviation."""
    tree, rewards = TokenTree(3, 1, seed=7), t(0, 1, 0)
    success = float(tree.response_logprobs().detach().exp()[1])
    for n in (2, 3):
        found = expected_gradient(exact_run(METHODS["reinforce_pp"], n=n), METHODS["reinforce_pp"], tree, rewards, None)
        exact = -grpo_factor(success, n, 0.0, "sample") * objective_gradient(tree, rewards)
        torch.testing.assert_close(found, exact, atol=1e-7, rtol=0)  # whitening adds 1e-8 to the variance


# -- Kimi --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tau", "level"), [(0.01, 0.995), (1.0, 0.7085), (100.0, 0.6012)])
def test_log_partition_of_the_spec(tau, level):
    rewards, group = t(1, 0, 0, 1, 1), torch.zeros(5, dtype=torch.long)
    found = rewards - soft_baseline(rewards, group, baseline="log_partition", tau=tau)
    torch.testing.assert_close(found, torch.full((5,), level).double(), atol=5e-5 if tau > 0.1 else 5e-4, rtol=0)


def test_log_partition_is_of_each_group_and_does_not_overflow():
    rewards, group = t(1e4, 0, 3, 3), torch.tensor([7, 7, 2, 2])
    found = soft_baseline(rewards, group, baseline="log_partition", tau=0.01)
    torch.testing.assert_close(found, t(0.01 * math.log(2), 0.01 * math.log(2) - 1e4, 0, 0))
    torch.testing.assert_close(soft_baseline(rewards, group), t(5e3, -5e3, 0, 0))


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.05, 3))
def test_kimi_is_the_square_less_a_constant(advantage, moved, tau):
    """(A - tau l)^2 / (2 tau) - A^2 / (2 tau), its slope -(A - tau l) on every token."""
    logprobs = t([0.0, moved, 0.0]).requires_grad_()
    mask = torch.tensor([[False, True, True]])
    loss = METHODS["kimi_l2_pg"].loss(logprobs, t([7, 0, 0]), t([9, advantage, advantage]), mask, tau=tau)
    square = ((advantage - tau * moved) ** 2 - advantage**2) / (2 * tau)
    assert loss.tolist() == [pytest.approx(square, abs=1e-9)]
    (found,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(found, t([0, tau * moved - advantage, tau * moved - advantage]))


def test_kimi_starts_its_optimizer_anew():
    method = METHODS["kimi_l2_pg"]
    assert method.forgets(3, 9, method.settings({}))
    assert not method.forgets(3, 9, method.settings({"reset_optimizer": False}))
