"""References that are reset: the exact path of the optimum, an optimizer that forgets, and what triggers it."""

from dataclasses import replace

import pytest
import torch

from fiducial.config import Optim
from fiducial.core.method import KL
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.prove.gradients import TREE_REWARDS, TreeFeed
from fiducial.prove.problems import exact_run, make_parts
from fiducial.train.loop import steps
from fiducial.train.parts import State

METHOD = METHODS["prorl"]
BETA = 2.0


def trained(rounds, length=250, **hparams):
    """(the tree after so many rounds of `length` steps, the start, each step's metrics and the counts of AdamW.)"""
    tree, start = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=5)
    hparams = {"std": "none", "clip_high": 100.0, "clip_low": 1.0, **hparams}
    run = exact_run(METHOD, KL(BETA, "k1", "reward"), steps=rounds * length, per="sequence_sum", hparams=hparams)
    run = replace(run, optim=Optim(lr=0.04, clip=0.0, rows_per_pass=100_000, betas=(0.9, 0.99)))
    parts = make_parts(METHOD, tree, TreeFeed(tree, TREE_REWARDS), TokenTree(3, 2, seed=5))
    state, metrics, counts = State.begin(run, parts), [], []
    for report in steps(run, METHOD, parts, state):
        metrics.append(report.metrics)
        counts.append(int(next(iter(state.optimizer.state.values()))["step"]))
    return tree, start, metrics, counts


def distance(tree, start, n):
    goal = (start.response_logprobs().detach() + n * TREE_REWARDS / BETA).softmax(-1)
    return float((tree.response_logprobs().detach().exp() - goal).abs().sum() / 2)


def test_after_n_rounds_the_optimum_is_that_of_n_times_the_reward():
    tree, start, metrics, counts = trained(2, reset_every=250)
    assert distance(tree, start, 2) < 1e-3 < distance(tree, start, 1)
    assert [step for step, m in enumerate(metrics) if m.get("ref/resets")] == [250]
    assert metrics[249]["kl"] > 0.03 and metrics[250]["kl"] == pytest.approx(0, abs=1e-12)  # just reset: they are one
    assert counts[249] == 250 and counts[250] == 1  # AdamW's averages begin anew


def test_without_resets_it_stays_where_it_is():
    tree, start, metrics, counts = trained(2)
    assert distance(tree, start, 1) < 1e-3
    assert not any(m.get("ref/resets") for m in metrics) and counts[-1] == 500


def test_a_kl_that_is_too_large_resets():
    _, _, metrics, _ = trained(1, reset_kl=0.02)
    first = next(step for step, m in enumerate(metrics) if m.get("ref/resets"))
    assert metrics[first - 1]["kl/sequence"] > 0.02 and all(m["kl/sequence"] <= 0.02 for m in metrics[: first - 1])


def test_evaluations_that_stall_are_counted_from_the_best():
    state = State(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0))
    stalled = []
    for value in (0.3, 0.2, 0.4, 0.4, 0.1):
        state.notice({"eval/pass@1": value})
        stalled.append(state.seen["stalled"])
    assert stalled == [0, 1, 0, 1, 2]
