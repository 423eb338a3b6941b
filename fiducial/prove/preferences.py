"""Closed forms of imitation and of learning from preferences: where the trainer must end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fiducial.core.method import Method
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Tokens
from fiducial.exact.divergences import f_optimum
from fiducial.exact.optima import bradley_terry, ipo_optimum, psi_optimum, rlhf_optimum
from fiducial.exact.tables import SoftmaxTable, TokenTree
from fiducial.prove.problems import FIT_BOUND, Check, FixedFeed, exact_run, preference_pairs, random_table, solve
from fiducial.train.measure import Meter


def empirical_frequency(method: Method) -> list[Check]:
    """Imitation: the table that fits weighted demonstrations is their frequency, and its loss is their entropy."""
    frequency = torch.tensor([[4.0, 2, 1, 1], [1, 1, 1, 5]]).double()
    rows = [Encoded([s, a], [False, True]) for s in range(2) for a in range(4)]
    tokens = collate(rows)
    tokens.weight = frequency.flatten()
    model = SoftmaxTable(torch.zeros(2, 4))
    solve(exact_run(method, steps=800), method, model, FixedFeed(tokens))
    goal = frequency / frequency.sum(-1, keepdim=True)
    error = float((model.probabilities() - goal).abs().max())
    return [Check(method.name, "trained table = empirical frequency", error, FIT_BOUND)]


CYCLE = torch.tensor(
    [
        [0.5, 0.9, 0.2, 0.6, 0.7],
        [0.1, 0.5, 0.7, 0.5, 0.3],
        [0.8, 0.3, 0.5, 0.9, 0.4],
        [0.4, 0.5, 0.1, 0.5, 0.8],
        [0.3, 0.7, 0.6, 0.2, 0.5],
    ],
    dtype=torch.float64,
)  # no order of five answers agrees with it
REWARDS = torch.tensor([[1.0, 0.3, -0.2, 0.0, -1.0], [0.0, 2.0, 0.5, -0.5, 0.1], [0.2, 0.1, 0.0, -0.1, -0.2]]).double()


def rlhf(method: Method) -> list[Check]:
    """Exact Bradley-Terry pairs under any full-support law: the trained table is ref exp(r / beta) / Z."""
    return _preference_fit(
        method,
        "trained table = ref exp(r/beta)/Z",
        bradley_terry(REWARDS),
        lambda ref, law, beta: rlhf_optimum(ref, REWARDS, beta),
    )


def ipo(method: Method) -> list[Check]:
    """Any preferences, intransitive ones too: the trained table is ref exp(P(y beats law) / beta) / Z."""
    preference = CYCLE.expand(3, 5, 5)
    return _preference_fit(
        method,
        "trained table = ref exp(P law/beta)/Z",
        preference,
        lambda ref, law, beta: torch.stack([ipo_optimum(ref[s], CYCLE, law[s], beta) for s in range(3)]),
    )


def f_divergence(method: Method) -> list[Check]:
    """Exact Bradley-Terry pairs: the optimum of reward minus an f-divergence, its multiplier found by a root search."""
    checks = []
    for family in method.choices.get("family", ("chi2_kl",)):
        given = {name: value for name, value in {"family": family, "alpha": 0.5}.items() if name in method.hparams}
        checks += _preference_fit(
            method,
            f"trained table = optimum under {family}",
            bradley_terry(REWARDS),
            lambda ref, law, beta, family=family: f_optimum(ref, REWARDS, beta, family, 0.5).policy,
            **given,
        )
    return checks


def psi(method: Method) -> list[Check]:
    """Known preferences: the trained table is ref exp(s / beta) / Z with s = psi(P) law, for each psi."""
    return [
        check
        for kind in method.choices["psi"]
        for check in _preference_fit(
            method,
            f"trained table = ref exp(psi(P) law/beta)/Z, {kind}",
            CYCLE.expand(3, 5, 5),
            lambda ref, law, beta, kind=kind: torch.stack(
                [psi_optimum(ref[s], CYCLE, law[s], beta, kind) for s in range(3)]
            ),
            psi=kind,
        )
    ]


def tree_optimum(method: Method) -> list[Check]:
    """Token by token on responses of several tokens: sequence-level ref exp(r / beta) / Z all the same."""
    rewards = torch.tensor([1.0, 0.2, -0.5, 0.7, 0.0, 2.0, -1.0]).double()  # the 7 responses of 3 tokens, depth 2
    scale = "beta" if "beta" in method.hparams else "alpha"
    given = {
        scale: 0.5,
        **{name: value for name, value in {"gamma": 1.0, "lam": 0.0}.items() if name in method.hparams},
    }
    model, ref = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=5)
    run = exact_run(method, steps=800, hparams=given)
    solve(run, method, model, FixedFeed(tree_pairs(ref, bradley_terry(rewards))), ref)
    goal = (ref.response_logprobs().detach() + rewards / 0.5).softmax(-1)
    error = float((model.response_logprobs().detach().exp() - goal).abs().max())
    return [Check(method.name, "trained tree = ref exp(r/beta)/Z", error, FIT_BOUND)]


def tree_pairs(tree: TokenTree, preference: Tensor) -> Tokens:
    """Every ordered pair of responses of a tree, weighted by its chance under it and P(i beats j), [Y, Y]."""
    chances, rows = tree.response_logprobs().detach().exp(), []
    where = [(i, j) for i in range(len(chances)) for j in range(len(chances)) if i != j]
    for y in [i for i, _ in where] + [j for _, j in where]:
        response = tree.responses()[y]
        rows.append(Encoded([0, *response], [False] + [True] * len(response)))
    tokens = collate(rows, pairs=True)
    weight = [float(chances[i] * chances[j] * preference[i, j]) for i, j in where]
    tokens.weight = torch.tensor(weight * 2, dtype=torch.float64)
    tokens.extra["margin"] = torch.zeros(len(rows), dtype=torch.float64)
    tokens.extra["pref_prob"] = torch.ones(len(rows), dtype=torch.float64)
    return tokens


class LabelledFeed:
    """Two answers, each wanted with its share: the exact expectation, and the exact KL in place of its estimate."""

    def __init__(self, model: SoftmaxTable, ref: SoftmaxTable, wanted: Tensor):
        self.model, self.ref = model, ref
        rows = [Encoded([0, y], [False, True]) for y in (0, 0, 1, 1)]
        self.tokens = collate(rows)
        self.tokens.weight = torch.stack([wanted, 1 - wanted], -1).flatten()
        self.tokens.extra["desirable"] = torch.tensor([True, False, True, False])

    def batch(self, step: int, meter: Meter) -> Tokens:
        pi, ref = self.model.probabilities()[0], self.ref.probabilities()[0]
        self.tokens.extra["batch_kl"] = (pi * (pi / ref).log()).sum()
        return self.tokens


def majority(method: Method) -> list[Check]:
    """Contradictory labels: what most want takes all the mass, however unlikely it was; DPO would keep the odds."""
    start = torch.tensor([[0.05, 0.95]]).double().log()
    model, ref = SoftmaxTable(start), SoftmaxTable(start)
    feed = LabelledFeed(model, ref, torch.tensor([0.6, 0.4]).double())
    solve(exact_run(method, steps=800, hparams={"beta": 1.0}), method, model, feed, ref)
    return [Check(method.name, "mass that the minority keeps", 1 - float(model.probabilities()[0, 0]), 1e-3)]


def _preference_fit(
    method: Method,
    name: str,
    preference: Tensor,
    optimum: Callable[[Tensor, Tensor, float], Tensor],
    **hparams: Any,
) -> list[Check]:
    checks = []
    law, start = random_table(3).softmax(-1), random_table(4)
    for beta in (0.5,) if hparams else (0.5, 1.0):
        model, ref = SoftmaxTable(start), SoftmaxTable(start)
        run = exact_run(method, steps=800, hparams={"beta": beta, **hparams})
        solve(run, method, model, FixedFeed(preference_pairs(preference, law)), ref)
        error = float((model.probabilities() - optimum(ref.probabilities(), law, beta)).abs().max())
        checks.append(Check(method.name, f"{name}, beta = {beta:g}", error, FIT_BOUND))
    return checks
