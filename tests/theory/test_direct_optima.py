"""Where the direct losses end on a table of answers, against closed forms (spec 2.2, 3.2 to 3.15)."""

import math

import pytest
import torch

from fiducial.exact.divergences import f_optimum, ratio_bounds
from fiducial.exact.games import regularised_nash
from fiducial.exact.minimise import exact_minimise
from fiducial.exact.optima import (
    bradley_terry,
    ipo_optimum,
    moving_reference_optimum,
    pair_margin,
    psi_optimum,
    rlhf_optimum,
    spin_step,
)
from fiducial.exact.selection import best_of_n, bon_kl
from fiducial.methods import METHODS


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


REF, LAW = t(0.5, 0.3, 0.2), t(0.2, 0.5, 0.3)  # the pairs need not come from the reference
REWARDS = t(1, 0, -1)
CYCLE = t([0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5])  # intransitive


def expected_loss(name, ref, weight, **hparams):
    """sum_ij weight_ij loss(chosen i, rejected j), a function of the logits of a table with one prompt."""
    chosen, rejected = (weight > 0).nonzero(as_tuple=True)
    logref, loss = ref.log(), METHODS[name].loss

    def value(theta):
        logprobs = theta.log_softmax(-1)
        pair = (logprobs[chosen], logprobs[rejected], logref[chosen], logref[rejected])
        return (weight[chosen, rejected] * loss(*pair, **hparams)).sum()

    return value


def fit(name, ref, weight, start=None, **hparams):
    """The table [N] at which the expected loss is least."""
    loss = expected_loss(name, ref, weight, **hparams)
    return exact_minimise(loss, ref.log() if start is None else start).softmax(-1)


def pairs(preference, law=LAW):
    return law[:, None] * law[None, :] * preference


def near(found, goal, tolerance=1e-6):
    torch.testing.assert_close(found, goal, atol=tolerance, rtol=0)


# -- f-divergences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("family", ["reverse_kl", "forward_kl", "js", "alpha", "chi2_kl"])
def test_f_dpo_ends_at_the_optimum_under_its_divergence(family, beta):
    found = fit("f_dpo", REF, pairs(bradley_terry(REWARDS)), beta=beta, family=family, alpha=0.5)
    goal = f_optimum(REF, REWARDS, beta, family, 0.5).policy
    near(found, goal)
    low, high = ratio_bounds(2.0, beta, family, 0.5)
    assert low < float((found / REF).min()) and float((found / REF).max()) < high
    if family != "reverse_kl":
        assert float((found - rlhf_optimum(REF, REWARDS, beta)).abs().max()) > 0.01  # the families do differ


def test_f_dpo_at_fixture_a():
    """The specification's digits, beta = 1/2: forward KL, JS, alpha = 1/2, chi-PO."""
    for family, goal in (
        ("forward_kl", t(0.8408479255, 0.1156230725, 0.0435290020)),
        ("js", t(0.9681577853, 0.0293970797, 0.0024451349)),
        ("alpha", t(0.8762959234, 0.0973607744, 0.0263433022)),
        ("chi2_kl", t(0.7976323835, 0.1769930124, 0.0253746041)),
    ):
        near(fit("f_dpo", REF, pairs(bradley_terry(REWARDS)), beta=0.5, family=family, alpha=0.5), goal, 1e-8)


def test_chi_po_keeps_ratios_under_one_plus_spread_over_beta():
    """ref(best) = .01, R = 2, beta = .25: chi-PO stays below 1 + R/beta = 9, DPO ends at e^4 / Z = 52."""
    ref = t(0.01, 0.49, 0.5)
    found = fit("chi_po", ref, pairs(bradley_terry(REWARDS)), beta=0.25)
    near(found, f_optimum(ref, REWARDS, 0.25, "chi2_kl").policy)
    assert float((found / ref).max()) < 9 < 50 < float((rlhf_optimum(ref, REWARDS, 0.25) / ref).max())


# -- psi, ipo ----------------------------------------------------------------------------------------------------------


def fit_psi(preference, beta, psi):
    """psi_po on pairs that carry their preference, each in both orders."""
    chosen, rejected = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    logref, p = REF.log(), preference[chosen, rejected]

    def value(theta):
        logprobs = theta.log_softmax(-1)
        pair = (logprobs[chosen], logprobs[rejected], logref[chosen], logref[rejected])
        return (LAW[chosen] * LAW[rejected] * p * METHODS["psi_po"].loss(*pair, p, beta=beta, psi=psi)).sum()

    return exact_minimise(value, REF.log()).softmax(-1)


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_psi_po_ends_at_its_optimum(beta):
    for psi in ("identity", "logit"):
        near(fit_psi(CYCLE, beta, psi), psi_optimum(REF, CYCLE, LAW, beta, psi))
    near(fit_psi(bradley_terry(REWARDS), beta, "logit"), rlhf_optimum(REF, REWARDS, beta))
    near(fit_psi(CYCLE, beta, "identity"), fit("ipo", REF, pairs(CYCLE), beta=beta))


def test_ipo_ends_at_its_optimum():
    """Any preferences, pairs from any law, with pairs of an answer and itself or without; fixture B's digits."""
    near(fit("ipo", REF, pairs(CYCLE), beta=0.25), ipo_optimum(REF, CYCLE, LAW, 0.25))
    goal = t(0.5882808036, 0.1464052948, 0.2653139016)
    near(fit("ipo", REF, pairs(CYCLE, REF), beta=0.25), goal, 1e-8)
    near(fit("ipo", REF, pairs(CYCLE, REF) * (1 - torch.eye(3)), beta=0.25), goal, 1e-8)
    near(fit("ipo", REF, pairs(CYCLE), beta=1e4), REF, 1e-4)  # beta -> infinity: the reference
    best = int((CYCLE @ LAW).argmax())
    assert float(fit("ipo", REF, pairs(CYCLE), beta=0.005)[best]) > 1 - 1e-6


@pytest.mark.parametrize(("p", "beta"), [(0.8, 0.5), (0.3, 1.0), (1.0, 0.2)])
def test_one_contradictory_pair(p, beta):
    """ipo stops at h = (2 p - 1) / (2 beta), a hinge at the majority's side of 1 / beta (spec 3.8, 3.10)."""
    weight = t([0, p], [1 - p, 0])
    ref = t(0.3, 0.7)

    def margin(policy):
        return float((policy / ref).log().diff().neg())

    assert margin(fit("ipo", ref, weight, beta=beta)) == pytest.approx(pair_margin(p, beta, "ipo"), abs=1e-8)
    goal = pair_margin(p, beta, "hinge")
    loss = expected_loss("slic", ref, weight, beta=beta, with_reference=True)
    at = [float(loss(t(h, 0.0) + ref.log())) for h in (goal - 0.1, goal, goal + 0.1)]
    slack = 1e-12 if p in (0.0, 1.0) else 0.0  # a certain pair is content anywhere beyond
    assert at[1] < at[0] + slack and at[1] <= at[2] + 1e-12 and (p == 1.0 or at[1] < at[2])
    if p < 1:
        assert margin(fit("dpo", ref, weight, beta=beta)) == pytest.approx(pair_margin(p, beta), abs=1e-8)


# -- keeping the chosen likely -----------------------------------------------------------------------------------------


THREE = t(0.3, 0.3, 0.4)


def split(p):
    """The first of three answers beats the second with probability p."""
    return t([0, p, 0], [1 - p, 0, 0], [0, 0, 0])


def test_likelihood_takes_a_certain_pair_to_one():
    """From pi = (.05, 1e-5, .95) DPO has no slope left at beta 2; with the likelihood pi(y_w) goes to 1 (spec 3.2)."""
    one, start = torch.ones(1, dtype=torch.float64), t(0.05, 1e-5, 0.94999).log()
    ends = []
    for name, extra in (("dpo", ()), ("dpo_nll", (one,))):
        theta = start.clone().requires_grad_()
        for _ in range(1000):
            logprobs = theta.log_softmax(-1)
            pair = (logprobs[:1], logprobs[1:2], THREE[:1].log(), THREE[1:2].log())
            (slope,) = torch.autograd.grad(METHODS[name].loss(*pair, *extra, beta=2.0).sum(), theta)
            theta = (theta - 2 * slope).detach().requires_grad_()
        ends.append(float(theta.detach().softmax(-1)[0]))
    assert ends[0] == pytest.approx(0.05, abs=1e-3) and ends[1] > 0.999


@pytest.mark.parametrize("p", [0.8, 0.999])
def test_conserving_the_mass_of_a_pair(p):
    """C3DPO "id" with a large lam, beta = 1: pi_w / pi_l = p / (1 - p) and pi_w + pi_l = .6, so pi_w = .6 p; the third
    answer keeps its .4. As p -> 1 the chosen one gets all of ref_w + ref_l (spec 3.6)."""
    found = fit("c3dpo", THREE, split(p), lam=1e4, phi="id", beta=1.0)
    near(found, t(0.6 * p, 0.6 * (1 - p), 0.4), 1e-4)


def test_splitting_the_margin_evenly():
    """C3DPO "log" with a large lam: rho_w = h / 2 = -rho_l where both preferences occur (spec 3.6)."""
    found = fit("c3dpo", THREE, split(0.8), lam=1e3, beta=1.0)
    rho = (found / THREE).log()
    assert float(rho[0]) == pytest.approx(math.log(4) / 2, abs=1e-3)  # h = logit(.8) = log 4
    assert float(rho[1]) == pytest.approx(-math.log(4) / 2, abs=1e-3)


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_spin_round_is_a_geometric_step():
    """A round ends at pi (data / pi)^(1/beta) / Z: the log-ratio shrinks by |1 - 1/beta|, at once for beta = 1."""
    data = t(0.1, 0.6, 0.3)
    for beta in (0.6, 1.0, 2.0):
        policy = REF
        for _ in range(3):
            found = fit("spin", policy, data[:, None] * policy[None, :], beta=beta)
            near(found, spin_step(policy, data, beta))
            gaps = [(data / x).log() for x in (policy, found)]
            before, after = (float((gap - gap.mean()).norm()) for gap in gaps)
            assert after == pytest.approx(abs(1 - 1 / beta) * before, abs=1e-5)
            policy = found
    near(fit("spin", REF, data[:, None] * REF[None, :], beta=1.0), data)


def test_spin_stands_still_at_the_data():
    data = t(0.1, 0.6, 0.3)
    theta = data.log().requires_grad_()
    value = expected_loss("spin", data, data[:, None] * data[None, :], beta=0.7)(theta)
    (slope,) = torch.autograd.grad(value, theta)
    assert float(value.detach()) == pytest.approx(math.log(2)) and float(slope.abs().max()) < 1e-15


def test_tr_dpo_spends_beta_once_a_round():
    """A move of the reference's logits by `share` after each exact solve: ref exp((1 + (n - 1) share) r / beta) / Z."""
    for share in (1.0, 0.5):
        ref = policy = REF
        for n in range(1, 4):
            policy = fit("tr_dpo", ref, pairs(bradley_terry(REWARDS)), start=policy.log(), beta=2.0)
            near(policy, moving_reference_optimum(REF, REWARDS, 2.0, n, share))
            ref = (share * policy.log() + (1 - share) * ref.log()).softmax(-1)


def test_the_reference_schedules():
    """tr_dpo moves by alpha every sync_steps; online_direct leaves the reference unless told, then moves by rounds."""
    moves = [METHODS["tr_dpo"].share_moved("ref", s, 9, {"alpha": 0.4, "sync_steps": 3}) for s in range(9)]
    assert moves == [0, 0, 0, 0.4, 0, 0, 0.4, 0, 0]
    online = METHODS["online_direct"]
    fixed = online.settings({})
    assert not any(online.share_moved("ref", s, 9, fixed) for s in range(9))
    hard = online.settings({"ref_update": "hard"})
    assert [s for s in range(9) if online.share_moved("ref", s, 9, hard) == 1] == [3, 6]
    spin = METHODS["spin"]
    assert [s for s in range(8) if spin.share_moved("ref", s, 8, {"iterations": 2}) == 1] == [4]


# -- own samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_online_ipo_ends_at_the_regularised_nash_policy(beta):
    """Pairs of the policy's own, refitted exactly and damped: pi = ref exp(P(y beats pi) / beta) / Z (spec 3.9)."""
    policy = REF
    for _ in range(60):
        target = fit("online_ipo", REF, pairs(CYCLE, policy), beta=beta)
        policy = (0.5 * policy.log() + 0.5 * target.log()).softmax(-1)
    near(policy, regularised_nash(CYCLE, REF, beta))


def test_labels_drawn_from_bradley_terry_leave_dpos_optimum():
    """`random_two_labelled`, counted: i is chosen over j in a share 2 pi_i pi_j sigmoid(r_i - r_j)."""
    online, counts = METHODS["online_direct"], torch.zeros(3, 3, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    hparams = online.settings({"pair_rule": "random_two_labelled"})
    rounds = 4000
    samples = torch.multinomial(REF, rounds * 4, replacement=True, generator=draw).view(rounds, 4)
    draws = torch.rand(rounds, 5, generator=draw)
    for answers, numbers in zip(samples, draws, strict=True):
        tensors = {"rewards": REWARDS[answers], "draws": numbers}
        for choice in online.make_choices(tensors, hparams):
            good, bad = (int(answers[i]) for i in choice.members)
            counts[good, bad] += choice.weight / rounds
    goal = 2 * pairs(bradley_terry(REWARDS), REF)
    error = (goal * (1 - goal) / rounds).sqrt()
    assert ((counts - goal).abs() < 4 * error).all()
    found = fit("online_direct", REF, goal, beta=0.5)  # what the counts tend to
    near(found, rlhf_optimum(REF, REWARDS, 0.5))


def kept_law(policy, rewards, n, rounds, seed=0, **hparams):
    """How often rejection sampling keeps each answer, over `rounds` prompts of n samples: [A]."""
    method = METHODS["rejection_sampling"]
    draw = torch.Generator().manual_seed(seed)
    samples = torch.multinomial(policy, rounds * n, replacement=True, generator=draw).view(rounds, n)
    counts = torch.zeros_like(policy)
    for answers in samples:
        for choice in method.make_choices({"rewards": rewards[answers]}, method.settings(hparams)):
            counts[answers[choice.members[0]]] += choice.weight / rounds
    return counts


def test_rejection_sampling_keeps_the_best_of_n():
    """The law of what is imitated is F(y)^N - F(y-)^N, within 4 standard errors; with N = 1 it is the policy's."""
    for n in (1, 3):
        goal = best_of_n(REF, REWARDS, n)
        found = kept_law(REF, REWARDS, n, 3000)
        assert ((found - goal).abs() < 4 * (goal * (1 - goal) / 3000).sqrt() + 1e-12).all()


def test_iterated_rejection_sampling_converges_to_the_best():
    """Imitation of the best of N is exact on a table (sft's optimum): the reward never falls, the KL bound holds."""
    policy = REF
    for _ in range(8):
        better = best_of_n(policy, REWARDS, 4)
        assert float(better @ REWARDS) >= float(policy @ REWARDS) - 1e-12
        assert float((better * (better / policy).log()).nansum()) <= bon_kl(4) + 1e-12
        policy = better
    assert float(policy[0]) > 1 - 1e-9


def test_verified_answers_all_train():
    """keep = N and min_reward 1: every right completion, none of a prompt without one (spec 3.15)."""
    method = METHODS["rejection_sampling"]
    hparams = method.settings({"keep": 4, "min_reward": 1.0})
    kept = method.make_choices({"rewards": t(1, 0, 1, 0)}, hparams)
    assert sorted(choice.members for choice in kept) == [(0,), (2,)]
    assert method.make_choices({"rewards": t(0, 0, 0, 0)}, hparams) == []
    assert len(method.make_choices({"rewards": t(-3, -2)}, method.settings({}))) == 1  # by default whatever is best
