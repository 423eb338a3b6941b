"""Slopes, limits and symmetries of the direct losses (spec 3, section 11; Feng et al. 2024 for DPO's are in golden)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.exact.divergences import divergence
from fiducial.methods import METHODS
from fiducial.methods.chi_po import phi
from fiducial.methods.f_dpo import FAMILIES, link

PAIRED = ("chosen_logprobs", "rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs")
ROW_METHODS = [  # every loss of this part that sees one number per completion, with its settings
    ("dpo", {}),
    ("dpo", {"length_average": True}),
    ("dpo", {"gamma_ref": 0.0}),
    ("dpo", {"label_smoothing": 0.2, "robust": True}),
    ("spin", {}),
    ("spin", {"loss": "hinge"}),
    ("spin", {"loss": "linear"}),
    ("dpo_nll", {}),
    ("dpop", {}),
    ("dpop", {"penalty_inside_beta": False}),
    *(("f_dpo", {"family": family}) for family in FAMILIES),
    ("f_dpo", {"family": "alpha", "alpha": 0.999}),
    ("chi_po", {}),
    ("chi_po", {"r_max": 1.0}),
    *(("c3dpo", {"lam": 0.1, "phi": phi, "norm": norm}) for phi in ("log", "id") for norm in ("l1", "l2")),
    ("c3dpo", {"lam": 0.1, "phi": "id", "length_average": True}),
    ("ipo", {}),
    ("ipo", {"length_average": True, "scaled": True}),
    ("psi_po", {}),
    ("psi_po", {"psi": "logit"}),
    ("slic", {}),
    ("slic", {"with_reference": True, "length_average": True}),
    ("simpo", {}),
    ("orpo", {}),
    ("cpo", {}),
    ("tr_dpo", {}),
    ("tr_ipo", {}),
    ("online_direct", {}),
    ("online_ipo", {}),
    ("llama3_loop", {}),
]


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def leaves(*values, dtype=torch.float64):
    return [torch.tensor([float(v)], dtype=dtype, requires_grad=True) for v in values]


def slope(leaf) -> float:
    return float(leaf.grad.sum())


def slopes(name, w, r, **hparams):
    """dL/d rho_w and dL/d rho_l of a pair at these log-ratios."""
    chosen, rejected = leaves(w, r)
    METHODS[name].loss(chosen, rejected, t(0.0), t(0.0), **hparams).sum().backward()
    return slope(chosen), slope(rejected)


@pytest.mark.parametrize(("name", "given"), ROW_METHODS)
def test_finite_in_float32_for_extreme_log_ratios(name, given):
    """Log-ratios of +-1e4 and everything between: no value and no slope is infinite or NaN."""
    levels = torch.tensor([-1e4, -90.0, -30.0, -1.0, -1e-3, 0.0])
    grid = torch.cartesian_prod(*[levels] * 4)
    tensors = {n: grid[:, i].clone() for i, n in enumerate(PAIRED)}
    policy = [tensors[n].requires_grad_() for n in PAIRED[:2]]
    tensors |= {"chosen_lengths": torch.full((len(grid),), 7), "rejected_lengths": torch.full((len(grid),), 1)}
    tensors["pref_prob"] = torch.linspace(0.01, 0.99, len(grid))
    method = METHODS[name]
    loss = method.call_loss(tensors, method.settings(given))
    assert loss.dtype == torch.float32 and loss.isfinite().all()
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(loss.sum(), policy))
    for metric, values in method.call_measures(tensors, method.settings(given)).items():
        assert values.isfinite().all(), metric


def test_float64_is_not_cut():
    """The limits are float32's: in float64 chi-PO at rho = 30 is e^30 + 30, and forward KL at -60 is -e^60."""
    assert float(phi(t(30.0))) == math.exp(30) + 30
    assert float(phi(torch.tensor([30.0]))) == pytest.approx(math.exp(20) + 30)
    assert float(link(t(-60.0), "forward_kl")) == -math.exp(60)
    assert float(link(torch.tensor([-60.0]), "forward_kl")) == pytest.approx(-math.exp(40), rel=1e-6)


# -- slopes ------------------------------------------------------------------------------------------------------------


@given(st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=50, deadline=None)
def test_dpop_multiplies_only_the_chosen_slope(w, r):
    """Below the reference the slope in rho_w is 1 + lam times that in -rho_l; above it DPO's, loss and slopes."""
    lam, beta = 4.0, 0.3
    good, bad = slopes("dpop", w, r, lam=lam, beta=beta)
    if w < 0:
        assert good == pytest.approx(-(1 + lam) * bad, rel=1e-12)
        h = w - r + lam * w
        assert bad == pytest.approx(beta / (1 + math.exp(beta * h)), rel=1e-12)
    else:
        assert (good, bad) == slopes("dpo", w, r, beta=beta)


def test_dpop_takes_the_zero_branch_at_the_reference():
    assert slopes("dpop", 0.0, 0.0) == slopes("dpo", 0.0, 0.0, beta=0.3) == (-0.15, 0.15)


def test_ipo_pulls_an_over_separated_pair_back():
    """dL/dh = 2 (h - 1 / (2 beta)): at h = 1 / beta it is 1 / beta, at the target 0."""
    assert slopes("ipo", 10.0, 0.0, beta=0.1) == pytest.approx((10.0, -10.0))
    assert slopes("ipo", 2.0, -3.0, beta=0.1) == (0.0, 0.0)


def test_hinges_are_flat_past_the_margin():
    assert slopes("slic", 11.0, 0.0, with_reference=True) == (0.0, 0.0)
    assert slopes("slic", 9.0, 0.0, with_reference=True) == pytest.approx((-0.1, 0.1))
    assert slopes("slic", 2.0, 0.5, lam=0.2) == pytest.approx((-0.2, 0.0))  # only imitation is left
    assert slopes("spin", 11.0, 0.0, loss="hinge") == (0.0, 0.0)


@given(st.floats(-4, 2), st.floats(-4, 2))
@settings(max_examples=50, deadline=None)
def test_chi_po_slope_inside_and_outside_the_clip(w, r):
    """Inside, dL/d rho_w = -sigmoid(-m) beta (1 + e^rho_w); a clipped pair has none."""
    beta, r_max = 0.5, 0.6
    m = beta * (math.exp(w) + w - math.exp(r) - r)
    good, bad = slopes("chi_po", w, r, beta=beta, r_max=r_max)
    if abs(m) > 2 * r_max:
        assert good == bad == 0
    else:
        weight = 1 / (1 + math.exp(m))
        assert good == pytest.approx(-weight * beta * (1 + math.exp(w)), rel=1e-10)
        assert bad == pytest.approx(weight * beta * (1 + math.exp(r)), rel=1e-10)


def test_chi_po_is_dpo_where_ratios_are_small():
    """phi = log as x -> 0: at rho = -20 both slopes agree to e^-20."""
    assert slopes("chi_po", -20.0, -21.0, beta=0.3) == pytest.approx(slopes("dpo", -20.0, -21.0, beta=0.3), rel=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_links_are_derivatives_of_their_f(family):
    """g(rho) is f'(e^rho) up to a constant, f differentiated by autograd, and it increases."""
    alpha = 0.3
    rho = torch.linspace(-2, 2, 41, dtype=torch.float64)
    u = rho.exp().requires_grad_()
    (slope,) = torch.autograd.grad(divergence(family, alpha).f(u).sum(), u)
    gap = link(rho, family, alpha) - slope
    assert float(gap.max() - gap.min()) < 1e-10
    assert (link(rho, family, alpha).diff() > 0).all()


def test_alpha_tends_to_both_kls():
    """(1 - e^(-a rho)) / a -> rho as a -> 0; 1 - e^(-rho) as a -> 1, forward KL's but for the constant 1."""
    rho = torch.linspace(-1, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(link(rho, "alpha", 1e-4), rho, atol=1e-4, rtol=0)
    torch.testing.assert_close(link(rho, "alpha", 1 - 1e-6) - 1, link(rho, "forward_kl"), atol=1e-4, rtol=0)


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.1, 5))
@settings(max_examples=50, deadline=None)
def test_c3dpo_pulls_both_sides_by_what_they_moved(w, r, lam):
    """Over DPO's slopes: 2 lam K on both sides, K = rho_w + rho_l; nothing at the reference."""
    extra = [a - b for a, b in zip(slopes("c3dpo", w, r, lam=lam), slopes("dpo", w, r), strict=True)]
    assert extra == pytest.approx([2 * lam * (w + r)] * 2, abs=1e-9)
    assert slopes("c3dpo", 0.0, 0.0, lam=lam) == slopes("c3dpo", 0.0, 0.0, lam=lam, norm="l1") == slopes("dpo", 0, 0)


def test_nll_slope_is_imitation_per_token():
    """The extra slope of dpo_nll is that of sft averaged over the completion's own tokens, -alpha / |y_w|."""
    chosen, rejected = leaves(-9, -8)
    METHODS["dpo_nll"].loss(chosen, rejected, t(-9), t(-8), t(6.0), alpha=0.6).sum().backward()
    assert slope(chosen) == pytest.approx(-0.05 - 0.1)
    assert slope(rejected) == pytest.approx(0.05)


def test_simpo_and_orpo_slopes():
    """SimPO: -beta sigmoid(-z) / |y_w|. ORPO: d log odds / d log p = 1 / (1 - p)."""
    chosen, rejected = leaves(-4, -9)
    METHODS["simpo"].loss(chosen, rejected, t(2), t(3), beta=2.0, gamma=0.5).sum().backward()
    weight = 1 / (1 + math.exp(1.5))  # z = 2 (-2 + 3) - .5
    assert slope(chosen) == pytest.approx(-2 * weight / 2) and slope(rejected) == pytest.approx(2 * weight / 3)
    chosen, rejected = leaves(math.log(0.5), math.log(0.2))
    METHODS["orpo"].loss(chosen, rejected, t(1), t(1), lam=0.3).sum().backward()
    weight = 0.2  # sigmoid(-log 4): odds 1 and 1/4
    assert slope(chosen) == pytest.approx(-1 - 0.3 * weight / 0.5)
    assert slope(rejected) == pytest.approx(0.3 * weight / 0.8)


@pytest.mark.parametrize(("alpha", "falls"), [(0.0, True), (0.07, True), (0.08, False), (1.0, False)])
def test_enough_likelihood_reverses_displacement(alpha, falls):
    """One feature: chosen .5, rejected 0, a third answer 2, uniform reference, beta .1, one token.

    At theta = 0 d log pi(chosen) = .5 - 2.5/3 = -1/3 and dh = .5, so descent moves theta by .025 - alpha / 3: DPO
    raises the margin while the chosen one falls, unless alpha > .075.
    """
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    logprobs = (theta * t(0.5, 0.0, 2.0)).log_softmax(-1)
    uniform = t(1 / 3).log()
    loss = METHODS["dpo_nll"].loss(logprobs[:1], logprobs[1:2], uniform, uniform, t(1.0), beta=0.1, alpha=alpha)
    (step,) = torch.autograd.grad(-loss.sum(), theta)
    assert float(step) == pytest.approx(0.025 - alpha / 3)
    assert (float(step) * (0.5 - 2.5 / 3) < 0) == falls


# -- identities --------------------------------------------------------------------------------------------------------

logs = st.floats(-20, 0)


@given(logs, logs, logs, logs, st.floats(0.01, 2))
@settings(max_examples=50, deadline=None)
def test_what_is_dpo_is_dpo_to_the_bit(w, r, ref_w, ref_r, beta):
    """Settings that switch a method's own part off leave DPO's number, not one near it (spec 11.1, 11.2, 11.4)."""
    pair = [t(x) for x in (w, r, ref_w, ref_r)]
    dpo = METHODS["dpo"].loss(*pair, beta=beta)
    ones = torch.ones(1, dtype=torch.float64)
    assert METHODS["f_dpo"].loss(*pair, beta=beta).equal(dpo)
    assert METHODS["dpop"].loss(*pair, beta=beta, lam=0.0).equal(dpo)
    assert METHODS["dpo_nll"].loss(*pair, ones, beta=beta, alpha=0.0).equal(dpo)
    assert METHODS["c3dpo"].loss(*pair, beta=beta, lam=0.0).equal(dpo)
    assert METHODS["tr_dpo"].loss(*pair, beta=beta).equal(dpo)
    assert METHODS["spin"].loss(*pair, beta=beta).equal(dpo)
    assert METHODS["online_direct"].loss(*pair, beta=beta).equal(dpo)
    chi = METHODS["f_dpo"].loss(*pair, beta=beta, family="chi2_kl")
    assert METHODS["chi_po"].loss(*pair, beta=beta).equal(chi)
    cpo = METHODS["cpo"].loss(*pair[:2], ones, beta=beta, alpha=0.0)
    assert cpo.equal(METHODS["dpo"].loss(*pair[:2], beta=beta, gamma_ref=0.0))
    ipo = METHODS["ipo"].loss(*pair, beta=beta)
    assert METHODS["psi_po"].loss(*pair, ones, beta=beta).equal(ipo)
    scaled = METHODS["ipo"].loss(*pair, beta=beta, scaled=True)
    torch.testing.assert_close(scaled, beta**2 * ipo, rtol=1e-9, atol=1e-12)


SHIFT_FREE = ["dpo", "ipo", "spin", "psi_po", "tr_dpo", "tr_ipo", "online_direct", "online_ipo", "dpo_nll"]


@given(st.floats(0.5, 5), logs, logs)
@settings(max_examples=30, deadline=None)
def test_who_sees_a_shift_of_the_reference(shift, ref_w, ref_r):
    """The same constant on both reference log-probs cancels in h; methods of rho alone do see it (spec 11.12)."""

    def value(name, c, **hparams):
        extra = {"psi_po": (t(0.8),), "dpo_nll": (t(3.0),)}.get(name, ())
        return float(METHODS[name].loss(t(-3.0), t(-4.0), t(ref_w + c), t(ref_r + c), *extra, **hparams))

    for name in SHIFT_FREE:
        assert value(name, shift) == pytest.approx(value(name, 0.0), rel=1e-9), name
    near = lambda name, c, **hparams: float(  # noqa: E731
        METHODS[name].loss(t(-3.0), t(-4.0), t(-2.8 + c), t(-4.1 + c), **hparams)
    )
    for name, hparams in (
        ("dpop", {}),
        ("chi_po", {}),
        ("c3dpo", {"lam": 0.1}),
        *(("f_dpo", {"family": family}) for family in FAMILIES[1:]),
    ):
        assert abs(near(name, 0.3, **hparams) - near(name, 0.0, **hparams)) > 1e-4, (name, hparams)


@given(logs, logs, logs, logs, st.floats(0.05, 0.45))
@settings(max_examples=50, deadline=None)
def test_swapping_the_sides_and_the_label(w, r, ref_w, ref_r, p):
    """Exchanging chosen and rejected together with p -> 1 - p changes nothing (spec 11.11)."""
    pair, swapped = [t(x) for x in (w, r, ref_w, ref_r)], [t(x) for x in (r, w, ref_r, ref_w)]
    for psi in ("identity", "logit"):
        one = METHODS["psi_po"].loss(*pair, t(1 - p), psi=psi)
        torch.testing.assert_close(one, METHODS["psi_po"].loss(*swapped, t(p), psi=psi), rtol=1e-9, atol=1e-9)
    soft = (1 - p) * METHODS["dpo"].loss(*pair) + p * METHODS["dpo"].loss(*swapped)
    torch.testing.assert_close(METHODS["dpo"].loss(*pair, label_smoothing=p), soft)
