"""Estimators of the KL divergence: value and gradient, by full enumeration of a small vocabulary or of a tree."""

import math

import pytest
import torch

from fiducial.core.divergence import entropy, full_kl, kl_estimate
from fiducial.exact.tables import TokenTree

THETA = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
REF = torch.tensor([-0.2, 0.4, 0.0, 0.9], dtype=torch.float64).log_softmax(-1)


def exact_kl(theta):
    log_p = theta.log_softmax(-1)
    return (log_p.exp() * (log_p - REF)).sum()


def forward_kl(theta):
    log_p = theta.log_softmax(-1)
    return (REF.exp() * (REF - log_p)).sum()


def expected(estimator, theta):
    """E over the policy's own draws, the draw itself not differentiated: what a loss sees on average."""
    log_p = theta.log_softmax(-1)
    return (log_p.exp().detach() * kl_estimate(log_p, REF, estimator)).sum()


def slope(function):
    theta = THETA.clone().requires_grad_()
    function(theta).backward()
    return theta.grad


@pytest.mark.parametrize("estimator", ["k1", "k3", "k1+", "k3+"])
def test_unbiased_values(estimator):
    assert float(expected(estimator, THETA)) == pytest.approx(float(exact_kl(THETA)), abs=1e-14)


def test_k2_is_biased():
    log_p = THETA.log_softmax(-1)
    half_square = (log_p.exp() * (log_p - REF).square() / 2).sum()
    assert float(expected("k2", THETA)) == pytest.approx(float(half_square), abs=1e-14)
    assert abs(float(half_square - exact_kl(THETA))) > 0.01


def test_gradients_as_a_loss():
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(slope(lambda th: expected("k1", th)), zero, atol=1e-14, rtol=0)
    for estimator in ("k2", "k1+", "k3+"):
        torch.testing.assert_close(slope(lambda th, e=estimator: expected(e, th)), slope(exact_kl), atol=1e-14, rtol=0)
    torch.testing.assert_close(slope(lambda th: expected("k3", th)), slope(forward_kl), atol=1e-14, rtol=0)
    assert (slope(forward_kl) - slope(exact_kl)).abs().max() > 0.05  # so the line above says something


def test_full_is_exact_in_value_and_gradient():
    logits, ref = THETA.clone().requires_grad_(), REF
    full_kl(logits, ref).backward()
    torch.testing.assert_close(logits.grad, slope(exact_kl), atol=1e-14, rtol=0)
    assert float(full_kl(THETA, REF)) == pytest.approx(float(exact_kl(THETA)), abs=1e-14)


def test_at_the_reference_all_are_zero_and_flat():
    for estimator in ("k1", "k2", "k3"):
        log_p = REF.clone().requires_grad_()
        value = kl_estimate(log_p, REF, estimator)
        assert value.abs().max() == 0
        if estimator != "k1":
            value.sum().backward()
            assert log_p.grad.abs().max() == 0


@pytest.mark.parametrize(("mu", "k1", "k2", "k3"), [(0.1, 20.0, 1.418, 1.417), (1.0, 2.0, 1.732, 1.695)])
def test_spread_for_two_normals(mu, k1, k2, k3):
    """policy N(0, 1), ref N(mu, 1): KL = mu^2 / 2; standard deviation / KL by numerical integration (spec C2)."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    log_p, log_q = -(x**2) / 2, -((x - mu) ** 2) / 2
    truth = mu**2 / 2
    for estimator, relative in (("k1", k1), ("k2", k2), ("k3", k3)):
        value = kl_estimate(log_p, log_q, estimator)
        mean = float((density * value).sum())
        std = float((density * (value - mean) ** 2).sum()) ** 0.5
        assert std / truth == pytest.approx(relative, rel=2e-3)
        assert mean == pytest.approx(truth * (1 + mu**2 / 4) if estimator == "k2" else truth, rel=1e-3)


def tree_gradient(tree, ref, per_token):
    """Expected gradient of sum over tokens of an estimator, at responses drawn from the tree."""
    tree.zero_grad()
    logprobs, ref_logprobs = tree.response_logprobs(), ref.response_logprobs().detach()
    if per_token:
        loss = 0
        for response, p in zip(tree.responses(), logprobs.detach().exp(), strict=True):
            ids = torch.tensor([[0, *response]])
            new, old = (m(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze() for m in (tree, ref))
            loss = loss + p * kl_estimate(new, old.detach(), "k2").sum()
    else:
        loss = (logprobs.detach().exp() * kl_estimate(logprobs, ref_logprobs, "k2")).sum()
    loss.backward()
    return tree.theta.grad.clone()


def test_token_wise_k2_misses_how_the_policy_moves_prefixes():
    """Spec C2: on a tree of two tokens the sequence k2 has the exact gradient, the token-wise k2 has not at token 1."""
    tree, ref = TokenTree(3, 2, seed=0), TokenTree(3, 2, seed=1)
    tree.zero_grad()
    logprobs = tree.response_logprobs()
    (logprobs.exp() * (logprobs - ref.response_logprobs().detach())).sum().backward()
    exact = tree.theta.grad.clone()
    torch.testing.assert_close(tree_gradient(tree, ref, per_token=False), exact, atol=1e-10, rtol=0)
    token_wise = tree_gradient(tree, ref, per_token=True)
    assert (token_wise - exact)[0, 0].abs().max() > 1e-3  # the first token's logits
    torch.testing.assert_close(token_wise[0, 1:], exact[0, 1:], atol=1e-10, rtol=0)  # the last's are right


def test_entropy_and_its_slope():
    """dH/dtheta_a = -pi_a (log pi_a + H); uniform: log V."""
    theta = THETA.clone().requires_grad_()
    h = entropy(theta)
    h.backward()
    log_p = THETA.log_softmax(-1)
    torch.testing.assert_close(theta.grad, -log_p.exp() * (log_p + h.detach()), atol=1e-14, rtol=0)
    assert float(entropy(torch.zeros(8))) == pytest.approx(math.log(8))
    assert float(entropy(torch.tensor([0.0, float("-inf")]))) == 0
