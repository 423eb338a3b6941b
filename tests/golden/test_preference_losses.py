"""Losses on pairs against numbers worked out by hand. The working is in the comments."""

import json
import math

import pytest
import torch

from fiducial.methods import METHODS
from fiducial.methods.f_dpo import link
from fiducial.methods.ipl import implied_rewards, next_trained
from fiducial.methods.token_dpo import prefix_sums, token_rewards


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


# rho_w = (.5, -1, 1), rho_l = (-1, 1, .5), so h = (1.5, -2, .5); without a reference the margins are (1, -3, 0)
CHOSEN, REJECTED = t(-10, -12, -8), t(-11, -9, -8)
PAIRS = (CHOSEN, REJECTED, t(-10.5, -11, -9), t(-10, -10, -8.5))
RHO_W, RHO_L, H = (0.5, -1.0, 1.0), (-1.0, 1.0, 0.5), (1.5, -2.0, 0.5)
LENGTHS = (t(5, 6, 4), t(2, 3, 8))
NAMES = ("chosen_logprobs", "rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs")
NAMED: dict[str, torch.Tensor] = dict(
    zip((*NAMES, "chosen_lengths", "rejected_lengths"), (*PAIRS, *LENGTHS), strict=True)
)


def loss(name, *tensors, **options):
    return METHODS[name].loss(*(tensors or PAIRS), **options)


def close(found, *expected, tolerance=1e-10):
    torch.testing.assert_close(found, t(*expected), atol=tolerance, rtol=0)


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("dpo", {}, (0.6209570478, 0.7981388694, 0.6684596480)),
        ("ipo", {}, (12.25, 49, 20.25)),  # (h - 5)^2
        ("dpop", {}, (0.4932489460, 15.6000001679, 0.6209570478)),  # only the second has lost: h - 50
        ("f_dpo", {"family": "reverse_kl"}, (0.6209570478, 0.7981388694, 0.6684596480)),
        ("f_dpo", {"family": "forward_kl"}, (0.5931236612, 0.8175569522, 0.6812858109)),
        ("f_dpo", {"family": "js"}, (0.6520679759, 0.7443966601, 0.6851387423)),
        ("f_dpo", {"family": "chi2_kl"}, (0.5637404542, 0.9341405625, 0.6177453974)),
        ("chi_po", {"beta": 0.1}, (0.5637404542, 0.9341405625, 0.6177453974)),
        ("slic", {"with_reference": True}, (0.85, 1.2, 0.95)),  # 1 - h / 10
        ("spin", {}, (0.6209570478, 0.7981388694, 0.6684596480)),
        ("tr_dpo", {}, (0.6209570478, 0.7981388694, 0.6684596480)),
        ("online_direct", {}, (0.6209570478, 0.7981388694, 0.6684596480)),
        ("online_direct", {"loss": "ipo"}, (12.25, 49, 20.25)),
        ("online_direct", {"loss": "hinge"}, (0.85, 1.2, 0.95)),
        ("online_ipo", {}, (12.25, 49, 20.25)),
        ("tr_ipo", {}, (12.25, 49, 20.25)),
    ],
)
def test_fixture(name, options, expected):
    """Fixture C of the specification, to its ten digits."""
    close(loss(name, **options), *expected)


def test_dpo_per_token():
    # h = rho_w / |y_w| - rho_l / |y_l| = .1 + .5, -1/6 - 1/3, .25 - .0625
    close(loss("dpo", *PAIRS, *LENGTHS, length_average=True), *(softplus(-0.1 * h) for h in (0.6, -0.5, 0.1875)))
    free = loss("dpo", CHOSEN, REJECTED, gamma_ref=0.0)  # no reference is handed in
    close(free, *(softplus(-0.1 * h) for h in (1, -3, 0)))


def test_spin_losses():
    close(loss("spin", loss="hinge", beta=1.0), 0, 3, 0.5)  # max(0, 1 - h)
    close(loss("spin", loss="linear", beta=2.0), -3, 4, -1)  # -2 h


def test_dpo_nll():
    # DPO + alpha |log pi(y_w)| / |y_w| with 10/5, 12/6, 8/4 = 2 each
    expected = [softplus(-0.1 * h) for h in H]
    close(loss("dpo_nll", *PAIRS, LENGTHS[0]), *(x + 2 for x in expected))
    close(loss("dpo_nll", *PAIRS, LENGTHS[0], alpha=0.5), *(x + 1 for x in expected))
    close(loss("llama3_loop", *PAIRS, LENGTHS[0]), *(x + 0.4 for x in expected))  # 0.2 x 2


def test_dpop_outside_beta():
    # the second pair: -log sigmoid(.3 x -2 - 50) = log(1 + e^50.6); the others have no penalty
    close(loss("dpop", penalty_inside_beta=False), softplus(-0.45), softplus(50.6), softplus(-0.15))
    inside = loss("dpop", lam=4.0)
    close(inside, softplus(-0.45), softplus(0.3 * 6), softplus(-0.15))  # .3 (-2 - 4 x 1)
    close(inside, *loss("dpop", lam=0.3 * 4.0, penalty_inside_beta=False).tolist())  # the two differ by lam -> beta lam
    found = METHODS["dpop"].call_measures(NAMED, {"lam": 4.0})
    close(found["dpop/penalty"], 0, 4, 0)
    close(found["dpop/active_frac"], 0, 1, 0)


def test_f_dpo_alpha_family():
    # g(rho) = (1 - e^(-rho/2)) / (1/2): g(.5) = 2 (1 - .7788007831), g(-1) = 2 (1 - 1.6487212707)
    good, bad = 2 * (1 - math.exp(-0.25)), 2 * (1 - math.exp(0.5))
    assert float(loss("f_dpo", family="alpha")[0]) == pytest.approx(softplus(-0.1 * (good - bad)), abs=1e-12)


def test_f_dpo_logs_its_own_rewards():
    hparams = METHODS["f_dpo"].settings({"family": "forward_kl", "beta": 0.2})
    found = METHODS["f_dpo"].call_measures(NAMED, hparams)
    close(found["rewards/chosen"], *(-0.2 * math.exp(-rho) for rho in RHO_W))
    close(found["rewards/rejected"], *(-0.2 * math.exp(-rho) for rho in RHO_L))
    tensors = {**NAMED, "rejected_logprobs": t(-60, -50, -8)}  # -rho_l = 50, 40, -.5
    close(METHODS["f_dpo"].call_measures(tensors, hparams)["clamp_frac"], 1, 0, 0)


def test_chi_po_clips():
    # phi(rho) = e^rho + rho: margins 4.0149, -5.0856... at beta 1; clipped to [-1, 1] by r_max = .5
    phi = lambda rho: math.exp(rho) + rho  # noqa: E731
    margins = [phi(w) - phi(r) for w, r in zip(RHO_W, RHO_L, strict=True)]
    close(loss("chi_po", beta=1.0, r_max=0.5), *(softplus(-max(-1, min(1, m))) for m in margins))
    hparams = {"beta": 1.0, "r_max": 1.5}
    found = METHODS["chi_po"].call_measures(NAMED, hparams)
    close(found["clip_frac"], *(float(abs(m) > 3) for m in margins))
    close(found["rewards/chosen"], *(phi(rho) for rho in RHO_W))
    assert METHODS["chi_po"].call_measures(NAMED, {"beta": 1.0, "r_max": None})["clip_frac"].sum() == 0
    far = {**NAMED, "chosen_logprobs": t(-10, 10, 12)}  # rho_w = .5, 21, 21
    close(METHODS["chi_po"].call_measures(far, hparams)["clamp_frac"], 0, 1, 1)


def test_c3dpo():
    # log: K = rho_w + rho_l = -.5, 0, 1.5
    base = [softplus(-0.1 * h) for h in H]
    close(loss("c3dpo", lam=2.0), *(x + 2 * k**2 for x, k in zip(base, (-0.5, 0, 1.5), strict=True)))
    close(loss("c3dpo", lam=2.0, norm="l1"), *(x + 2 * abs(k) for x, k in zip(base, (-0.5, 0, 1.5), strict=True)))
    # per token: .5/5 - 1/2, -1/6 + 1/3, 1/4 + 1/16
    per_token = (-0.4, 1 / 6, 0.3125)
    found = loss("c3dpo", *PAIRS, *LENGTHS, lam=1.0, norm="l1", length_average=True)
    close(found, *(x + abs(k) for x, k in zip(base, per_token, strict=True)))


def test_c3dpo_of_probabilities():
    # pi: .5 and .2, ref: .4 and .4, K = .7 - .8; h = log(.5/.4) - log(.2/.4) = log 2.5
    pair = [t(p).log() for p in (0.5, 0.2, 0.4, 0.4)]
    close(loss("c3dpo", *pair, lam=3.0, phi="id", beta=1.0), softplus(-math.log(2.5)) + 3 * 0.01)
    # per token of completions of 2 and 1 tokens: sqrt(.5) + .2 - sqrt(.4) - .4
    k = math.sqrt(0.5) + 0.2 - math.sqrt(0.4) - 0.4
    options = {"lam": 1.0, "phi": "id", "norm": "l1", "length_average": True, "beta": 1.0}
    close(loss("c3dpo", *pair, t(2), t(1), **options), softplus(-math.log(2.5)) + abs(k))
    found = loss("c3dpo", *(x.float() for x in pair), lam=1.0, phi="id")
    assert found.dtype == torch.float32


def test_ipo_options():
    # per token: h = .6, -.5, .1875 (as above), target 1 / (2 x 2)
    close(loss("ipo", *PAIRS, *LENGTHS, beta=2.0, length_average=True), 0.1225, 0.5625, 0.00390625)
    close(loss("ipo", beta=2.0, scaled=True), *(4 * (h - 0.25) ** 2 for h in H))


def test_psi_po():
    # identity: (h - (2 p - 1) / (2 beta))^2, beta = .5: (1.5 - .5)^2, (-2 - 0)^2, (.5 + .2)^2
    p = t(0.75, 0.5, 0.4)
    close(loss("psi_po", *PAIRS, p, beta=0.5), 1.0, 4.0, 0.49)
    # logit: (h - logit(p) / beta)^2: logit .75 = log 3, logit .4 = -log 1.5
    expected = ((1.5 - 2 * math.log(3)) ** 2, 4.0, (0.5 + 2 * math.log(1.5)) ** 2)
    close(loss("psi_po", *PAIRS, p, beta=0.5, psi="logit"), *expected)
    with pytest.raises(ValueError, match="infinite for a preference of 0 or 1.*pref_prob.*psi = 'identity'"):
        loss("psi_po", *PAIRS, t(0.75, 1.0, 0.4), psi="logit")


def test_slic_without_a_reference():
    # max(0, 1 - margin) with margins 1, -3, 0, then + .1 x (10, 12, 8)
    close(loss("slic", CHOSEN, REJECTED), 1.0, 5.2, 1.8)
    # per token: log pi -2, -2, -2 and -5.5, -3, -1; delta 2: max(0, 2 - 3.5), max(0, 2 - 1), max(0, 2 + 1); + .5 x 2
    found = loss("slic", CHOSEN, REJECTED, None, None, *LENGTHS, delta=2.0, lam=0.5, length_average=True)
    close(found, 1.0, 2.0, 4.0)
    # and with a reference: .5 x (.6, -.5, .1875) from 2
    found = loss("slic", *PAIRS, *LENGTHS, delta=2.0, beta=0.5, with_reference=True, length_average=True)
    close(found, 1.7, 2.25, 1.90625)


def test_tr_kto():
    # fixture C's rows of KTO, z0 = .2: 1 - sigmoid(.1 (rho_w - .2)), and 1 - sigmoid(.1 (.2 - rho_l)) if unwanted
    wanted = loss("tr_kto", CHOSEN, PAIRS[2], torch.tensor([True] * 3), t(0.2))
    close(wanted, 0.4925005624, 0.5299640518, 0.4800106598)
    close(
        loss("tr_kto", REJECTED, PAIRS[3], torch.tensor([False] * 3), t(0.2)), 0.4700359482, 0.5199893402, 0.5074994376
    )
    moves = [METHODS["tr_kto"].share_moved("ref", s, 4, {"alpha": 0.5, "sync_steps": 2}) for s in range(4)]
    assert moves == [0, 0, 0.5, 0]


def test_simpo():
    # means -2, -2, -2 and -5.5, -3, -1: 2 x (3.5, 1, -1) - 1 = 6, 1, -3
    close(loss("simpo", CHOSEN, REJECTED, *LENGTHS), softplus(-6), softplus(-1), softplus(3))
    found = METHODS["simpo"].call_measures(NAMED, {"beta": 2.0})
    close(found["rewards/chosen"], -4, -4, -4)
    close(found["rewards/rejected"], -11, -6, -2)


def test_orpo():
    # p = (1/2, 1/4): odds 1 and 1/3, -log sigmoid(log 3) = log(4/3); imitation costs log 2
    pair = (3 * t(0.5).log(), 2 * t(0.25).log(), t(3), t(2))
    close(loss("orpo", *pair, lam=0.5), math.log(2) + 0.5 * math.log(4 / 3))
    names = ("chosen_logprobs", "rejected_logprobs", "chosen_lengths", "rejected_lengths")
    found = METHODS["orpo"].call_measures(dict(zip(names, pair, strict=True)), {"lam": 0.5})
    close(found["orpo/log_odds_ratio"], math.log(3))
    close(found["nll/chosen"], math.log(2))
    close(found["rewards/chosen"], -0.5 * math.log(2))


def test_cpo():
    # .1 x (1, -3, 0), + the mean negative log-prob of the chosen, 2 each
    base = [softplus(-0.1 * m) for m in (1, -3, 0)]
    close(loss("cpo", CHOSEN, REJECTED, LENGTHS[0]), *(x + 2 for x in base))
    smooth = [0.9 * softplus(-0.1 * m) + 0.1 * softplus(0.1 * m) for m in (1, -3, 0)]
    close(loss("cpo", CHOSEN, REJECTED, LENGTHS[0], alpha=0.0, label_smoothing=0.1), *smooth)


def test_token_dpo():
    # log-ratios of the trained tokens: chosen 1, -.5; rejected 2; beta .5: h = .25 - 1
    logprobs, mask = t([9, -1, -2], [9, -1, -9]), torch.tensor([[0, 1, 1], [0, 1, 0]]).bool()
    ref = t([0, -2, -1.5], [0, -3, math.nan])
    close(loss("token_dpo", logprobs, ref, mask, beta=0.5), softplus(0.75))
    q = prefix_sums(token_rewards(logprobs, ref, 0.5), mask)
    assert q.tolist() == [[0, 0.5, 0.25], [0, 1, 1]]
    assert float(q[0, 2] - q[0, 1]) == -0.25  # what the second token earns


def test_ipl_by_hand():
    """Two tokens of a vocabulary of two, uniform reference, beta = 2: V = 2 log(e^l0 + e^l1), Q = 2 (l + log 2)."""
    two = math.log(2)
    l3 = math.log(3)
    # chosen: prompt, token 0 of logits (0, 0), token 1 of (0, log 3); rejected: token 1 of (0, 0), then padding
    logits = t([[0, 0], [0, 0], [0, l3]], [[0, 0], [0, 0], [5, 5]])
    ids, mask = torch.tensor([[0, 0, 1], [0, 1, 0]]), torch.tensor([[0, 1, 1], [0, 1, 0]]).bool()
    # r of the chosen's first token: 2 log 2 - g 2 log 4; of its last: 2 (log 3 + log 2); of the rejected's: 2 log 2
    gamma, lam = 0.5, 0.3
    r = (2 * two - gamma * 4 * two, 2 * (l3 + two), 2 * two)
    expected = softplus(-(r[0] + r[1] - r[2])) + lam * sum(x * x for x in r) / 3
    found = loss("ipl", logits, torch.zeros_like(logits), ids, mask, gamma=gamma, beta=2.0, lam=lam)
    close(found, expected)


def test_ipl_values_skip_what_the_policy_did_not_write():
    after, done = next_trained(torch.tensor([[False, True, False, False, True, False]]))
    assert after[0, 1] == 4 and not done[0, 1] and done[0, 4]
    found = implied_rewards(t(1, 2), t(3, math.inf), torch.tensor([False, True]), 0.5)
    close(found, -0.5, 2.0)  # 1 - .5 x 3; the terminal value is 0, whatever is handed in


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["total_variation", "chi_squared"])
def test_divergences_that_lose_mass_are_refused(family):
    with pytest.raises(ValueError, match=f"'{family}' can leave answers without mass: use one of reverse_kl"):
        link(t(0.0), family)
    with pytest.raises(ValueError, match="hparams.family must be one of reverse_kl"):
        METHODS["f_dpo"].settings({"family": family})


def test_required_and_ranged():
    with pytest.raises(ValueError, match="c3dpo needs hparams.lam"):
        METHODS["c3dpo"].settings({})
    assert METHODS["c3dpo"].settings({"lam": 0.1})["phi"] == "log"
    for name, hparams in (
        ("f_dpo", {"alpha": 1.0}),
        ("chi_po", {"r_max": 0.0}),
        ("tr_dpo", {"alpha": 1.1}),
        ("tr_dpo", {"sync_steps": 0}),
        ("dpop", {"lam": -1}),
        ("ipo", {"beta": 0.0}),
        ("spin", {"loss": "exponential"}),
        ("rejection_sampling", {"keep": 0}),
        ("ipl", {"gamma": 1.1}),
        ("online_direct", {"pair_rule": "all"}),
    ):
        with pytest.raises(ValueError, match=f"hparams.{next(iter(hparams))} must"):
            METHODS[name].settings(hparams)


@pytest.mark.parametrize("name", METHODS)
def test_settings_survive_being_written_and_read(name):
    """A resumed run reads what was resolved: it must pass the same checks, through strict JSON."""
    resolved = METHODS[name].settings(METHODS[name].trial)
    assert METHODS[name].settings(json.loads(json.dumps(resolved, allow_nan=False))) == resolved


def test_a_reference_is_loaded_only_where_it_is_read():
    """What the trainer supplies follows from the hyperparameters."""
    needs = lambda name, **given: METHODS[name].needs_with(METHODS[name].settings(given))  # noqa: E731
    pair, ref = ("chosen_logprobs", "rejected_logprobs"), ("ref_chosen_logprobs", "ref_rejected_logprobs")
    lengths = ("chosen_lengths", "rejected_lengths")
    assert needs("dpo") == (*pair, *ref)
    assert needs("dpo", gamma_ref=0) == pair
    assert needs("slic") == pair
    assert needs("slic", with_reference=True) == (*pair, *ref)
    assert needs("ipo", length_average=True) == (*pair, *ref, *lengths)
    for name in ("simpo", "orpo", "cpo"):
        assert not any(need.startswith("ref_") for need in needs(name))
