"""Policy gradients: what an estimator is on average, every group enumerated with its chance."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from fiducial.config import Run
from fiducial.core.method import KL, Method
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Tokens
from fiducial.exact.optima import expected_reward_gradient, grpo_factor
from fiducial.exact.tables import TokenTree
from fiducial.prove.problems import BIAS_BOUND, Check, exact_run, ready, solve, value_and_gradient
from fiducial.train.measure import Meter


def rollout_tokens(tree: TokenTree, members: tuple[int, ...], rewards: Tensor) -> Tokens:
    """One group: the responses numbered `members`, with their rewards [Y]."""
    responses = tree.responses()
    rows = [Encoded([0, *responses[y]], [False] + [True] * len(responses[y])) for y in members]
    tokens = collate(rows, group=[0] * len(rows), dtype=torch.float64)
    tokens.extra["rewards"] = rewards[list(members)]
    tokens.extra["greedy_rewards"] = rewards[tree.greedy()].expand(len(members))
    return tokens


def expected_gradient(
    run: Run, method: Method, tree: TokenTree, rewards: Tensor, ref: TokenTree | None, rows: int | None = None
) -> Tensor:
    """The trainer's gradient averaged over every ordered group of `sampling.n` responses, by their exact chances."""
    chances = tree.response_logprobs().detach().exp()
    expected = torch.zeros_like(tree.theta).flatten()
    for members in product(range(len(chances)), repeat=run.sampling.n):
        parts, batch = ready(run, method, tree, rollout_tokens(tree, members, rewards), ref)
        _, gradient = value_and_gradient(run, method, parts, batch, rows or len(members))
        expected += chances[list(members)].prod() * gradient
    return expected


def objective_gradient(
    tree: TokenTree, rewards: Tensor, kl_weight: float = 0.0, ref: TokenTree | None = None
) -> Tensor:
    """Exact gradient of E[R - kl_weight log(pi / ref)], flat."""

    def expectation() -> Tensor:
        logprobs = tree.response_logprobs()
        gain = rewards
        if ref is not None:
            gain = rewards - kl_weight * (logprobs - ref.response_logprobs().detach())
        return (logprobs.exp() * gain).sum()

    return expected_reward_gradient(tree.theta, expectation).flatten()


TREE_REWARDS = torch.tensor([1.0, 0.2, -0.5, 0.7, 0.0, 2.0, -1.0]).double()  # the 7 responses of 3 tokens, depth 2


def policy_gradient(method: Method) -> list[Check]:
    """Unbiased: averaged over all groups the gradient is that of the expected reward, with a KL in it too."""
    tree, ref = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=6)
    goal = -objective_gradient(tree, TREE_REWARDS)
    checks = []
    for n in (2, 3):
        found = expected_gradient(exact_run(method, n=n), method, tree, TREE_REWARDS, None)
        error = float((found - goal).abs().max())
        checks.append(Check(method.name, f"enumerated bias, {n} completions", error, BIAS_BOUND))
    kl = KL(0.3, "k1", "reward")
    found = expected_gradient(exact_run(method, kl, n=2), method, tree, TREE_REWARDS, ref)
    error = float((found + objective_gradient(tree, TREE_REWARDS, 0.3, ref)).abs().max())
    checks.append(Check(method.name, "enumerated bias with the KL in the reward", error, BIAS_BOUND))
    return [*checks, *_ascent(method)]


class TreeFeed:
    """Every group of two responses with its chance under the tree as it is now: the exact on-policy expectation."""

    def __init__(self, tree: TokenTree, rewards: Tensor):
        members = list(product(range(len(rewards)), repeat=2))
        groups = [rollout_tokens(tree, pair, rewards) for pair in members]
        self.tree, self.rewards, self.members = tree, rewards, torch.tensor(members)
        width = max(g.input_ids.shape[1] for g in groups)
        pad = torch.nn.functional.pad
        self.tokens = Tokens(
            input_ids=torch.cat([pad(g.input_ids, (0, width - g.input_ids.shape[1])) for g in groups]),
            mask=torch.cat([pad(g.mask, (0, width - g.mask.shape[1])) for g in groups]),
            weight=torch.ones(2 * len(groups), dtype=torch.float64),
            group=torch.arange(len(groups)).repeat_interleave(2),
            extra={name: torch.cat([g.extra[name] for g in groups]) for name in ("lengths", "rewards")},
        )

    def batch(self, step: int, meter: Meter) -> Tokens:
        chances = self.tree.response_logprobs().detach().exp()[self.members].prod(-1)
        greedy = self.rewards[self.tree.greedy()].expand(2 * len(chances))
        extra = {**self.tokens.extra, "greedy_rewards": greedy}
        return replace(self.tokens, weight=chances.repeat_interleave(2), extra=extra)


def _ascent(method: Method) -> list[Check]:
    """The trainer on exact expectations ends at the optimum of reward minus KL: ref exp(R / beta) / Z."""
    beta, checks = 0.5, []
    tree, ref = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=5)
    run = exact_run(method, KL(beta, "k1", "reward"), steps=800)
    solve(run, method, tree, TreeFeed(tree, TREE_REWARDS), ref)
    goal = (ref.response_logprobs().detach() + TREE_REWARDS / beta).softmax(-1)
    error = float((tree.response_logprobs().detach().exp() - goal).abs().sum() / 2)
    checks.append(Check(method.name, "trained tree = ref exp(R/beta)/Z, total variation", error, 1e-4))
    return checks


def success_gradient(method: Method) -> list[Check]:
    """Binary rewards: averaged over all groups the gradient is c_G(p) times that of the success probability p."""
    checks = []
    epsilon = method.hparams.get("std_epsilon", 0.0)
    std = method.hparams.get("std", "population")
    for depth, per, sizes in ((1, method.per, (2, 3, 4)), (2, "sequence_sum", (2, 3))):
        tree = TokenTree(3, depth, seed=7)
        rewards = torch.tensor([float(y % 2) for y in range(len(tree.responses()))]).double()
        success = float((tree.response_logprobs().detach().exp() * rewards).sum())
        slope = objective_gradient(tree, rewards)
        for n in sizes:
            found = expected_gradient(exact_run(method, n=n, per=per), method, tree, rewards, None)
            error = float((found + grpo_factor(success, n, epsilon, std) * slope).abs().max())
            name = f"enumerated gradient = c_G(p) grad p, G = {n}, up to {depth} token{'s' * (depth > 1)}"
            checks.append(Check(method.name, name, error, BIAS_BOUND))
    return checks


def mean_only_gradient(method: Method) -> list[Check]:
    """Credit that is only centred on its group: averaged over all groups, (1 - 1/G) of the exact gradient."""
    tree, checks = TokenTree(3, 2, seed=5), []
    goal = -objective_gradient(tree, TREE_REWARDS)
    for n in (2, 3):
        run = exact_run(method, n=n)  # its constant is 4
        found = expected_gradient(run, method, tree, TREE_REWARDS, None)
        scale = (1 - 1 / n) / (run.constant if method.per == "constant" else 1.0)
        error = float((found - scale * goal).abs().max())
        checks.append(
            Check(method.name, f"enumerated gradient = (1 - 1/G) of the exact one, G = {n}", error, BIAS_BOUND)
        )
    return checks
