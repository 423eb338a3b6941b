"""Closed forms of preference models and of the policies that pairs lead to (spec 1.3, 1.8, 2.2, 3, 4)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from fiducial.exact.minimise import exact_minimise
from fiducial.exact.optima import (
    bradley_terry,
    bradley_terry_fit,
    davidson,
    dpo_optimum,
    idealised_ranking_accuracy,
    ipo_optimum,
    moving_reference_optimum,
    pair_margin,
    psi_optimum,
    rlhf_optimum,
    smoothed_preference,
    spin_step,
    win_rate,
)

D = torch.float64
REF = torch.tensor([0.5, 0.3, 0.2], dtype=D)
CYCLE = torch.tensor([[1 / 2, 2 / 3, 1 / 3], [1 / 3, 1 / 2, 2 / 3], [2 / 3, 1 / 3, 1 / 2]], dtype=D)
UNIFORM = torch.full((3,), 1 / 3, dtype=D)


def near(found, expected, atol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=D), atol=atol, rtol=0)


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def margins(theta, ref):
    ratio = theta.log_softmax(-1) - ref.log()
    return ratio[:, None] - ratio[None, :]


# -- preference models -------------------------------------------------------------------------------------------------

rewards_ = st.lists(st.floats(-8, 8), min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=D))


@given(rewards_, st.floats(-100, 100))
@settings(max_examples=60, deadline=None)
def test_bradley_terry_is_a_consistent_order(r, shift):
    """Complement, shift, strong stochastic transitivity, product rule (spec 1.3)."""
    P = bradley_terry(r)
    near(P + P.T, torch.ones(3, 3))
    near(bradley_terry(r + shift), P, 1e-12)
    a, b, c = (int(i) for i in r.argsort(descending=True))
    assert P[a, c] >= max(float(P[a, b]), float(P[b, c])) - 1e-15
    odds = P / P.T
    assert float(odds[0, 1] * odds[1, 2]) == pytest.approx(float(odds[0, 2]), rel=1e-9)
    assert float(P[0, 1]) == pytest.approx(float(r[0].exp() / (r[0].exp() + r[1].exp())), rel=1e-12)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 10))
@settings(max_examples=60, deadline=None)
def test_davidson_ties(r1, r2, nu):
    """Sums to 1; Bradley-Terry given that it is no tie; most ties, nu / (2 + nu), between equals; none with nu = 0."""
    win, loss, tie = davidson(torch.tensor(r1, dtype=D), torch.tensor(r2, dtype=D), nu).tolist()
    assert win + loss + tie == pytest.approx(1)
    assert win / (win + loss) == pytest.approx(1 / (1 + math.exp(r2 - r1)), rel=1e-9)
    assert tie <= nu / (2 + nu) + 1e-12
    z = math.exp(r1) + math.exp(r2) + nu * math.exp((r1 + r2) / 2)
    assert tie == pytest.approx(nu * math.exp((r1 + r2) / 2) / z, abs=1e-12)
    near(davidson(torch.tensor(r1, dtype=D), torch.tensor(r1, dtype=D), nu)[2], nu / (2 + nu))


def test_davidson_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="nu"):
        davidson(torch.zeros(1), torch.zeros(1), -0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_of_bradley_terry_finds_its_rewards_whatever_the_law(seed):
    r, law = normals(seed, 5), normals(seed + 9, 5).softmax(-1)
    near(bradley_terry_fit(bradley_terry(r), law), r - r.mean(), 1e-8)


def test_a_cycle_has_a_constant_fit_and_a_loss_of_log_two():
    """The general model reaches the entropy H(2/3) = 0.636514."""
    fit = bradley_terry_fit(CYCLE, UNIFORM)
    near(fit, [0, 0, 0], 1e-9)
    general = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert general == pytest.approx(0.636514, abs=1e-6)
    off = ~torch.eye(3, dtype=torch.bool)
    loss = -(CYCLE * logsigmoid(fit[:, None] - fit[None, :]))[off].sum() / 3
    assert float(loss) == pytest.approx(math.log(2), abs=1e-12)


def test_a_fit_that_would_be_infinite_is_refused():
    certain = torch.tensor([[0.5, 0.4, 1.0], [0.6, 0.5, 1.0], [0.0, 0.0, 0.5]], dtype=D)  # the third never wins
    split = torch.full((4, 4), 0.5, dtype=D)
    split[:2, 2:], split[2:, :2] = 1.0, 0.0  # two of them always beat the other two
    for P, law in ((certain, UNIFORM), (split, torch.full((4,), 0.25, dtype=D)), (CYCLE, torch.tensor([0.5, 0.5, 0]))):
        with pytest.raises(ValueError, match="Bradley-Terry fit is finite only"):
            bradley_terry_fit(P, law)


def test_minimising_says_when_there_is_no_minimum():
    near(exact_minimise(lambda x: (x[0] - 1) ** 4 + (x[1] + 2) ** 2 + 0 * x[2], torch.zeros(3)), [1, -2, 0], 1e-2)
    theta = exact_minimise(lambda x: -(REF * x.log_softmax(-1)).sum(), torch.zeros(3))
    near(theta.softmax(-1), REF, 1e-10)
    with pytest.raises(RuntimeError, match="no minimum within reach"):
        exact_minimise(lambda x: -x.sum(), torch.zeros(2))


# -- DPO, its labels and its relatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_dpo_on_any_preferences_is_the_bt_fit(beta):
    """The loss over enumerated pairs, minimised: rewards or a cycle, any law of pairs (section 3.1, 1e-6)."""
    for P, seed in ((bradley_terry(normals(0, 3)), 1), (CYCLE * 0.9 + 0.05, 2)):
        law = normals(seed, 3).softmax(-1)

        def loss(theta, P=P, law=law):
            return -(law[:, None] * law * P * logsigmoid(beta * margins(theta, REF))).sum()

        near(exact_minimise(loss, REF.log()).softmax(-1), dpo_optimum(REF, P, law, beta), 1e-6)
    r = normals(3, 3)
    near(dpo_optimum(REF, bradley_terry(r), UNIFORM, beta), rlhf_optimum(REF, r, beta), 1e-8)
    near(
        dpo_optimum(REF, bradley_terry(r), torch.tensor([0.8, 0.1, 0.1], dtype=D), beta),
        rlhf_optimum(REF, r, beta),
        1e-7,
    )


@pytest.mark.parametrize("epsilon", [0.1, 0.3, 0.45])
def test_robust_dpo_on_noisy_labels_is_dpo_on_clean_ones(epsilon):
    """Conservative smoothing acts as noisy labels; the robust loss, minimised on noisy labels, undoes the noise."""
    r, beta = normals(4, 3), 0.5
    clean = bradley_terry(r)
    noisy = smoothed_preference(clean, epsilon)
    near(noisy, (1 - epsilon) * clean + epsilon * clean.T)

    def smoothed(theta, sign, scale, P):
        h = beta * margins(theta, REF)
        both = (1 - epsilon) * logsigmoid(h) + sign * epsilon * logsigmoid(-h)
        return -(P * both).sum() / scale

    found = exact_minimise(lambda theta: smoothed(theta, 1, 1, clean), REF.log()).softmax(-1)
    near(found, dpo_optimum(REF, noisy, UNIFORM, beta), 1e-6)
    found = exact_minimise(lambda theta: smoothed(theta, -1, 1 - 2 * epsilon, noisy), REF.log()).softmax(-1)
    near(found, rlhf_optimum(REF, r, beta), 1e-6)
    near(smoothed_preference(noisy, epsilon, "robust"), clean)
    near(smoothed_preference(clean, 0.499999), torch.full((3, 3), 0.5), 1e-5)
    for bad, kind, message in ((0.5, "robust", "0.5"), (0.1, "soft", "conservative")):
        with pytest.raises(ValueError, match=message):
            smoothed_preference(clean, bad, kind)


@pytest.mark.parametrize(("p", "beta"), [(0.6, 1.0), (0.8, 0.5), (0.3, 2.0)])
def test_margin_of_a_contradictory_pair(p, beta):
    """Each loss minimised over h on a fine grid; hinge: slope -+beta below and above its corner at +-1 / beta."""
    h = torch.linspace(-12, 12, 240_001, dtype=D)
    losses = {
        "dpo": lambda h: -logsigmoid(beta * h),
        "ipo": lambda h: (h - 1 / (2 * beta)).square(),
        "hinge": lambda h: (1 - beta * h).clamp(min=0),
    }
    for name, loss in losses.items():
        best = h[(p * loss(h) + (1 - p) * loss(-h)).argmin()]
        assert float(best) == pytest.approx(pair_margin(p, beta, name), abs=2e-4)


def test_margins_of_certain_and_even_pairs():
    assert pair_margin(1.0, 0.1) == math.inf and pair_margin(0.0, 0.1) == -math.inf
    assert pair_margin(1.0, 0.1, "ipo") == pytest.approx(5.0)  # 1 / (2 beta)
    assert pair_margin(0.5, 0.1, "hinge") == pair_margin(0.5, 0.1) == 0.0
    # ref odds .05 / .95 times (.6 / .4)^1: the minority stays on top.
    assert 0.05 / 0.95 * math.exp(pair_margin(0.6, 1.0)) == pytest.approx(0.0789, abs=1e-4)
    with pytest.raises(ValueError, match="'dpo', 'ipo' or 'hinge'"):
        pair_margin(0.6, 1.0, "kto")


def test_unseen_responses_are_free():
    """4 responses, one pair with p = .7: the loss depends on pi_1 / pi_2 only, and the RLHF solution is a minimiser."""
    ref, beta = torch.full((4,), 0.25, dtype=D), 1.0
    h = pair_margin(0.7, beta)
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    rlhf = rlhf_optimum(ref, torch.tensor([h, 0.0, 0.0, 0.0], dtype=D), beta)
    for policy in (
        rlhf,
        torch.tensor([0.07, 0.03, 0.8, 0.1], dtype=D),
        torch.tensor([0.63, 0.27, 0.05, 0.05], dtype=D),
    ):
        z = float((policy[0] / policy[1]).log())
        assert 0.7 * math.log1p(math.exp(-z)) + 0.3 * math.log1p(math.exp(z)) == pytest.approx(entropy, abs=1e-12)


def test_controlled_dpo_conserves_what_it_controls():
    """C3DPO (section 3.6) with a large weight, p = .7 on a pair of ref (.3, .3): by probability the pair keeps its mass
    .6, in odds 7 : 3; by log-probability the chosen one rises by what the rejected one falls, h / 2 = log(7/3) / 2."""
    ref = torch.tensor([0.3, 0.3, 0.4], dtype=D)

    def loss(theta, measure):
        lp = theta.log_softmax(-1)
        h = lp[0] - lp[1]  # the reference's terms cancel
        moved = measure(lp[:2]).sum() - measure(ref[:2].log()).sum()
        return -0.7 * logsigmoid(h) - 0.3 * logsigmoid(-h) + 1e4 * moved.square()

    mass = exact_minimise(lambda theta: loss(theta, torch.exp), ref.log()).softmax(-1)
    near(mass, [0.42, 0.18, 0.4], 1e-6)
    even = exact_minimise(lambda theta: loss(theta, lambda x: x), ref.log()).softmax(-1)
    near(even[:2], [0.3 * math.sqrt(7 / 3), 0.3 * math.sqrt(3 / 7)], 1e-6)


# -- psi-PO and IPO ----------------------------------------------------------------------------------------------------


def test_psi_po_joins_rlhf_and_ipo():
    """logit on Bradley-Terry is RLHF: s = r - E r; identity is IPO; and neither depends on a shift of s."""
    r, law, beta = normals(5, 3), normals(6, 3).softmax(-1), 0.4
    P = bradley_terry(r)
    near(psi_optimum(REF, P, law, beta, "logit"), rlhf_optimum(REF, r, beta))
    near(psi_optimum(REF, CYCLE, law, beta), ipo_optimum(REF, CYCLE, law, beta), 1e-15)
    near(psi_optimum(REF, P, law, beta, lambda p: 2 * p - 1), ipo_optimum(REF, P, law, beta / 2))
    # log, by hand for two: s_1 = log(p12) l2 + log(1/2) l1.
    two = bradley_terry(torch.tensor([1.0, 0.0], dtype=D))
    ref, half = torch.tensor([0.5, 0.5], dtype=D), torch.tensor([0.5, 0.5], dtype=D)
    odds = math.exp(0.5 * (math.log(float(two[0, 1])) - math.log(float(two[1, 0]))) / beta)
    near(psi_optimum(ref, two, half, beta, "log")[0], odds / (1 + odds))


def test_psi_po_says_where_the_logit_breaks():
    certain = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=D)
    half = torch.tensor([0.5, 0.5], dtype=D)
    for psi in ("logit", "log"):
        with pytest.raises(ValueError, match="identity"):
            psi_optimum(half, certain, half, 0.1, psi)
    with pytest.raises(ValueError, match="psi must be one of"):
        psi_optimum(half, certain, half, 0.1, "square")
    near(
        psi_optimum(half, certain, torch.tensor([1.0, 0.0], dtype=D), 0.5, lambda p: p.log().clamp(min=-9)),
        [1, 0],
        1e-7,
    )
    for beta in (0.05, 0.5):  # identity keeps s in [0, 1]
        ratio = psi_optimum(half, certain, half, beta) / half
        assert float(ratio.max()) <= math.exp(1 / beta)


@pytest.mark.parametrize("same", [True, False])
def test_ipo_on_intransitive_pairs(same):
    """The squared loss over i.i.d. pairs, with or without pairs of equals, minimised: ref exp(P law / beta) / Z."""
    law, beta = normals(7, 3).softmax(-1), 0.3
    weight = law[:, None] * law * CYCLE
    if not same:
        weight = weight - weight.diag().diag()
    found = exact_minimise(lambda x: (weight * (margins(x, REF) - 1 / (2 * beta)).square()).sum(), REF.log())
    near(found.softmax(-1), ipo_optimum(REF, CYCLE, law, beta), 1e-6)
    near(ipo_optimum(REF, CYCLE, law, 1e8), REF, 1e-7)
    best = (CYCLE @ law).argmax()
    assert float(ipo_optimum(REF, CYCLE, law, 1e-4)[best]) > 1 - 1e-9


# -- rounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.4, 0.6, 1.0, 2.0])
def test_spin(beta):
    """The logistic loss of data against the policy, minimised, is the closed form; its rate is |1 - 1 / beta|."""
    data, policy = torch.tensor([0.6, 0.3, 0.1], dtype=D), torch.tensor([0.2, 0.3, 0.5], dtype=D)

    def loss(theta):
        return -(data[:, None] * policy * logsigmoid(beta * margins(theta, policy))).sum()

    near(exact_minimise(loss, policy.log()).softmax(-1), spin_step(policy, data, beta), 1e-6)

    def gap(pi):
        centred = (data / pi).log()
        return centred - centred.mean()

    near(gap(spin_step(policy, data, beta)), (1 - 1 / beta) * gap(policy), 1e-12)
    near(spin_step(data, data, beta), data)
    if beta == 1.0:
        near(spin_step(policy, data, beta), data)
    for _ in range(60):
        policy = spin_step(policy, data, beta)
    assert (float(gap(policy).abs().max()) < 1e-4) == (beta > 0.5)


def test_moving_references():
    """Rounds played out: solve, then move the logits of the reference towards the solution."""
    r, beta = normals(8, 3), 0.7
    for share in (1.0, 0.6, 0.0):
        ref, policy = REF, REF
        for n in range(1, 5):
            policy = rlhf_optimum(ref, r, beta)
            near(moving_reference_optimum(REF, r, beta, n, share), policy)
            ref = (share * policy.log() + (1 - share) * ref.log()).softmax(-1)
    near(moving_reference_optimum(REF, r, beta, 3), rlhf_optimum(REF, r, beta / 3))
    near(moving_reference_optimum(REF, r, beta, 0), REF)


# -- diagnostics -------------------------------------------------------------------------------------------------------


def test_idealised_ranking_accuracy_is_that_of_exact_dpo_on_disjoint_pairs():
    """Four prompts with one pair each; limits in beta; a tie counts half; lengths divide the reference only."""
    ref = torch.tensor([[0.2, 0.8], [0.45, 0.55], [0.7, 0.3], [0.02, 0.98]], dtype=D)
    agreement = torch.tensor([0.7, 0.6, 0.9, 0.55], dtype=D)
    chosen, rejected = ref.log().T
    accuracies = []
    for beta in (0.01, 0.05, 0.2, 1.0, 5.0, 100.0):
        policy = rlhf_optimum(ref, torch.stack([torch.logit(agreement), torch.zeros(4, dtype=D)], 1), beta)
        accuracies.append(idealised_ranking_accuracy(chosen, rejected, agreement, beta))
        assert accuracies[-1] == float((policy[:, 0] > policy[:, 1]).double().mean())
    assert accuracies[0] == 1.0 and accuracies[-1] == 0.25 == float((chosen > rejected).double().mean())
    assert accuracies == sorted(accuracies, reverse=True) and 0.5 in accuracies
    even = torch.tensor([0.5], dtype=D)
    assert idealised_ranking_accuracy(even.log(), even.log(), even, 1.0) == 0.5
    # -8 / 4 + 0 against -3 / 1: per token the longer one leads, whole it trails.
    pair = torch.tensor([-8.0], dtype=D), torch.tensor([-3.0], dtype=D)
    lengths = torch.tensor([4]), torch.tensor([1])
    assert idealised_ranking_accuracy(*pair, even, 1.0) == 0.0
    assert idealised_ranking_accuracy(*pair, even, 1.0, *lengths) == 1.0


def test_win_rates():
    """(1/2, 1/2, 0) against the third option of the cycle: (1/3 + 2/3) / 2; complements; 1/2 against itself."""
    pi, third = torch.tensor([0.5, 0.5, 0.0], dtype=D), torch.tensor([0.0, 0.0, 1.0], dtype=D)
    assert float(win_rate(pi, CYCLE, third)) == pytest.approx(0.5)
    assert float(win_rate(REF, CYCLE, third) + win_rate(third, CYCLE, REF)) == pytest.approx(1)
    assert float(win_rate(REF, CYCLE, REF)) == pytest.approx(0.5)
    assert float(win_rate(REF, CYCLE, third)) == pytest.approx(0.5 / 3 + 0.3 * 2 / 3 + 0.2 / 2)
