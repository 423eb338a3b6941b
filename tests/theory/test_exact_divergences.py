"""f-divergences: the table of families, the optimum that one additive multiplier gives, and its tails (spec 3.4)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.exact.divergences import divergence, f_divergence, f_optimum, kl, lambert_w_exp, ratio_bounds
from fiducial.exact.minimise import exact_minimise
from fiducial.exact.optima import bradley_terry, rlhf_optimum

D = torch.float64
REF, REWARDS = torch.tensor([0.5, 0.3, 0.2], dtype=D), torch.tensor([1.0, 0.0, -1.0], dtype=D)
FAMILIES = [("reverse_kl", None), ("forward_kl", None), ("js", None), ("alpha", 0.3), ("alpha", 0.5), ("chi2_kl", None)]

# g(rho) = f'(exp rho) up to a constant, as a loss writes it.
LINK = {
    "reverse_kl": lambda rho, a: rho,
    "forward_kl": lambda rho, a: -torch.exp(-rho),
    "js": lambda rho, a: torch.nn.functional.logsigmoid(rho),
    "alpha": lambda rho, a: -torch.expm1(-a * rho) / a,
    "chi2_kl": lambda rho, a: rho.exp() + rho,
}


def near(found, expected, atol):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=D), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("family", "alpha", "multiplier", "policy"),
    [
        ("reverse_kl", None, 0.1958393082, (0.9186723059, 0.0745972660, 0.0067304281)),
        ("forward_kl", None, 1.2973189235, (0.8408479255, 0.1156230725, 0.0435290020)),
        ("js", None, 0.8616107153, (0.9681577853, 0.0293970797, 0.0024451349)),
        ("alpha", 0.5, 0.7553697808, (0.8762959234, 0.0973607744, 0.0263433022)),
        ("chi2_kl", None, -0.0311522438, (0.7976323835, 0.1769930124, 0.0253746041)),
    ],
)
def test_fixture_a(family, alpha, multiplier, policy):
    found = f_optimum(REF, REWARDS, 0.5, family, alpha)
    near(found.policy, policy, 1e-8)
    near(found.multiplier, multiplier, 1e-8)


@pytest.mark.parametrize(("family", "alpha"), FAMILIES)
def test_f_its_derivative_and_its_inverse_agree(family, alpha):
    """f' is autograd's of f and the link of the loss up to a constant, increasing; the inverse undoes it; f(1) = 0."""
    law = divergence(family, alpha)
    u = torch.logspace(-6, 4, 60, dtype=D).requires_grad_()
    (slope,) = torch.autograd.grad(law.f(u).sum(), u)
    u = u.detach()
    torch.testing.assert_close(law.derivative(u), slope, rtol=1e-9, atol=1e-12)
    link = LINK[family](u.log(), alpha) - law.derivative(u)
    near(link, link[0].expand_as(link), 1e-9 * float(law.derivative(u).abs().max()))
    assert (law.derivative(u).diff() > 0).all() and (law.derivative(u) < law.limit).all()
    moderate = u[u < 100]
    torch.testing.assert_close(law.inverse(law.derivative(moderate)), moderate, rtol=1e-9, atol=0)
    assert float(law.f(torch.ones((), dtype=D))) == pytest.approx(0.0, abs=1e-15)
    if math.isfinite(law.limit):
        assert torch.isinf(law.inverse(torch.tensor([law.limit, law.limit + 1], dtype=D))).all()


@given(st.floats(-700, 700))
def test_lambert(z):
    u = float(lambert_w_exp(torch.tensor(z, dtype=D)))
    assert u > 0 or z < -600
    if z > -600:
        assert u + math.log(u) == pytest.approx(z, rel=1e-12, abs=1e-12)


def random_problem(seed, size=5):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=draw, dtype=D).softmax(-1), torch.randn(size, generator=draw, dtype=D)


@pytest.mark.parametrize(("family", "alpha"), FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_f_dpo_minimiser_is_the_optimum(family, alpha, seed):
    """The population loss on exact Bradley-Terry pairs, minimised over a free softmax, against bisection: 1e-6."""
    ref, rewards = random_problem(seed, 4)
    beta, weight = 0.8, bradley_terry(rewards)

    def loss(theta):
        scores = beta * LINK[family](theta.log_softmax(-1) - ref.log(), alpha)
        return -(weight * torch.nn.functional.logsigmoid(scores[:, None] - scores[None, :])).mean()

    near(exact_minimise(loss, ref.log()).softmax(-1), f_optimum(ref, rewards, beta, family, alpha).policy, 1e-6)


@given(st.integers(0, 10_000), st.sampled_from(FAMILIES), st.floats(0.02, 20.0))
@settings(max_examples=60, deadline=None)
def test_no_policy_is_better_than_the_optimum(seed, kind, beta):
    """It is a distribution with r - beta f' constant, beats others at its objective and keeps its tails' bounds."""
    ref, rewards = random_problem(seed)
    policy, multiplier = f_optimum(ref, rewards, beta, *kind)
    assert float(policy.sum()) == pytest.approx(1, abs=1e-9)
    low, high = ratio_bounds(float(rewards.max() - rewards.min()), beta, *kind)
    ratio = policy / ref
    assert float(ratio.min()) >= low * (1 - 1e-9) and float(ratio.max()) <= high * (1 + 1e-9)

    def objective(pi):
        return float((pi * rewards).sum() - beta * f_divergence(pi, ref, *kind))

    for step in (0.01, 0.3):
        other = policy + step * (random_problem(seed + 1)[0] - policy)
        assert objective(other) <= objective(policy) + 1e-9
    if float(policy.min()) > 1e-9 and float(ratio.max()) < 50:
        level = rewards - beta * divergence(*kind).derivative(ratio)
        near(level, multiplier.expand_as(level), 1e-5)


def test_tail_bounds_of_the_papers():
    """R / beta = 6: forward KL >= 1/7; reverse KL <= e^6; chi-PO <= 7, and its exact bound u + log u = 7 is inside."""
    assert ratio_bounds(3.0, 0.5, "forward_kl")[0] == pytest.approx(1 / 7)
    assert ratio_bounds(3.0, 0.5, "reverse_kl")[1] == pytest.approx(math.exp(6))
    high = ratio_bounds(3.0, 0.5, "chi2_kl")[1]
    assert high + math.log(high) == pytest.approx(7) and high < 7
    assert ratio_bounds(3.0, 0.5, "js")[1] == math.inf


def test_limits_of_the_alpha_family():
    near(f_optimum(REF, REWARDS, 0.5, "alpha", 1e-4).policy, rlhf_optimum(REF, REWARDS, 0.5), 1e-4)
    near(
        f_optimum(REF, REWARDS, 0.5, "alpha", 1 - 1e-5).policy, f_optimum(REF, REWARDS, 0.5, "forward_kl").policy, 1e-4
    )
    near(f_optimum(REF, REWARDS, 0.5, "reverse_kl").policy, rlhf_optimum(REF, REWARDS, 0.5), 1e-12)


def test_the_multiplicative_constant_is_right_for_reverse_kl_only():
    """Erratum E10: ref (f')^-1(r / beta) / Z leaves forward KL's domain at r = 0; for chi2_kl it is another law."""
    beta = 0.5
    for family, right in (("reverse_kl", True), ("chi2_kl", False)):
        z_form = REF * divergence(family).inverse(REWARDS / beta)
        gap = (z_form / z_form.sum() - f_optimum(REF, REWARDS, beta, family).policy).abs().max()
        assert (float(gap) < 1e-12) == right
    assert torch.isinf(divergence("forward_kl").inverse(REWARDS / beta)).any()


def test_batches_and_small_betas():
    refs = torch.stack([REF, REF.flip(0)])
    for family, alpha in FAMILIES:
        both = f_optimum(refs, REWARDS, 0.5, family, alpha)
        near(both.policy[1], f_optimum(REF.flip(0), REWARDS, 0.5, family, alpha).policy, 0)
        assert both.multiplier.shape == (2,)
        greedy = f_optimum(REF, 100 * REWARDS, 1e-3, family, alpha).policy
        near(greedy, [1, 0, 0], 1e-4)
        near(f_optimum(REF, REWARDS, 1e6, family, alpha).policy, REF, 1e-5)


def test_why_some_divergences_are_refused():
    """chi-squared puts exactly nothing on responses: with beta = .1 three of five arms go."""
    rewards, ref, beta = torch.tensor([1.0, 0.9, 0.2, 0.0, -1.0], dtype=D), torch.full((5,), 0.2, dtype=D), 0.1
    low, high = -1.5, 1.0
    for _ in range(100):  # pi = ref max(0, 1 + (r - lambda) / (2 beta))
        middle = (low + high) / 2
        policy = ref * (1 + (rewards - middle) / (2 * beta)).clamp(min=0)
        low, high = (middle, high) if policy.sum() > 1 else (low, middle)
    # On the two that stay: .2 (2 + (1.9 - 2 lambda) / .2) = 1, so lambda = .65, pi = .2 (1 + .35 / .2) = .55 and .45.
    near(policy, [0.55, 0.45, 0, 0, 0], 1e-12)
    for family, reason in (("chi_squared", "no mass at all"), ("total_variation", "two values"), ("kl", "one of")):
        with pytest.raises(ValueError, match=reason):
            f_optimum(REF, REWARDS, 0.5, family)
    with pytest.raises(ValueError, match="alpha between 0"):
        f_optimum(REF, REWARDS, 0.5, "alpha", 1.0)
    with pytest.raises(ValueError, match="positive probability"):
        f_optimum(torch.tensor([1.0, 0.0, 0.0], dtype=D), REWARDS, 0.5, "js")


def test_divergences_of_two_coins():
    """p = (3/4, 1/4), q = (1/2, 1/2), by hand."""
    p, q = torch.tensor([0.75, 0.25], dtype=D), torch.tensor([0.5, 0.5], dtype=D)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    middle = (0.625, 0.375)
    js = sum(a * math.log(a / m) for dist in ((0.75, 0.25), (0.5, 0.5)) for a, m in zip(dist, middle, strict=True))
    for family, expected in (
        ("reverse_kl", forward),
        ("forward_kl", backward),
        ("js", js),  # without the half of the usual definition
        ("chi2_kl", forward + 0.5 * 0.25),  # E_q (u - 1)^2 = 1/4
    ):
        assert float(f_divergence(p, q, family)) == pytest.approx(expected, abs=1e-12)
    # alpha = 1/2: 4 (1 - sum sqrt(p q)).
    hellinger = 4 * (1 - sum(math.sqrt(a * b) for a, b in zip((0.75, 0.25), (0.5, 0.5), strict=True)))
    assert float(f_divergence(p, q, "alpha", 0.5)) == pytest.approx(hellinger, abs=1e-12)
    assert float(kl(p, q)) == pytest.approx(forward, abs=1e-12)
    certain = torch.tensor([1.0, 0.0], dtype=D)
    assert float(kl(certain, q)) == pytest.approx(math.log(2)) and float(kl(q, certain)) == math.inf
