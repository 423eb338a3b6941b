"""Closed forms of methods whose data or reference moves with the policy."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from fiducial.core.method import Method
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Tokens
from fiducial.exact.games import regularised_nash
from fiducial.exact.optima import bradley_terry, moving_reference_optimum, rlhf_optimum, spin_step
from fiducial.exact.selection import best_of_n
from fiducial.exact.tables import SoftmaxTable
from fiducial.prove.preferences import CYCLE, REWARDS
from fiducial.prove.problems import (
    FIT_BOUND,
    UNTIL_STILL,
    Check,
    FixedFeed,
    exact_run,
    make_parts,
    pairs_of,
    preference_pairs,
    random_table,
    solve,
)
from fiducial.train.loop import steps
from fiducial.train.measure import Meter
from fiducial.train.parts import State


class OwnPairs:
    """Pairs drawn from the table as it is now, labelled by P: the exact on-policy expectation."""

    def __init__(self, model: SoftmaxTable, preference: Tensor):
        self.model, self.preference = model, preference

    def batch(self, step: int, meter: Meter) -> Tokens:
        return preference_pairs(self.preference, self.model.probabilities())


def regularised_nash_policy(method: Method) -> list[Check]:
    """On its own samples, labelled by a cycle, the policy ends at the Nash policy of the KL-regularised game."""
    beta, start = 0.5, random_table(4)[:1]
    model, ref = SoftmaxTable(start), SoftmaxTable(start)
    run = exact_run(method, steps=800, hparams={"beta": beta})
    solve(run, method, model, OwnPairs(model, CYCLE[None]), ref)
    goal = regularised_nash(CYCLE, ref.probabilities()[0], beta)
    error = float((model.probabilities()[0] - goal).abs().max())
    return [Check(method.name, "fixed point on its own samples = regularised Nash", error, FIT_BOUND)]


def own_samples(method: Method) -> list[Check]:
    """On its own samples, labelled by Bradley-Terry, the fixed point is still ref exp(r / beta) / Z."""
    beta, start = 0.5, random_table(4)[:1]
    model, ref = SoftmaxTable(start), SoftmaxTable(start)
    run = exact_run(method, steps=800, hparams={"beta": beta})
    solve(run, method, model, OwnPairs(model, bradley_terry(REWARDS[:1])), ref)
    error = float((model.probabilities() - rlhf_optimum(ref.probabilities(), REWARDS[:1], beta)).abs().max())
    return [Check(method.name, "fixed point on its own samples = ref exp(r/beta)/Z", error, FIT_BOUND)]


def self_play_step(method: Method) -> list[Check]:
    """Demonstrations against samples of the last round: the trained table is pi (data / pi)^(1/beta) / Z."""
    data, start, checks = random_table(8).softmax(-1), random_table(4), []
    for beta in (1.0, 2.0):
        model, opponent = SoftmaxTable(start), SoftmaxTable(start)
        law = opponent.probabilities()
        feed = FixedFeed(pairs_of(data[:, :, None] * law[:, None, :]))
        run = exact_run(method, steps=800, hparams={"beta": beta, "iterations": 1})
        solve(run, method, model, feed, opponent)
        error = float((model.probabilities() - spin_step(law, data, beta)).abs().max())
        checks.append(Check(method.name, f"one round = pi (data/pi)^(1/beta)/Z, beta = {beta:g}", error, FIT_BOUND))
    return checks


def moving_reference(method: Method) -> list[Check]:
    """Hard updates after exact solves: n rounds end at ref exp(n r / beta) / Z; right after one the loss is log 2."""
    beta, rounds, start, law = 1.0, 3, random_table(4), random_table(3).softmax(-1)
    model, feed = SoftmaxTable(start), FixedFeed(preference_pairs(bradley_terry(REWARDS), law))
    still = exact_run(method, steps=800, optim=UNTIL_STILL, hparams={"beta": beta, "alpha": 0.0})
    parts = make_parts(method, model, feed, SoftmaxTable(start))
    assert parts.ref
    for number in range(rounds):
        if number:
            parts.ref.move(parts.learner, 1.0, parts.runtime)
        for _ in steps(still, method, parts, State.begin(still, parts)):
            pass
    goal = moving_reference_optimum(start.softmax(-1), REWARDS, beta, rounds)
    error = float((model.probabilities() - goal).abs().max())
    moved = exact_run(method, steps=12, optim=UNTIL_STILL, hparams={"beta": beta, "alpha": 1.0, "sync_steps": 5})
    parts = make_parts(method, model, feed, SoftmaxTable(start))
    losses = [r.metrics["loss"] for r in steps(moved, method, parts, State.begin(moved, parts))]
    gap = max(abs(losses[step] - math.log(2)) for step in (5, 10))
    return [
        Check(method.name, f"after {rounds} rounds = ref exp(n r/beta)/Z", error, FIT_BOUND),
        Check(method.name, "loss right after a hard update = log 2", gap, 1e-12),
    ]


def best_of_several(method: Method) -> list[Check]:
    """Keeping the best of N and imitating it: the trained table is F(y)^N - F(y-)^N, every group enumerated."""
    policy, rewards, checks = random_table(4)[0, :4].softmax(-1), torch.tensor([0.3, -1.0, 2.0, 0.1]).double(), []
    for n in (2, 3):
        chance = torch.zeros(4, dtype=torch.float64)
        for members in product(range(4), repeat=n):
            given = {"rewards": rewards[list(members)], "draws": torch.zeros(n + 1)}
            for choice in method.make_choices(given, method.hparams):
                chance[members[choice.members[0]]] += policy[list(members)].prod() * choice.weight
        tokens = collate([Encoded([0, y], [False, True]) for y in range(4)])
        tokens.weight = chance
        model = SoftmaxTable(torch.zeros(1, 4))
        solve(exact_run(method, steps=2000), method, model, FixedFeed(tokens))
        error = float((model.probabilities()[0] - best_of_n(policy, rewards, n)).abs().max())
        checks.append(Check(method.name, f"trained table = law of the best of {n}", error, FIT_BOUND))
    return checks
