"""Demonstrations beside rewards: where all rewards agree, what is left is imitation."""

import pytest
import torch

from fiducial.config import Mix, Optim
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.prove.problems import FixedFeed, exact_run, make_parts
from fiducial.train.loop import steps
from fiducial.train.parts import State

DEMOS = [Encoded([0, 1, 2], [False, True, True]), Encoded([0, 2, 0], [False, True, True])]


def demos():
    tokens = collate(DEMOS, dtype=torch.float64)
    tokens.extra |= {"place": torch.arange(2), "step_size": torch.tensor(2)}
    return FixedFeed(tokens)


def rollouts(rewards):
    tokens = collate([Encoded([0, a], [False, True]) for a in (1, 2)], group=[0, 0], dtype=torch.float64)
    tokens.extra |= {"rewards": torch.tensor(rewards).double(), "place": torch.arange(2), "step_size": torch.tensor(2)}
    return FixedFeed(tokens)


def trained(method, feed, mixed=None, weight=0.0):
    tree = TokenTree(3, 2, seed=3)
    run = exact_run(METHODS[method], steps=5, optim=Optim(lr=0.01, clip=0.0), mix=Mix("demos", weight, 2))
    parts = make_parts(METHODS[method], tree, feed, None)
    parts.mixed = mixed
    reports = list(steps(run, METHODS[method], parts, State.begin(run, parts)))
    return tree.theta.detach(), [report.metrics for report in reports]


def test_with_rewards_that_agree_only_imitation_is_left():
    imitated, plain = trained("sft", demos())
    mixed, found = trained("rloo", rollouts([1.0, 1.0]), demos(), weight=1.0)
    torch.testing.assert_close(mixed, imitated, atol=1e-12, rtol=0)
    assert [m["loss/mix"] for m in found] == pytest.approx([m["loss"] for m in plain])
    assert [m["loss"] for m in found] == [0] * 5


def test_the_weight_is_that_of_the_likelihood_per_token():
    # AdamW's first step sees only signs, so the gradient itself is looked at through its norm: with weight w it is w
    # times as long where the rewards agree.
    norms = [trained("rloo", rollouts([1.0, 1.0]), demos(), w)[1][0]["grad_norm"] for w in (1.0, 16.0)]
    assert norms[1] == pytest.approx(16 * norms[0])
