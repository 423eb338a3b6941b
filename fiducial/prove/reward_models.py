"""Closed forms of reward, cost and preference models: what the fitted scores must be."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from fiducial.core.method import Method
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Tokens
from fiducial.exact.optima import bradley_terry, davidson
from fiducial.exact.tables import ScoreTree
from fiducial.prove.preferences import CYCLE, REWARDS
from fiducial.prove.problems import (
    FIT_BOUND,
    Check,
    FixedFeed,
    exact_run,
    pairs_of,
    preference_pairs,
    random_table,
    solve,
)


def bt_rewards(method: Method) -> list[Check]:
    """Exact Bradley-Terry pairs: the fitted scores are the true rewards up to a constant per prompt."""
    law = random_table(3).softmax(-1)
    fitted = fit(method, preference_pairs(bradley_terry(REWARDS), law))
    return [Check(method.name, "fitted scores = rewards + constant", _centred(fitted), FIT_BOUND)]


def davidson_rewards(method: Method) -> list[Check]:
    """Exact wins and ties of Davidson's model: the fitted scores are the true rewards up to a constant per prompt."""
    law, nu = random_table(3).softmax(-1), float(method.hparams["nu"])
    chance = law[:, :, None] * law[:, None, :]
    outcomes = davidson(REWARDS[:, :, None], REWARDS[:, None, :], nu)
    wins, ties = pairs_of(chance * outcomes[..., 0]), pairs_of(chance * outcomes[..., 2] / 2)
    both = joined([wins, ties])
    both.extra["tied"] = torch.cat([torch.zeros(wins.num_units), torch.ones(ties.num_units)]).bool().repeat(2)
    return [Check(method.name, "fitted scores = rewards + constant", _centred(fit(method, both)), FIT_BOUND)]


def absolute_costs(method: Method) -> list[Check]:
    """Exact comparisons and safety labels: the fitted costs are the true ones, with no constant left free."""
    law = random_table(3).softmax(-1)
    worse = law[:, :, None] * law[:, None, :] * bradley_terry(REWARDS)
    harmful = torch.sigmoid(REWARDS)
    parts = []
    for first, second in product((1.0, -1.0), repeat=2):
        sign = [harmful if s > 0 else 1 - harmful for s in (first, second)]
        part = pairs_of(worse * sign[0][:, :, None] * sign[1][:, None, :])
        rows = len(part.input_ids)
        part.extra["chosen_harm"] = torch.full((rows,), first, dtype=torch.float64)
        part.extra["rejected_harm"] = torch.full((rows,), second, dtype=torch.float64)
        parts.append(part)
    error = float((fit(method, joined(parts)) - REWARDS).abs().max())
    return [Check(method.name, "fitted costs = costs", error, FIT_BOUND)]


def preference_table(method: Method) -> list[Check]:
    """Any preferences, a cycle too: the fitted table is P itself, which no reward can express."""
    answers = len(CYCLE)
    where = [(i, j) for i, j in product(range(answers), repeat=2) if i != j]
    rows = [Encoded([0, i, j], [False, True, True]) for i, j in where + [(j, i) for i, j in where]]
    tokens = collate(rows, pairs=True)
    tokens.weight = torch.tensor([float(CYCLE[at]) for at in where] * 2, dtype=torch.float64)
    for name in ("margin", "pref_prob"):
        tokens.extra[name] = torch.ones(len(rows), dtype=torch.float64)
    model = ScoreTree(vocab=answers, depth=2)
    solve(exact_run(method, steps=800), method, model, FixedFeed(tokens))
    score = model(tokens.input_ids, tokens.extra["lengths"]).detach()
    n = tokens.num_units
    fitted = torch.sigmoid((score[:n] - score[n:]) / 2)
    goal = torch.tensor([float(CYCLE[at]) for at in where], dtype=torch.float64)
    return [Check(method.name, "fitted preferences = P, a cycle", float((fitted - goal).abs().max()), FIT_BOUND)]


def fit(method: Method, tokens: Tokens) -> Tensor:
    """Scores [S, A] after training on an exact expectation."""
    model = ScoreTree(vocab=5, depth=1, prompts=3)
    solve(exact_run(method, steps=800), method, model, FixedFeed(tokens))
    return model.table()


def _centred(fitted: Tensor) -> float:
    gap = (fitted - fitted.mean(-1, keepdim=True)) - (REWARDS - REWARDS.mean(-1, keepdim=True))
    return float(gap.abs().max())


def joined(parts: list[Tokens]) -> Tokens:
    """Batches of pairs as one: all chosen rows first."""

    def join(tensors: list[Tensor]) -> Tensor:
        halves = [t.chunk(2) for t in tensors]
        return torch.cat([h[0] for h in halves] + [h[1] for h in halves])

    names = set.intersection(*(set(part.extra) for part in parts))
    return Tokens(
        input_ids=join([p.input_ids for p in parts]),
        mask=join([p.mask for p in parts]),
        weight=join([p.weight for p in parts]),
        group=join([p.group for p in parts]),
        extra={name: join([p.extra[name] for p in parts]) for name in names},
        pairs=True,
    )
