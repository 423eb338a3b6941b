"""Symmetric preference games in one state, solved exactly: P[..., i, j] = P(i beats j), policies [..., N], float64.

Every solver here is one kernel (Munos et al. 2023, arXiv:2312.00886, and the papers in `SOLVERS`),

    log pi_{t+1} = norm[(1 - s beta) log pi_t + s beta log mu + s P o_t],

with the step size s, the weight beta of the KL to the reference or magnet mu, and the opponent o_t; norm takes off the
logsumexp. They differ in whom they play (o_t), in how s follows from the paper's step, and in whether mu moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fiducial.exact.divergences import kl
from fiducial.exact.optima import win_rate

Step = float | Callable[[int], float]  # constant, or a function of t = 0, 1, ...


# -- games -------------------------------------------------------------------------------------------------------------


def cycle(strength: float = 2 / 3) -> Tensor:
    """Three options, each beating the next with probability `strength`: [3, 3]. Only the uniform mix is a winner.

    2/3 is what three raters with the orders 312, 231, 123 give on average; 1 is rock, paper, scissors.
    """
    p, q = strength, 1 - strength
    return torch.tensor([[0.5, p, q], [q, 0.5, p], [p, q, 0.5]], dtype=torch.float64)


def four_options() -> Tensor:
    """a beats b and c, b beats d, d beats a and c, b and c tie: [4, 4]. Copeland winners a and d; minmax a, b, d."""
    signs = torch.tensor([[0, 1, 1, -1], [-1, 0, 0, 1], [-1, 0, 0, -1], [1, -1, 1, 0]], dtype=torch.float64)
    return (1 + signs) / 2


def random_preferences(options: int, seed: int) -> Tensor:
    """A game [N, N] whose entries above the diagonal are uniform in (0, 1)."""
    upper = torch.rand(options, options, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).triu(1)
    return upper + (1 - upper).T.tril(-1) + torch.eye(options, dtype=torch.float64) / 2


def check_preferences(preference: Tensor) -> None:
    """ValueError unless P[i, j] + P[j, i] = 1 and every entry lies in [0, 1]."""
    if preference.ndim < 2 or preference.shape[-1] != preference.shape[-2]:
        raise ValueError(f"a preference matrix is square; this one has the shape {tuple(preference.shape)}")
    outside = (preference < 0) | (preference > 1)
    wrong = ~outside & ((preference + preference.mT - 1).abs() > 1e-9)
    for bad, rule in ((outside, "must lie in [0, 1]"), (wrong, "and its mirror image must add up to 1")):
        if bad.any():
            at = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(f"P{list(at)} = {float(preference[at]):g} {rule}: P[i, j] is the chance that i beats j")


# -- how far a policy is from a winner ---------------------------------------------------------------------------------


def payoff(preference: Tensor, opponent: Tensor) -> Tensor:
    """P o, how often each option beats `opponent`: [..., N, N], [..., N] -> [..., N]."""
    return (preference @ opponent[..., None])[..., 0]


def exploitability(policy: Tensor, preference: Tensor) -> Tensor:
    """By how much the best answer to the policy wins, max_i (P pi)_i - 1/2; 0 exactly at a minmax winner.

    >>> exploitability(torch.tensor([1.0, 0, 0]).double(), cycle())  # the option that beats it wins 2/3
    tensor(0.1667, dtype=torch.float64)
    """
    return payoff(preference, policy).amax(-1) - 0.5


def reg_exploitability(policy: Tensor, preference: Tensor, mu: Tensor, beta: float) -> Tensor:
    """What the best answer gains in the game with payoff P - beta KL(own || mu); 0 at `regularised_nash` only."""
    log_mean_exp = (mu.log() + payoff(preference, policy) / beta).logsumexp(-1)
    return beta * log_mean_exp - (win_rate(policy, preference, policy) - beta * kl(policy, mu))


def game_metrics(
    policy: Tensor,
    preference: Tensor,
    mu: Tensor,
    beta: float = 0.0,
    star: Tensor | None = None,
    average: Tensor | None = None,
) -> dict[str, float]:
    """What every game run logs of its policy, its known answer `star` and its average iterate: game/..."""
    measured = {
        "exploitability": exploitability(policy, preference),
        "kl_to_ref": kl(policy, mu),
        "entropy": -torch.xlogy(policy, policy).sum(-1),
        "value": win_rate(policy, preference, policy),
    }
    if beta > 0:
        measured["reg_exploitability"] = reg_exploitability(policy, preference, mu, beta)
    if star is not None:
        measured["kl_star_to_pi"] = kl(star, policy)
    if average is not None:
        measured["avg_exploitability"] = exploitability(average, preference)
    return {f"game/{name}": float(value) for name, value in measured.items()}


# -- the kernel --------------------------------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """A mirror map: policy -> coordinates in which the kernel is linear, their normalisation, and the way back."""

    coordinates: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]
    policy: Callable[[Tensor], Tensor]


def project_to_simplex(x: Tensor) -> Tensor:
    """The distribution nearest to x in the Euclidean norm, [..., N].

    >>> project_to_simplex(torch.tensor([0.8, 0.6, -0.5]))  # 0.2 off each of the first two
    tensor([0.6000, 0.4000, 0.0000])
    """
    ranked = x.sort(-1, descending=True).values
    excess = ranked.cumsum(-1) - 1
    counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    kept = (ranked * counts > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, kept - 1) / kept).clamp(min=0)


def _same(x: Tensor) -> Tensor:
    return x


KL = Geometry(torch.log, lambda z: z.log_softmax(-1), torch.exp)
EUCLIDEAN = Geometry(_same, project_to_simplex, _same)


def kernel(z: Tensor, z_mu: Tensor, payoffs: Tensor, step: float, beta: float, geometry: Geometry = KL) -> Tensor:
    """norm[(1 - s beta) z + s beta z_mu + s payoffs] in the coordinates of `geometry` (log-probs for KL), [..., N]."""
    return geometry.norm((1 - step * beta) * z + step * beta * z_mu + step * payoffs)


@dataclass(frozen=True)
class Turn:
    """What a choice of opponent may look at: the game, coordinates now, one step before and of mu, and s, beta."""

    preference: Tensor
    z: Tensor
    before: Tensor
    z_mu: Tensor
    step: float
    beta: float
    geometry: Geometry


def itself(turn: Turn) -> Tensor:
    """Self-play: pi_t."""
    return turn.geometry.policy(turn.z)


def mixture_with_reference(turn: Turn) -> Tensor:
    """Nash-MD: pi_t^(1 - s beta) mu^(s beta), normalised."""
    none = torch.zeros_like(turn.z)
    return turn.geometry.policy(kernel(turn.z, turn.z_mu, none, turn.step, turn.beta, turn.geometry))


def optimistic(turn: Turn) -> Tensor:
    """2 pi_t - pi_{t-1}, so that the payoff is the one expected next."""
    return 2 * turn.geometry.policy(turn.z) - turn.geometry.policy(turn.before)


def look_ahead(turn: Turn) -> Tensor:
    """Extra-gradient: where one step of self-play would lead."""
    payoffs = payoff(turn.preference, itself(turn))
    return turn.geometry.policy(kernel(turn.z, turn.z_mu, payoffs, turn.step, turn.beta, turn.geometry))


# -- the table of solvers ----------------------------------------------------------------------------------------------


def decaying(beta: float) -> Step:
    """2 / (beta (t + 2)), t = 0, 1, ...: the schedule of Nash-MD's and INPO's rates; its first step starts from mu."""
    return lambda t: 2 / (beta * (t + 2))


@dataclass(frozen=True)
class Solver:
    """An instance of the kernel. `implicit`: the paper's step eta enters as s = eta / (1 + eta beta).

    `regularised` solvers need beta > 0 and stop at `regularised_nash`; the others take beta = 0. With `moving` the
    magnet becomes the policy after every `inner_steps`.
    """

    paper: str
    opponent: Callable[[Turn], Tensor] = itself
    regularised: bool = False
    implicit: bool = False
    moving: bool = False
    schedule: Callable[[float], Step] | None = None  # of beta, where the paper has one


_MD = Solver("Freund & Schapire 1999: multiplicative weights")
_GDA = Solver("arXiv:2312.00886: mirror descent on the regularised game", regularised=True)
_MMD = Solver("arXiv:2206.05825: the magnet's divergence stays in the step", regularised=True, implicit=True)
SOLVERS: dict[str, Solver] = {
    "mirror_descent": _MD,
    "spo": replace(_MD, paper="arXiv:2401.04056: win rate against its own samples as reward"),
    "sppo": replace(_MD, paper="arXiv:2405.00675: with the exact normaliser in the regression's target"),
    "dno": replace(_MD, paper="arXiv:2404.03715: a regression on win rates; its paper's eta is inv_step"),
    "gda_kl": _GDA,
    "mtpo": replace(_GDA, paper="arXiv:2405.14655: one turn"),
    "inpo": replace(_GDA, paper="arXiv:2407.00617: its paper's eta is inv_step", schedule=decaying),
    "mmd": _MMD,
    "mpo": replace(_MMD, paper="arXiv:2410.16714: the magnet follows the policy", moving=True),
    "nash_md": Solver("arXiv:2312.00886", mixture_with_reference, regularised=True, schedule=decaying),
    "ogda": Solver("arXiv:1807.02629", optimistic),
    "extra_gradient": Solver("Korpelevich 1976; arXiv:1807.02629", look_ahead),
}


@dataclass(frozen=True)
class Path:
    """Every iterate, start included: policies [T + 1, ..., N]; and the magnet after each move, first one included."""

    policies: Tensor
    magnets: Tensor

    @property
    def last(self) -> Tensor:
        """The last iterate, [..., N]."""
        return self.policies[-1]

    @property
    def averages(self) -> Tensor:
        """Averages of the first 1, 2, ..., T iterates, [T, ..., N]: what plain mirror descent converges in."""
        played = self.policies[:-1]
        counts = torch.arange(1, len(played) + 1, dtype=played.dtype)
        return played.cumsum(0) / counts.view(-1, *[1] * (played.ndim - 1))


def play(
    solver: str,
    preference: Tensor,
    start: Tensor,
    steps: int,
    *,
    step: Step | None = None,
    inv_step: float | None = None,
    beta: float = 0.0,
    mu: Tensor | None = None,
    inner_steps: int = 1,
    geometry: Geometry = KL,
) -> Path:
    """The path of a solver from `start` [..., N], every entry positive, on preferences [..., N, N].

    step is the mirror-descent step size (constant or a function of t), inv_step its inverse: give one. mu is the
    reference or magnet, by default the start. mpo moves its magnet every inner_steps.

    >>> play("mirror_descent", cycle(1.0), torch.tensor([0.5, 0.25, 0.25]).double(), 1, step=1.0).last
    tensor([0.4981, 0.2198, 0.2822], dtype=torch.float64)
    """
    rule = _solver(solver, beta)
    size = _step_size(solver, rule, step, inv_step, beta)
    start = start.double().expand(preference.shape[:-1])
    mu = start if mu is None else mu.double().expand_as(start)
    if not ((start > 0).all() and (mu > 0).all()):
        raise ValueError("the start and mu must give every option a positive probability: none comes back from 0")
    z = before = geometry.coordinates(start)
    z_mu = geometry.coordinates(mu)
    policies, magnets = [start], [mu]
    for t in range(steps):
        s = size(t)
        turn = Turn(preference, z, before, z_mu, s, beta, geometry)
        z, before = kernel(z, z_mu, payoff(preference, rule.opponent(turn)), s, beta, geometry), z
        policies.append(geometry.policy(z))
        if rule.moving and (t + 1) % inner_steps == 0:
            z_mu = z
            magnets.append(policies[-1])
    return Path(torch.stack(policies), torch.stack(magnets))


def _solver(name: str, beta: float) -> Solver:
    if name not in SOLVERS:
        raise ValueError(f"the solver must be one of {', '.join(SOLVERS)}; it is {name!r}")
    rule = SOLVERS[name]
    if rule.regularised and beta <= 0:
        raise ValueError(f"{name} plays the regularised game and needs beta above 0; it is {beta}")
    if not rule.regularised and beta != 0:
        raise ValueError(f"{name} plays the original game and takes no beta; it is {beta}; use gda_kl, mmd or nash_md")
    return rule


def _step_size(
    name: str, rule: Solver, step: Step | None, inv_step: float | None, beta: float
) -> Callable[[int], float]:
    """s of the kernel at each t, checked to lie where (1 - s beta) is a weight."""
    if step is not None and inv_step is not None:
        raise ValueError("give step or its inverse inv_step, not both")
    if inv_step is not None:
        step = 1 / inv_step
    if step is None:
        if rule.schedule is None:
            raise ValueError(f"{name} has no step size of its own: give step, or its inverse inv_step")
        step = rule.schedule(beta)

    def size(t: int) -> float:
        eta = step(t) if callable(step) else step
        s = eta / (1 + eta * beta) if rule.implicit else eta
        if not (s > 0 and s * beta <= 1 + 1e-12):
            raise ValueError(f"{name}'s step must be above 0 and at most 1 / beta; it is {eta} at t = {t}, beta {beta}")
        return s

    return size


# -- solutions ---------------------------------------------------------------------------------------------------------


def regularised_nash(preference: Tensor, mu: Tensor, beta: float, tolerance: float = 1e-13) -> Tensor:
    """The Nash policy of the game with payoff P - beta KL(own || mu), unique for beta > 0: [N, N], [N] -> [N].

    It solves pi = mu exp(P pi / beta) / Z (arXiv:2312.00886), found by Newton's method in log-probs with step halving,
    along a path of betas that halve down to the one asked for. The Jacobian I - (I - 1 q') P (diag pi - pi pi') / beta
    never is singular, because P - 1/2 is antisymmetric, which leaves the product imaginary eigenvalues.

    >>> regularised_nash(cycle(), torch.ones(3).double() / 3, 0.1)
    tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """
    check_preferences(preference)
    if not (beta > 0 and (mu > 0).all()):
        raise ValueError(f"the regularised game needs beta above 0 (it is {beta}) and every entry of mu positive")
    game, log_mu = preference.double() - 0.5, mu.double().log().log_softmax(-1)
    z = log_mu
    for halvings in range(max(0, math.ceil(-math.log2(beta))), -1, -1):
        z = _fixed_point(z, game / (beta * 2**halvings), log_mu, tolerance)
    gap = (z.exp() - (log_mu + game @ z.exp() / beta).softmax(-1)).abs().max()
    if min(beta, 1.0) * gap > 1e-11:  # rounding of payoffs counts 1 / beta times
        raise RuntimeError(f"the regularised game was not solved at beta = {beta}: the residual is {float(gap):.1e}")
    return z.exp()


def _fixed_point(z: Tensor, game: Tensor, log_mu: Tensor, tolerance: float) -> Tensor:
    """z = log_softmax(log mu + game softmax(z)) from the guess z, [N], all log-probs."""

    def residual(z: Tensor) -> tuple[Tensor, Tensor]:
        reply = (log_mu + game @ z.softmax(-1)).log_softmax(-1)
        return z - reply, reply

    gap, reply = residual(z)
    while gap.abs().max() > tolerance * (1 + z.abs().max()):
        pi = z.softmax(-1)
        slope = game @ (pi.diag() - torch.outer(pi, pi))
        jacobian = torch.eye(len(z), dtype=z.dtype) - slope + reply.exp() @ slope
        direction = torch.linalg.solve(jacobian, gap)
        for halvings in range(30):
            trial = z - direction * 0.5**halvings
            new_gap, new_reply = residual(trial)
            if new_gap.norm() < gap.norm():
                break
        else:
            break  # the floor of float64
        z, gap, reply = trial, new_gap, new_reply
    return reply


def copeland_scores(preference: Tensor, margins: bool = False) -> Tensor:
    """Wins minus losses of each option against the others, [N]; with `margins`, the sum of 2 P - 1 instead."""
    balance = 2 * preference - 1
    return balance.sum(-1) if margins else torch.where(balance.abs() > 1e-12, balance.sign(), 0.0).sum(-1)


def copeland_winner(preference: Tensor, margins: bool = False) -> set[int]:
    """The options that beat the most others, net of those they lose to (Copeland 1951); often more than one.

    >>> copeland_winner(four_options())
    {0, 3}
    """
    check_preferences(preference)
    scores = copeland_scores(preference, margins)
    return {int(i) for i in (scores >= scores.max() - 1e-12).nonzero()}
