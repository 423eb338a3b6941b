"""Methods that solve a problem around the policy that sampled: what a whole step ends at."""

from __future__ import annotations

import torch
from torch import Tensor

from fiducial.core.method import Method
from fiducial.core.types import Tokens
from fiducial.exact.optima import rlhf_optimum
from fiducial.exact.tables import TokenTree
from fiducial.prove.gradients import (
    TREE_REWARDS,
    TreeFeed,
    expected_gradient,
    objective_gradient,
    rollout_tokens,
)
from fiducial.prove.problems import BIAS_BOUND, Check, FixedFeed, exact_run, ready, solve, value_and_gradient
from fiducial.train.learner import Learner
from fiducial.train.measure import Meter

TILT_BOUND = 1e-4  # total variation


def held(batch: Tokens, old: TokenTree) -> Tokens:
    """The batch with the log-probs of the tree that sampled it, however the policy moves."""
    with torch.no_grad():
        batch.extra["old_logprobs"] = Learner(old)(batch)["logprobs"]
    return batch


def chances_of(tree: TokenTree) -> Tensor:
    """[Y] of every response."""
    return tree.response_logprobs().detach().exp()


def distance(tree: TokenTree, goal: Tensor) -> float:
    """Total variation between the tree and a distribution over its responses."""
    return float((chances_of(tree) - goal).abs().sum() / 2)


def mirror_descent(method: Method) -> list[Check]:
    """A step solved to the end is old exp(A / prox_coef) / Z, and better; its first update is the policy gradient."""
    tree, checks = TokenTree(3, 2, seed=5), []
    goal = -objective_gradient(tree, TREE_REWARDS)
    for n in (2, 3):
        found = expected_gradient(exact_run(method, n=n), method, tree, TREE_REWARDS, None)
        error = float((found - goal).abs().max())
        checks.append(Check(method.name, f"enumerated bias of the first update, {n} completions", error, BIAS_BOUND))
    for prox, depth, level in ((0.5, 2, "sequence"), (2.0, 1, "token")):
        old, tree = TokenTree(3, depth, seed=5), TokenTree(3, depth, seed=5)
        rewards = TREE_REWARDS[: len(old.responses())]
        run = exact_run(method, steps=500, hparams={"prox_coef": prox, "ratio_level": level})
        solve(run, method, tree, FixedFeed(held(TreeFeed(old, rewards).batch(0, Meter()), old)))
        error = distance(tree, rlhf_optimum(chances_of(old), rewards, prox))
        name = f"a step ends at old exp(A/prox_coef)/Z, {level} ratio, prox_coef = {prox}, total variation"
        checks.append(Check(method.name, name, error, TILT_BOUND))
        gain = float((chances_of(tree) - chances_of(old)) @ rewards)
        checks.append(Check(method.name, f"and raises the reward ({level}, {prox})", max(0.0, -gain), 0.0))
    return checks


def in_proportion(tree: TokenTree, rewards: Tensor, number: int) -> Tokens:
    """One group of `number` responses, each as often as its chance says: its sums are exact expectations."""
    times = (chances_of(tree) * number).round().long()
    members = tuple(torch.arange(len(times)).repeat_interleave(times).tolist())
    return rollout_tokens(tree, members, rewards)


def kimi_optimum(method: Method) -> list[Check]:
    """With the exact log Z the loss is least at old exp(r / tau) / Z, where the squared gap is 0; the first update is
    (1 - 1/k) of the policy gradient."""
    checks, tree = [], TokenTree(3, 2, seed=5)
    goal = -objective_gradient(tree, TREE_REWARDS)
    for n in (2, 3):
        found = expected_gradient(exact_run(method, n=n), method, tree, TREE_REWARDS, None)
        error = float((found - (1 - 1 / n) * goal).abs().max())
        checks.append(Check(method.name, f"the first update is (1 - 1/k) of the gradient, k = {n}", error, BIAS_BOUND))
    half = torch.tensor([0.5, 0.25, 0.25]).double().log().expand(1, 16, 3)  # every response has a chance of n / 16
    for tau in (0.5, 2.0):
        old, tree = TokenTree(3, 2, half), TokenTree(3, 2, half)
        run = exact_run(method, steps=400, hparams={"tau": tau, "baseline": "log_partition"})
        feed = FixedFeed(held(in_proportion(old, TREE_REWARDS, 16), old))
        solve(run, method, tree, feed)
        error = distance(tree, rlhf_optimum(chances_of(old), TREE_REWARDS, tau))
        name = f"a step ends at old exp(r/tau)/Z, tau = {tau}, total variation"
        checks.append(Check(method.name, name, error, TILT_BOUND))
        parts, batch = ready(run, method, tree, feed.batch(0, Meter()), None)
        least, _ = value_and_gradient(run, method, parts, batch, batch.num_units)
        square = float((batch.extra["advantages"][:, 1].square() / (2 * tau)).mean())  # what the square has besides
        checks.append(Check(method.name, f"and the squared gap is 0 there, tau = {tau}", abs(least + square), 1e-8))
    return checks
