"""KTO and the losses that are composed like it, against hand arithmetic and against the direct losses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.exact.optima import pair_margin
from fiducial.methods import METHODS
from fiducial.methods.halo import HALOS, halo
from fiducial.methods.kto import balancing_weights, kto


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


YES, NO = torch.tensor([True]), torch.tensor([False])
ZERO = torch.zeros((), dtype=torch.float64)


def random_rows(seed: int = 0, n: int = 50):
    draw = torch.Generator().manual_seed(seed)
    policy, ref = -20 * torch.rand(2, n, generator=draw, dtype=torch.float64)
    return policy, ref, torch.rand(n, generator=draw) < 0.5


def test_golden_values():
    """Fixture C of the field's formulas: beta 0.1, z0 0.2, rho = log pi - log ref."""
    wanted = kto(t(0.5, -1, 1), t(0, 0, 0), YES.expand(3), t(0.2)[0], beta=0.1)
    torch.testing.assert_close(wanted, t(0.4925005624, 0.5299640518, 0.4800106598), atol=1e-10, rtol=0)
    unwanted = kto(t(-1, 1, 0.5), t(0, 0, 0), NO.expand(3), t(0.2)[0], beta=0.1)
    torch.testing.assert_close(unwanted, t(0.4700359482, 0.5199893402, 0.5074994376), atol=1e-10, rtol=0)


def test_at_the_reference_the_loss_is_half_the_weight():
    assert kto(t(-3), t(-3), YES, ZERO, lambda_d=1.3).item() == pytest.approx(0.65, abs=1e-15)
    assert kto(t(-3), t(-3), NO, ZERO, lambda_u=0.8).item() == pytest.approx(0.4, abs=1e-15)


@pytest.mark.parametrize(("label", "sign"), [(YES, -1), (NO, 1)])
def test_slope(label, sign):
    """-+ lambda beta s (1 - s), s = sigmoid(beta (rho - z0)): greatest, lambda beta / 4, at rho = z0; 0 far away."""
    beta, weight, z0 = 0.7, 1.4, t(0.3)[0]
    for rho, bound in ((0.3, 1e-15), (1.1, 1e-12), (-60.0, 1e-12), (60.0, 1e-12)):
        x = t(rho).requires_grad_()
        kto(x, t(0), label, z0, beta=beta, lambda_d=weight, lambda_u=weight).sum().backward()
        s = 1 / (1 + math.exp(-beta * (rho - 0.3)))
        assert x.grad is not None and x.grad.item() == pytest.approx(sign * weight * beta * s * (1 - s), abs=bound)
        assert abs(x.grad.item()) <= weight * beta / 4 + 1e-15
    assert abs(x.grad.item()) < 1e-15  # rho = 60


def test_a_shift_of_the_reference_changes_it():
    """Unlike a pair's loss: the single log-ratio is compared with z0."""
    policy, ref, wanted = random_rows()
    assert (kto(policy, ref + 1, wanted, ZERO) - kto(policy, ref, wanted, ZERO)).abs().min() > 1e-4


@given(st.floats(0.02, 0.98), st.floats(-5, 5))
def test_contradictory_labels_follow_the_majority(share, rho):
    """share p wanted: the mean loss is p - (2 p - 1) sigmoid(beta (rho - z0)), which falls in rho iff p > 1/2."""
    x = t(rho)
    mean = share * kto(x, t(0), YES, ZERO, beta=1.0) + (1 - share) * kto(x, t(0), NO, ZERO, beta=1.0)
    assert mean.item() == pytest.approx(share - (2 * share - 1) / (1 + math.exp(-rho)), abs=1e-12)


def test_dpo_keeps_the_odds_that_kto_gives_away():
    """Two answers, ref (.05, .95), 60 % for the first, beta 1: DPO's odds are (.05/.95) (.6/.4) = 0.0789."""
    odds = math.exp(math.log(0.05 / 0.95) + pair_margin(0.6, 1.0))
    assert odds == pytest.approx(0.0789, abs=5e-5)  # `prove kto` shows the policy that KTO reaches: above 0.999


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_balancing_weights_bring_the_ratio_in_range(wanted, unwanted):
    d, u = balancing_weights(wanted, unwanted)
    ratio = d * wanted / (u * unwanted)
    assert 1 - 1e-12 <= ratio <= 1.5 + 1e-12 and min(d, u) == 1
    if 1 <= wanted / unwanted <= 1.5:
        assert (d, u) == (1, 1)


def test_balancing_needs_both_kinds():
    with pytest.raises(ValueError, match="3 wanted and 0 unwanted"):
        balancing_weights(3, 0)


# -- composed losses ---------------------------------------------------------------------------------------------------


def test_composed_dpo_is_dpo():
    policy, ref, _ = random_rows()
    chosen, rejected = policy.chunk(2)
    ref_chosen, ref_rejected = ref.chunk(2)
    composed = HALOS["dpo"](beta=0.3)(chosen - ref_chosen, rejected - ref_rejected)
    direct = METHODS["dpo"].loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    torch.testing.assert_close(composed, direct, atol=1e-12, rtol=0)


def test_composed_kto_is_kto():
    policy, ref, wanted = random_rows()
    z0 = t(0.7)[0]
    weights: dict[str, Any] = {"beta": 0.3, "lambda_d": 1.33, "lambda_u": 0.9}
    direct = kto(policy, ref, wanted, z0, **weights)
    composed = HALOS["kto"](wanted, **weights)(policy - ref, z0)
    torch.testing.assert_close(composed, direct, atol=1e-12, rtol=0)
    torch.testing.assert_close(halo(policy, ref, wanted, z0, **weights), direct, atol=1e-12, rtol=0)


def test_composed_ppo_clip_is_the_clipped_surrogate():
    draw = torch.Generator().manual_seed(3)
    ratio = torch.rand(1000, generator=draw, dtype=torch.float64) * 3 + 1e-3
    advantage = torch.randn(1000, generator=draw, dtype=torch.float64)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    torch.testing.assert_close(HALOS["ppo_clip"](ratio)(advantage, 0.0), surrogate, atol=1e-12, rtol=0)
    grpo = METHODS["grpo"].loss(ratio.log()[:, None], torch.zeros(1000, 1).double(), advantage[:, None])
    torch.testing.assert_close(-grpo[:, 0], surrogate, atol=1e-12, rtol=0)


def test_values_by_hand():
    # z = beta (rho - z0) = 0.5 (3 - 1) = 1 if wanted, -1 if not; log sigmoid(1) = -log(1 + 1/e)
    def loss(label, value, **more):
        return halo(t(3), t(0), label, t(1)[0], beta=0.5, lambda_d=2.0, lambda_u=3.0, value=value, **more).item()

    assert loss(YES, "logsigmoid") == pytest.approx(2 * math.log(1 + math.exp(-1)), abs=1e-12)
    assert loss(NO, "logsigmoid") == pytest.approx(3 * math.log(1 + math.exp(1)), abs=1e-12)
    # gains 2^0.5 - 1, losses 4 times as bad
    powers = {"curvature": 0.5, "aversion": 4.0}
    assert loss(YES, "kahneman_tversky", **powers) == pytest.approx(-2 * (math.sqrt(2) - 1), abs=1e-12)
    assert loss(NO, "kahneman_tversky", **powers) == pytest.approx(3 * 4 * (math.sqrt(2) - 1), abs=1e-12)


@pytest.mark.parametrize("value", ["sigmoid", "logsigmoid", "kahneman_tversky"])
def test_value_functions_do_not_fall_and_are_concave_on_gains(value):
    """v(z) up to a constant is -loss of a wanted completion at beta = 1; its slope is finite everywhere, at 0 too."""
    z = (torch.arange(-300, 301, dtype=torch.float64) / 10).requires_grad_()
    v = -halo(z, torch.zeros_like(z), YES.expand(601), ZERO, beta=1.0, value=value)
    (slope,) = torch.autograd.grad(v.sum(), z)
    assert (slope > 0).all() and slope.max() <= 0.88 * 2.25 + 1e-12
    assert (slope[300:].diff() <= 1e-15).all()
    assert slope[300] == pytest.approx({"sigmoid": 0.25, "logsigmoid": 0.5, "kahneman_tversky": 0.88}[value])


def test_precision_is_that_of_the_log_probs():
    """float32 in, float32 out; and 1.33 is not rounded to float32 before it is used in float64."""
    x = torch.tensor([-3.0])
    for loss in (kto, halo):
        assert loss(x, x, YES, torch.tensor(0.0), lambda_d=1.33).dtype == torch.float32
    assert kto(t(-3), t(-3), YES, ZERO, lambda_d=1.33).item() == pytest.approx(0.665, abs=1e-15)
    assert halo(t(-3), t(-3), YES, ZERO, lambda_d=1.33).item() == pytest.approx(0.665, abs=1e-15)  # v - v(inf)
