"""Preference games: every solver is the kernel, their rates hold, and winners are what the axioms say (spec 5)."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.exact.divergences import kl
from fiducial.exact.games import (
    EUCLIDEAN,
    SOLVERS,
    check_preferences,
    copeland_scores,
    copeland_winner,
    cycle,
    decaying,
    exploitability,
    four_options,
    game_metrics,
    payoff,
    play,
    random_preferences,
    reg_exploitability,
    regularised_nash,
)
from fiducial.exact.minimise import exact_minimise
from fiducial.exact.minmax import max_entropy_winner, minmax_winner
from fiducial.exact.optima import bradley_terry, ipo_optimum, rlhf_optimum, win_rate

D = torch.float64
REF = torch.tensor([0.5, 0.3, 0.2], dtype=D)
UNIFORM = torch.full((3,), 1 / 3, dtype=D)
START = torch.tensor([0.6, 0.3, 0.1], dtype=D)
FIXTURE = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=D)
ROCK_PAPER_SCISSORS = cycle(1.0)
SIX = torch.full((6,), 1 / 6, dtype=D)
GAMES = [random_preferences(6, seed) for seed in range(5)]


def near(found, expected, atol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=D), atol=atol, rtol=0)


def random_policy(seed, size=6):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=D).softmax(-1)


# -- fixture B ---------------------------------------------------------------------------------------------------------


def test_fixture_b():
    near(minmax_winner(FIXTURE).policy, [2 / 9, 3 / 9, 4 / 9], 1e-8)
    near(regularised_nash(FIXTURE, REF, 0.25), [0.4849517676, 0.1895910823, 0.3254571501], 1e-8)
    near(ipo_optimum(REF, FIXTURE, REF, 0.25), [0.5882808036, 0.1464052948, 0.2653139016], 1e-8)
    cases: list[tuple[str, torch.Tensor, dict[str, Any], list[float]]] = [
        ("mirror_descent", REF, {"step": 1.0}, [0.5280686739, 0.2542710224, 0.2176603037]),
        ("mmd", UNIFORM, {"step": 1.0, "beta": 0.25, "mu": REF}, [0.3750913942, 0.3126250626, 0.3122835433]),
        ("nash_md", UNIFORM, {"step": 2.0, "beta": 0.25, "mu": REF}, [0.4536708506, 0.2533852464, 0.2929439030]),
    ]
    for solver, start, settings_, expected in cases:
        near(play(solver, FIXTURE, start, 1, **settings_).last, expected, 1e-8)


# -- the kernel and its instances --------------------------------------------------------------------------------------


def normalised(x):
    return x / x.sum()


def test_one_step_of_every_solver_is_its_papers_formula():
    """From two iterates on, each update written out as in its paper, with products instead of logarithms."""
    P, mu, s, beta = GAMES[0], random_policy(1), 0.7, 0.4
    start = random_policy(2)

    def last(solver, **more):
        path = play(solver, P, start, 2, step=s, mu=mu, **more).policies
        return path[0], path[1], path[2]

    _, b, c = last("mirror_descent")
    near(c, normalised(b * (s * P @ b).exp()))
    a, b, c = last("ogda")
    near(c, normalised(b * (s * (2 * P @ b - P @ a)).exp()))
    _, b, c = last("extra_gradient")
    near(c, normalised(b * (s * P @ normalised(b * (s * P @ b).exp())).exp()))
    _, b, c = last("gda_kl", beta=beta)
    near(c, normalised(b ** (1 - s * beta) * mu ** (s * beta) * (s * P @ b).exp()))
    _, b, c = last("nash_md", beta=beta)
    mixed = normalised(b ** (1 - s * beta) * mu ** (s * beta))
    near(c, normalised(mixed * (s * P @ mixed).exp()))
    _, b, c = last("mmd", beta=beta)
    near(c, normalised((b * mu ** (s * beta) * (s * P @ b).exp()) ** (1 / (1 + s * beta))))
    _, b, c = last("mpo", beta=beta, inner_steps=1)  # the magnet is b by now
    near(c, normalised((b ** (1 + s * beta) * (s * P @ b).exp()) ** (1 / (1 + s * beta))))
    e = 1 / s  # INPO: exp(P / e) ref^(beta / e) pi^(1 - beta / e)
    c = play("inpo", P, b, 1, inv_step=e, beta=beta, mu=mu).last
    near(c, normalised((P @ b / e).exp() * mu ** (beta / e) * b ** (1 - beta / e)))


@pytest.mark.parametrize("P", GAMES[:3])
def test_identities_of_the_kernel(P):
    """Section 5.0: MMD with step eta is the kernel with eta / (1 + eta beta); INPO's inverse step e is s = 1 / e."""
    beta, eta = 0.2, 0.8
    s = eta / (1 + eta * beta)
    gda = play("gda_kl", P, SIX, 60, step=s, beta=beta).policies
    near(play("mmd", P, SIX, 60, step=eta, beta=beta).policies, gda, 1e-14)
    near(play("inpo", P, SIX, 60, inv_step=1 / s, beta=beta).policies, gda, 1e-14)
    near(play("mtpo", P, SIX, 60, step=s, beta=beta).policies, gda, 0)
    # MMD is mirror descent on F + beta grad KL(. || mu) with the step eta / (1 + eta beta).
    pi = random_policy(3)
    inclined = P @ pi - beta * (pi / SIX).log()
    near(play("mmd", P, pi, 1, step=eta, beta=beta, mu=SIX).last, normalised(pi * (s * inclined).exp()), 1e-14)
    descent = play("mirror_descent", P, pi, 60, step=0.5).policies
    for solver in ("spo", "sppo"):
        near(play(solver, P, pi, 60, step=0.5).policies, descent, 0)
    near(play("dno", P, pi, 60, inv_step=2.0).policies, descent, 0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_constant_payoff_changes_no_iterate(solver):
    P, beta = GAMES[1], 0.3 if SOLVERS[solver].regularised else 0.0
    for shifted in (P + 3.0, P - 0.5):
        paths = [play(solver, game, random_policy(4), 30, step=0.5, beta=beta) for game in (P, shifted)]
        near(paths[0].policies, paths[1].policies, 1e-13)


@pytest.mark.parametrize("solver", SOLVERS)
def test_prompts_are_solved_independently(solver):
    """P [S, N, N] gives the paths of each prompt alone."""
    beta = 0.3 if SOLVERS[solver].regularised else 0.0
    together = play(solver, torch.stack(GAMES[:2]), random_policy(5), 10, step=0.5, beta=beta)
    for i in range(2):
        alone = play(solver, GAMES[i], random_policy(5), 10, step=0.5, beta=beta)
        near(together.policies[:, i], alone.policies, 1e-15)
        near(together.magnets[:, i], alone.magnets, 1e-15)


def test_two_players_of_gda_have_the_same_iterates():
    """Spec 5.5: the game is symmetric, so descent for one and ascent for the other from one start coincide."""
    P, mu, s, beta = GAMES[2], random_policy(6), 0.4, 0.3
    one = two = mu
    for _ in range(20):
        one, two = (
            normalised(one ** (1 - s * beta) * mu ** (s * beta) * (s * (P @ two)).exp()),
            normalised(two ** (1 - s * beta) * mu ** (s * beta) * (-s * (P.T @ one)).exp()),  # the loser's payoff
        )
    near(one, two, 1e-14)
    near(play("gda_kl", P, mu, 20, step=s, beta=beta).last, one, 1e-14)


def test_euclidean_mirror_descent_is_projected_gradient():
    """A quadratic programme: the minimiser of -s <P pi, x> + |x - pi|^2 / 2 over the simplex, by its KKT conditions."""
    P, pi, s = GAMES[0], random_policy(7), 2.0
    found = play("mirror_descent", P, pi, 1, step=s, geometry=EUCLIDEAN).last
    gradient = found - pi - s * P @ pi
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
    assert (found == 0).any()  # the constraint is active here
    level = gradient[found > 0]
    near(level, level.mean().expand_as(level))
    assert (gradient[found == 0] >= level.mean() - 1e-12).all()
    # MMD's fixed point: a policy that answers P pi - beta (pi - mu) best.
    fixed = play("mmd", P, SIX, 3000, step=0.3, beta=0.5, geometry=EUCLIDEAN).last
    gains = P @ fixed - 0.5 * (fixed - SIX)
    assert float(gains.max() - fixed @ gains) < 1e-9


def test_settings_that_make_no_sense_are_refused():
    P = cycle()
    for message, arguments in {
        "solver must be one of": ("frank_wolfe", {"step": 1.0}),
        "needs beta above 0": ("mmd", {"step": 1.0}),
        "takes no beta": ("ogda", {"step": 1.0, "beta": 0.1}),
        "not both": ("dno", {"step": 1.0, "inv_step": 1.0}),
        "no step size of its own": ("spo", {}),
        "at most 1 / beta": ("gda_kl", {"step": 3.0, "beta": 0.5}),
        "positive probability": ("spo", {"step": 1.0, "mu": torch.tensor([1.0, 0.0, 0.0])}),
    }.items():
        with pytest.raises(ValueError, match=message):
            play(arguments[0], P, UNIFORM, 1, **arguments[1])
    with pytest.raises(ValueError, match=r"P\[0, 1\] = 0.7 and its mirror image"):
        check_preferences(torch.tensor([[0.5, 0.7], [0.7, 0.5]]))
    with pytest.raises(ValueError, match=r"P\[1, 0\] = -0.2 must lie in \[0, 1\]"):
        check_preferences(torch.tensor([[0.5, 1.0], [-0.2, 0.5]]))
    with pytest.raises(ValueError, match="square"):
        check_preferences(torch.rand(2, 3))


# -- the regularised game ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("P", GAMES)
@pytest.mark.parametrize("beta", [50.0, 0.2, 0.01, 1e-3])
def test_regularised_nash_solves_its_equation(P, beta):
    mu = random_policy(8)
    star = regularised_nash(P, mu, beta)
    near(star, normalised(mu * ((P - 0.5) @ star / beta).exp()), 1e-11)
    assert abs(float(reg_exploitability(star, P, mu, beta))) < 1e-12
    assert float(win_rate(star, P, star)) == pytest.approx(0.5, abs=1e-12)
    assert float(reg_exploitability(random_policy(9), P, mu, beta)) > 0


def test_regularised_nash_between_reference_and_winner():
    mu = random_policy(10)
    near(regularised_nash(GAMES[0], mu, 1e8), mu, 1e-8)
    for P in GAMES:
        near(regularised_nash(P, mu, 1e-5), minmax_winner(P).policy, 1e-3)


def test_regularised_nash_of_two_actions_is_a_root():
    """logit p = logit mu + (P12 - 1/2) / beta, since (P pi)_1 - (P pi)_2 = P12 - 1/2 for every pi: not even a search.

    Under Bradley-Terry that is not the RLHF optimum, logit p = logit mu + r / beta.
    """
    r, beta, mu = 2.0, 0.3, torch.tensor([0.2, 0.8], dtype=D)
    P = bradley_terry(torch.tensor([r, 0.0], dtype=D))
    logit = math.log(0.2 / 0.8) + (1 / (1 + math.exp(-r)) - 0.5) / beta
    found = regularised_nash(P, mu, beta)
    assert float(found[0]) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)
    assert abs(float(found[0] - rlhf_optimum(mu, torch.tensor([r, 0.0], dtype=D), beta)[0])) > 0.05


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_reg_exploitability_is_the_best_answer(seed):
    """max over answers of the regularised payoff, against gradient ascent's answer and random ones."""
    P, mu, pi, beta = random_preferences(4, seed), random_policy(seed, 4), random_policy(seed + 1, 4), 0.3

    def gain(answer):
        return float(win_rate(answer, P, pi) - beta * kl(answer, mu) - 0.5 + beta * kl(pi, mu))

    best = ipo_optimum(mu, P, pi, beta)
    found = float(reg_exploitability(pi, P, mu, beta))
    assert gain(best) == pytest.approx(found, abs=1e-12)
    assert all(gain(random_policy(seed + i, 4)) <= found + 1e-12 for i in range(2, 6))


@pytest.mark.parametrize("P", GAMES[:2])
def test_all_regularised_solvers_meet(P):
    """Section 11, 7: the fixed point of online IPO; the limits of gda_kl, mmd, inpo, mtpo and of decaying Nash-MD."""
    mu, beta = random_policy(11), 0.2
    star = regularised_nash(P, mu, beta)
    online = mu
    for _ in range(2000):  # exact online IPO, half of the way each round
        online = (online * ipo_optimum(mu, P, online, beta)).sqrt()
        online = normalised(online)
    near(online, star, 1e-10)
    for solver in ("gda_kl", "mmd", "inpo", "mtpo"):
        near(play(solver, P, mu, 500, step=0.8, beta=beta).last, star, 1e-9)
    near(play("nash_md", P, mu, 3000, beta=beta).last, star, 1e-3)


@pytest.mark.parametrize("P", GAMES)
def test_nash_md_rates(P):
    """KL to the solution: (1 - s beta) KL + 2 s^2 each step, 8 / (beta^2 (T + 1)) with s = 2 / (beta (t + 2))."""
    beta, steps = 0.2, 2000
    star = regularised_nash(P, SIX, beta)
    distance = kl(star, play("nash_md", P, SIX, steps, beta=beta).policies)
    t = torch.arange(steps, dtype=D)
    s = 2 / (beta * (t + 2))
    assert (distance[1:] <= (1 - s * beta) * distance[:-1] + 2 * s**2).all()
    assert (distance[1:] <= 8 / (beta**2 * (t + 2))).all()
    assert float(distance[-1]) < 1e-7  # far inside the bound, 0.1


@pytest.mark.parametrize("P", GAMES[:3])
def test_nash_md_with_a_constant_step_stops_beside_the_solution(P):
    star = regularised_nash(P, SIX, 0.2)
    far, near_ = (float(kl(star, play("nash_md", P, SIX, 1500, step=s, beta=0.2).last)) for s in (0.3, 0.1))
    assert 1e-6 < far < 1e-3 and 1e-8 < near_ < far / 5


@pytest.mark.parametrize("P", GAMES)
def test_mmd_rate(P):
    """KL(star, pi_k) <= KL(star, pi_0) (1 + eta beta)^-k for eta <= beta / L^2, L = max |P - 1/2| (Sokota et al.)."""
    beta, start = 0.2, random_policy(12)
    eta = beta / float((P - 0.5).abs().max()) ** 2
    assert eta >= 4 * beta  # L <= 1/2, so 4 beta is always safe
    star = regularised_nash(P, SIX, beta)
    for step in (eta, 4 * beta):
        distance = kl(star, play("mmd", P, start, 300, step=step, beta=beta, mu=SIX).policies)
        bound = distance[0] * (1 / (1 + step * beta)) ** torch.arange(301, dtype=D)
        assert float((distance - bound).max()) < 1e-13
        assert float(distance[-1]) < 1e-14


@pytest.mark.parametrize("P", GAMES)
def test_inpo_rate(P):
    """32 C^2 / (beta^2 (T + 1)) with e_t = beta (t + 2) / 2, C = max(B beta, 1), B = max |log pi_t / ref|."""
    beta, steps = 0.2, 1000
    star, path = regularised_nash(P, SIX, beta), play("inpo", P, SIX, 1000, step=decaying(0.2), beta=beta).policies
    c = max(float((path / SIX).log().abs().max()) * beta, 1)
    assert (kl(star, path[1:]) <= 32 * c**2 / (beta**2 * torch.arange(2, steps + 2, dtype=D))).all()


def test_a_stronger_magnet_is_more_exploitable():
    found = [
        float(exploitability(regularised_nash(ROCK_PAPER_SCISSORS, START, a), ROCK_PAPER_SCISSORS))
        for a in (0.05, 0.2, 1.0)
    ]
    assert 0 < found[0] < found[1] < found[2]


# -- the original game -------------------------------------------------------------------------------------------------


def test_mirror_descent_cycles_while_its_average_converges():
    """Spec 5.5, on the cycle of 2/3 from (.5, .3, .2) and on rock, paper, scissors."""
    for step, first, last, average in ((0.1, 0.0702, 0.0893, 0.0034), (0.5, 0.0702, 1.365, 0.0016)):
        path = play("mirror_descent", cycle(), REF, 3000, step=step)
        away = kl(UNIFORM, path.policies)
        assert (away.diff() > 0).all()
        assert float(away[0]) == pytest.approx(first, abs=1e-4) and float(away[-1]) == pytest.approx(last, abs=1e-3)
        assert float(exploitability(path.averages[-1], cycle())) == pytest.approx(average, abs=1e-4)
        assert float(exploitability(path.last, cycle())) > 0.04
    wild = play("mirror_descent", ROCK_PAPER_SCISSORS, REF, 3000, step=0.5)
    assert float(exploitability(wild.last, ROCK_PAPER_SCISSORS)) > 0.49
    assert float(exploitability(wild.averages[-1], ROCK_PAPER_SCISSORS)) < 0.006


@pytest.mark.parametrize("P", [cycle(), four_options(), *GAMES[:2]])
def test_average_bound_of_self_play(P):
    """Exploitability of the average <= 2 (log N / (s T) + s / 8), s = sqrt(8 log N / T), from the uniform start."""
    n = len(P)
    for steps in (100, 1000):
        s = math.sqrt(8 * math.log(n) / steps)
        average = play("spo", P, torch.full((n,), 1 / n, dtype=D), steps, step=s).averages[-1]
        assert float(exploitability(average, P)) <= 2 * math.sqrt(math.log(n) / (2 * steps))


def test_self_play_finds_the_best_arm_of_a_reward():
    P = bradley_terry(torch.tensor([0.3, 2.0, -1.0, 1.0], dtype=D))
    assert float(play("spo", P, torch.full((4,), 0.25, dtype=D), 400, step=1.0).last[1]) > 0.999


def test_optimism_converges_to_the_last_iterate():
    """Spec 5.8, with the exploitability after 3000 and 5000 steps as verified there."""
    rps = ROCK_PAPER_SCISSORS

    def after(steps, step, P=rps, start=START, solver="ogda"):
        return float(exploitability(play(solver, P, start, steps, step=step).last, P))

    assert after(3000, 0.5, start=REF) < 1e-12
    assert after(3000, 0.5, cycle(), REF) == pytest.approx(0.0016, abs=1e-4)
    assert after(3000, 0.1, cycle(), REF) == pytest.approx(0.042, abs=1e-3)
    assert after(5000, 0.125) == pytest.approx(0.013, abs=1e-3)
    assert after(5000, 0.25) == pytest.approx(7e-7, rel=0.1)
    assert after(3000, 1.0) < 1e-14
    assert after(3000, 0.5, solver="extra_gradient") < 1e-12
    path = play("ogda", rps, START, 3000, step=0.125)
    for t in (100, 1000, 3000):  # O(1 / T): regret is at most max KL(action || start) / s, and a bit
        assert t * float(exploitability(path.averages[t - 1], rps)) < math.log(1 / 0.1) / 0.125 + 1


@pytest.mark.parametrize(
    ("P", "magnet"),
    [(ROCK_PAPER_SCISSORS, START), (four_options(), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=D))],
)
def test_mpo_reaches_the_winner_where_mmd_stops(P, magnet):
    """alpha = .2, eta = alpha / L^2, 400 inner steps: about 1e-3 after 10 outer steps, below 1e-9 after 40."""
    alpha, eta = 0.2, 0.2 / 0.25
    moving = play("mpo", P, magnet, 40 * 400, step=eta, beta=alpha, inner_steps=400)
    found = exploitability(moving.magnets, P)
    assert len(found) == 41 and float(found[10]) < 2e-3 and float(found[40]) < 1e-9
    near(moving.magnets[1], regularised_nash(P, magnet, alpha), 1e-9)
    away = kl(minmax_winner(P).policy, moving.magnets)
    assert (away.diff() <= 1e-12).all() and (away.diff()[:10] < 0).all()
    assert float(exploitability(play("mmd", P, magnet, 400, step=eta, beta=alpha).last, P)) > 0.08
    winner = moving.last
    near(play("mpo", P, winner, 400, step=eta, beta=alpha, inner_steps=400).last, winner, 1e-8)


@pytest.mark.parametrize("P", GAMES)
def test_the_magnet_never_moves_away_from_the_winner(P):
    """Exact outer steps: the magnet becomes the regularised Nash; random games have one winner."""
    winner, magnet = minmax_winner(P), SIX
    assert winner.is_unique
    distances = []
    for _ in range(60):
        distances.append(kl(winner.policy, magnet))
        magnet = regularised_nash(P, magnet, 0.2)
    assert (torch.stack(distances).diff() <= 1e-12).all()
    assert float(distances[-1]) < float(distances[0]) / 2


# -- population minimisers of the regressions, by their losses ---------------------------------------------------------


@pytest.mark.parametrize("P", [FIXTURE, GAMES[0]])
def test_losses_reach_their_step(P):
    """DNO, INPO and SPPO with its exact normaliser, enumerated over pairs and minimised, give the kernel's iterate."""
    n, s, beta = len(P), 0.8, 0.3
    pi, ref, law = random_policy(13, n), random_policy(14, n), random_policy(15, n)
    e, rates = 1 / s, P @ pi
    pairs = law[:, None] * law[None, :]

    def dno(theta):
        ratio = theta.log_softmax(-1) - pi.log()
        z, q = e * (ratio[:, None] - ratio[None, :]), torch.sigmoid(rates[:, None] - rates[None, :])
        return -(pairs * (q * torch.nn.functional.logsigmoid(z) + (1 - q) * torch.nn.functional.logsigmoid(-z))).sum()

    near(exact_minimise(dno, pi.log()).softmax(-1), play("dno", P, pi, 1, inv_step=e).last, 1e-6)

    def inpo(theta):
        scores = theta.log_softmax(-1) - beta / e * ref.log() - (e - beta) / e * pi.log()
        h = scores[:, None] - scores[None, :]
        return (pi[:, None] * pi[None, :] * P * (h - 1 / (2 * e)).square()).sum()

    expected = play("inpo", P, pi, 1, inv_step=e, beta=beta, mu=ref).last
    near(exact_minimise(inpo, pi.log()).softmax(-1), expected, 1e-6)

    def sppo(theta, log_z):
        return (pi * (theta.log_softmax(-1) - pi.log() - s * rates + log_z).square()).sum()

    log_z = float((pi * (s * rates).exp()).sum().log())
    exact = exact_minimise(lambda theta: sppo(theta, log_z), pi.log())
    near(exact.softmax(-1), play("sppo", P, pi, 1, step=s).last, 1e-6)
    assert float(sppo(exact, log_z)) < 1e-12
    assert log_z >= s / 2  # Jensen: the half in the paper is a choice, not the normaliser
    halved = exact_minimise(lambda theta: sppo(theta, s / 2), pi.log()).softmax(-1)
    assert 1e-9 < float((halved - exact.softmax(-1)).abs().max()) < 0.05


def test_sppo_normaliser_is_half_the_step_plus_half_the_variance():
    """log Z - s / 2 = s^2 Var_pi(P pi) / 2 + O(s^3); the mean of P pi under pi is 1/2."""
    P, pi, s = GAMES[0], random_policy(16), 1e-3
    rates = P @ pi
    assert float(pi @ rates) == pytest.approx(0.5, abs=1e-15)
    variance = float((pi * (rates - 0.5).square()).sum())
    gap = float((pi * (s * (rates - 0.5)).exp()).sum().log())
    assert gap == pytest.approx(s**2 * variance / 2, rel=1e-3)


# -- winners -----------------------------------------------------------------------------------------------------------


def test_copeland_of_the_four_options():
    """Row sums of the signs: a 1, b 0, c -2, d 1. By margins the sums are the same, these preferences being 0 or 1."""
    near(copeland_scores(four_options()), [1, 0, -2, 1])
    assert copeland_winner(four_options()) == copeland_winner(four_options(), margins=True) == {0, 3}
    near(minmax_winner(four_options()).policy, [1 / 3, 1 / 3, 0, 1 / 3], 1e-9)
    assert copeland_winner(FIXTURE) == {0, 1, 2}  # each beats one and loses to one
    # Margins 2P - 1 of the fixture: .8 - .6 = .2, -.8 + .4 = -.4, .6 - .4 = .2.
    near(copeland_scores(FIXTURE, margins=True), [0.2, -0.4, 0.2])


@given(st.integers(0, 100_000), st.integers(2, 8))
@settings(max_examples=25, deadline=None)
def test_minmax_winner_cannot_be_beaten(seed, n):
    P = random_preferences(n, seed)
    winner = minmax_winner(P)
    assert float(exploitability(winner.policy, P)) < 1e-9 and winner.value == pytest.approx(0.5, abs=1e-9)
    assert float(winner.policy.sum()) == pytest.approx(1, abs=1e-9) and (winner.policy >= 0).all()
    assert float(exploitability(winner.dual / winner.dual.sum(), P)) < 1e-7  # the opponent's side is a winner too
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    if winner.is_unique:  # relabelling the options relabels the winner
        near(minmax_winner(P[shuffled][:, shuffled]).policy, winner.policy[shuffled], 1e-6)


def test_minmax_winner_where_the_answer_is_known():
    three_raters = torch.zeros(3, 3, dtype=D)
    for order in ((2, 0, 1), (1, 2, 0), (0, 1, 2)):  # y3 y1 y2; y2 y3 y1; y1 y2 y3
        for i, better in enumerate(order):
            for worse in order[i + 1 :]:
                three_raters[better, worse] += 1 / 3
    three_raters += torch.eye(3) / 2
    near(three_raters, cycle(), 1e-15)
    near(minmax_winner(cycle()).policy, UNIFORM, 1e-9)
    assert minmax_winner(cycle()).is_unique
    near(minmax_winner(bradley_terry(torch.tensor([0.1, 1.0, -2.0, 0.9], dtype=D))).policy, [0, 1, 0, 0], 1e-9)
    condorcet = GAMES[0].clone()
    condorcet[2], condorcet[:, 2] = 0.51, 0.49  # barely, but it beats everyone
    condorcet[2, 2] = 0.5
    near(minmax_winner(condorcet).policy, [0, 0, 1, 0, 0, 0], 1e-9)


def test_winners_that_are_not_unique():
    indifferent = torch.full((4, 4), 0.5, dtype=D)
    assert not minmax_winner(indifferent).is_unique
    near(max_entropy_winner(indifferent), [0.25] * 4, 1e-6)
    cloned = torch.tensor([0, 0, 1, 2])  # the first option of the cycle twice
    twice = cycle()[cloned][:, cloned]
    winner = minmax_winner(twice)
    assert not winner.is_unique and winner.value == pytest.approx(0.5, abs=1e-9)
    assert float(winner.policy[:2].sum()) == pytest.approx(1 / 3, abs=1e-7)
    near(winner.most, [1 / 3, 1 / 3, 1 / 3, 1 / 3], 1e-6)
    near(max_entropy_winner(twice), [1 / 6, 1 / 6, 1 / 3, 1 / 3], 1e-5)
    for P in (four_options(), GAMES[1]):
        near(max_entropy_winner(P), minmax_winner(P).policy, 1e-5)


def test_winners_merge():
    """Population consistency: a winner of two groups of raters is one of any mixture of them."""
    a, b = cycle(0.9), cycle(0.6)
    for w in (0.2, 0.7):
        assert float(exploitability(minmax_winner(a).policy, w * a + (1 - w) * b)) < 1e-9


def test_metrics_of_a_game():
    """A hand example: rock, paper, scissors played (1/2, 1/2, 0) against mu = (1/2, 1/4, 1/4)."""
    pi, mu = torch.tensor([0.5, 0.5, 0.0], dtype=D), torch.tensor([0.5, 0.25, 0.25], dtype=D)
    found = game_metrics(pi, ROCK_PAPER_SCISSORS, mu, 0.5, star=UNIFORM, average=UNIFORM)
    assert found["game/exploitability"] == pytest.approx(0.25)  # P pi = (3/4, 1/4, 1/2)
    assert found["game/kl_to_ref"] == pytest.approx(0.5 * math.log(2))
    assert found["game/entropy"] == pytest.approx(math.log(2))
    assert found["game/value"] == pytest.approx(0.5)
    assert found["game/kl_star_to_pi"] == math.inf and found["game/avg_exploitability"] == pytest.approx(0.0)
    sum_ = 0.5 * math.exp(1.5) + 0.25 * math.exp(0.5) + 0.25 * math.exp(1.0)
    assert found["game/reg_exploitability"] == pytest.approx(0.5 * math.log(sum_) - 0.5 + 0.25 * math.log(2))
    near(payoff(ROCK_PAPER_SCISSORS, pi), [0.75, 0.25, 0.5])
