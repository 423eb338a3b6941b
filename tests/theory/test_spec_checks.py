"""Checks of the spec that are neither one loss nor one table: modes of averaging, identities, rates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core import credit
from fiducial.core.method import KL
from fiducial.exact.optima import rlhf_optimum
from fiducial.methods import METHODS
from fiducial.prove.battery import padded
from fiducial.prove.problems import exact_run, random_batch, ready, toy, value_and_gradient


@pytest.mark.parametrize("name", ["sft", "reinforce_lm", "rloo", "grpo"])
@pytest.mark.parametrize("per", ["token", "sequence", "sequence_sum", "constant"])
def test_every_mode_adds_up_and_ignores_order_and_padding(name, per):
    """Spec 0.3 (ii), (iii) for every mode, with KL in the loss; the battery takes the method's own mode only."""
    method = METHODS[name]
    model, ref = toy(method, 1), toy(method, 2)
    run = exact_run(method, KL(0.1, "k3", "loss"), per=per)
    parts, batch = ready(run, method, model, random_batch(method), ref)
    value, gradient = value_and_gradient(run, method, parts, batch, 6)
    order = batch.select(torch.tensor([3, 1, 5, 0, 2, 4]))
    for other, size in ((batch, 1), (batch, 4), (order, 6), (padded(batch), 6)):
        v, g = value_and_gradient(run, method, parts, other, size)
        assert v == pytest.approx(value, abs=1e-12) and torch.allclose(g, gradient, atol=1e-12)


rewards = st.lists(st.floats(-5, 5), min_size=2, max_size=8)


@given(rewards)
@settings(max_examples=60, deadline=None)
def test_leave_one_out_identity(values):
    """C7: k/(k-1) (R - mean); the sum in a group is 0; k = 2 gives +-(R1 - R2)."""
    r, k = torch.tensor(values).double(), len(values)
    a = credit.leave_one_out(r, torch.zeros(k, dtype=torch.long))
    torch.testing.assert_close(a, k / (k - 1) * (r - r.mean()), atol=1e-9, rtol=0)
    assert abs(float(a.sum())) < 1e-9


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_one_completion_is_refused(name):
    from fiducial.config import Model, RecipeError, Run, Sampling

    with pytest.raises(RecipeError, match="at least 2"):
        Run(method=name, task="arith", model=Model(path="x"), sampling=Sampling(n=1)).resolved()


def test_regret_is_beta_kl_to_the_optimum():
    """C1: J(pi*) = beta log Z and J(pi*) - J(pi) = beta KL(pi || pi*); limits of beta; a shift of r changes nothing."""
    draw = torch.Generator().manual_seed(0)
    ref, pi = (torch.randn(5, generator=draw).double().softmax(-1) for _ in range(2))
    r, beta = torch.randn(5, generator=draw).double(), 0.4
    best = rlhf_optimum(ref, r, beta)

    def objective(p):
        return float((p * (r - beta * (p / ref).log())).sum())

    assert objective(best) == pytest.approx(beta * math.log(float((ref * (r / beta).exp()).sum())), abs=1e-12)
    assert objective(best) - objective(pi) == pytest.approx(beta * float((pi * (pi / best).log()).sum()), abs=1e-12)
    torch.testing.assert_close(rlhf_optimum(ref, r + 7, beta), best, atol=1e-12, rtol=0)
    torch.testing.assert_close(rlhf_optimum(ref, r, 1e9), ref, atol=1e-8, rtol=0)
    assert float(rlhf_optimum(ref, r, 1e-3)[r.argmax()]) > 1 - 1e-9


def test_grpo_at_ratio_one_is_the_policy_gradient():
    """C10 (d): value -mean A, gradient that of -A log pi."""
    torch.manual_seed(0)
    lp = torch.randn(3, 4).double().requires_grad_()
    a = torch.randn(3, 1).double().expand(3, 4)
    loss = METHODS["grpo"].loss(lp, lp.detach(), a)
    torch.testing.assert_close(loss.detach(), -a)
    (g,) = torch.autograd.grad(loss.sum(), lp)
    torch.testing.assert_close(g, -a)


@given(*[st.floats(-1e4, 1e4)] * 4)
@settings(max_examples=60, deadline=None)
def test_pair_losses_swap_and_stay_finite(a, b, c, d):
    """Section 11, 10 and 11: exchanging sides and flipping a soft label changes nothing; finite to +-1e4 in float32."""
    x = [torch.tensor([v], requires_grad=True) for v in (a, b, c, d)]
    dpo = METHODS["dpo"].loss
    one = dpo(*x, label_smoothing=0.2)
    two = dpo(x[1], x[0], x[3], x[2], label_smoothing=0.8)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)
    one.sum().backward()
    assert torch.isfinite(one).all() and all(torch.isfinite(t.grad).all() for t in x)
    bt, zero = METHODS["bt_reward_model"].loss, torch.zeros(1)
    mixed = 0.8 * bt(x[0], x[1], zero) + 0.2 * bt(x[1], x[0], zero)
    torch.testing.assert_close(bt(x[0], x[1], zero, label_smoothing=0.2), mixed)


def test_margin_of_a_certain_pair_grows_like_log_t():
    """3.1: d(beta h)/dt = 2 beta^2 sigma(-beta h) on two free logits, so beta h ~ log t: slope 1 on a log axis."""
    beta, theta, h = 1.0, torch.zeros(1, 2, dtype=torch.float64), []
    for t in range(20_001):
        theta.requires_grad_()
        lp = theta.log_softmax(-1)[0]
        METHODS["dpo"].loss(lp[:1], lp[1:], torch.zeros(1), torch.zeros(1), beta=beta).sum().backward()
        theta = (theta - 0.5 * theta.grad).detach()
        if t in (2_000, 20_000):
            h.append(float(beta * (theta[0, 0] - theta[0, 1])))
    assert h[1] - h[0] == pytest.approx(math.log(10), rel=0.02)
