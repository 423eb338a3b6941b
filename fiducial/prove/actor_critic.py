"""Policy and critic on a tree whose values are known exactly."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fiducial.config import Critic, Run
from fiducial.core.method import KL, Method
from fiducial.core.types import Tokens
from fiducial.exact.tables import TokenTree, ValueTree
from fiducial.prove.gradients import TREE_REWARDS, objective_gradient, rollout_tokens
from fiducial.prove.problems import (
    BIAS_BOUND,
    FIT_BOUND,
    UNTIL_STILL,
    Check,
    FixedFeed,
    exact_run,
    make_parts,
    value_and_gradient,
)
from fiducial.train.loop import steps
from fiducial.train.measure import Meter
from fiducial.train.parts import Parts, State
from fiducial.train.prepare import prepare

PLAIN = {"whiten_adv": False}  # what is exact is an expectation, and whitening is not linear


def actor_critic(method: Method) -> list[Check]:
    """With the exact critic the gradient is unbiased for every lam, with lam = 1 for any critic; a critic that learns
    from whole returns ends at the exact values; both together end at the optimum of reward minus KL."""
    tree = TokenTree(3, 2, seed=5)
    goal = -objective_gradient(tree, TREE_REWARDS)
    checks = []
    for lam, exact in ((0.0, True), (0.95, True), (1.0, True), (1.0, False)):
        run = exact_run(method, n=1, per="sequence_sum", hparams={**PLAIN, "lam": lam})
        found = mean_gradient(run, method, tree, TREE_REWARDS, exact)
        critic = "exact critic" if exact else "any critic"
        error = float((found - goal).abs().max())
        checks.append(Check(method.name, f"enumerated bias, lam = {lam:g}, {critic}", error, BIAS_BOUND))
    return [*checks, fitted_critic(method), trained_policy(method)]


TREE_COSTS = torch.tensor([0.5, -1.0, 1.0, 0.0, 2.0, -0.3, 0.1]).double()


def lagrangian(method: Method) -> list[Check]:
    """For every multiplier the gradient is that of (J_R - lam J_C) / (1 + lam) - beta / 2 KL, enumerated."""
    tree, ref, beta = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=6), 0.3
    checks = []
    for combine in method.choices["combine"]:
        for multiplier in (0.1, 1.0, 4.0):
            hparams = {"lam": 1.0, "lambda_init": multiplier, "lambda_lr": 0.0, "combine": combine}
            run = exact_run(method, KL(beta, "k1", "reward"), n=1, per="sequence_sum", hparams=hparams)
            tokens = everything(tree, TREE_REWARDS)
            tokens.extra["costs"] = TREE_COSTS
            parts = make_parts(method, tree, FixedFeed(tokens), ref)
            batch = parts.feed.batch(0, Meter())
            prepare(run, method, parts, State.begin(run, parts), batch, Meter())
            found = value_and_gradient(run, method, parts, batch, len(TREE_REWARDS))[1]
            worth = (TREE_REWARDS - multiplier * TREE_COSTS) / (1 + multiplier)
            error = float((found + objective_gradient(tree, worth, beta / 2, ref)).abs().max())
            name = f"enumerated bias, multiplier {multiplier:g}, combined by {combine}"
            checks.append(Check(method.name, name, error, BIAS_BOUND))
    return checks


def everything(tree: TokenTree, rewards: Tensor) -> Tokens:
    """Every response once, each a prompt's only one, weighted by its chance under the tree as it is now."""
    tokens = rollout_tokens(tree, tuple(range(len(rewards))), rewards)
    tokens.group = torch.arange(len(rewards))
    tokens.weight = tree.response_logprobs().detach().exp()
    return tokens


def mean_gradient(run: Run, method: Method, tree: TokenTree, rewards: Tensor, exact: bool) -> Tensor:
    """The trainer's gradient averaged over all responses by their chances."""
    tokens = everything(tree, rewards)
    parts = make_parts(method, tree, FixedFeed(tokens), None)
    if exact:
        be_exact(parts, tree, rewards)
    batch = parts.feed.batch(0, Meter())
    prepare(run, method, parts, State.begin(run, parts), batch, Meter())
    return value_and_gradient(run, method, parts, batch, len(rewards))[1]


def be_exact(parts: Parts, tree: TokenTree, rewards: Tensor) -> None:
    """Let the critic forecast what the tree really earns."""
    critic = parts.critics["values"].model
    assert isinstance(critic, ValueTree)
    critic.forecast.data[0] = tree.expected(rewards)


def fitted_critic(method: Method) -> Check:
    """The policy stands still while its critic learns from whole returns: it ends at the exact values."""
    tree = TokenTree(3, 2, seed=5)
    tokens = everything(tree, TREE_REWARDS)
    run = exact_run(method, n=1, steps=400, hparams={**PLAIN, "lam": 1.0, "clip_value": 0.0})
    run = replace(run, optim=UNTIL_STILL, critic=Critic(lr_scale=1.0, warmup=run.steps))
    parts = make_parts(method, tree, FixedFeed(tokens), None)
    for _ in steps(run, method, parts, State.begin(run, parts)):
        pass
    exact, critic = tree.expected(TREE_REWARDS), parts.critics["values"].model
    assert isinstance(critic, ValueTree)
    met = torch.tensor([0, 2, 3])  # prefixes after which a token is written: none, 1 and 2; 0 stops
    error = float((critic.forecast.detach()[0] - exact)[met].abs().max())
    return Check(method.name, "trained critic = exact values", error, FIT_BOUND)


class OnPolicy:
    """All responses at their present chances, and the critic exact for the KL-regularised rewards of the present."""

    def __init__(self, parts: Parts, tree: TokenTree, ref: TokenTree, beta: float):
        self.parts, self.tree, self.ref, self.beta = parts, tree, ref, beta

    def batch(self, step: int, meter: Meter) -> Tokens:
        be_exact(self.parts, self.tree, TREE_REWARDS - self.beta * self.log_ratio())
        critic = self.parts.critics["values"].model
        assert isinstance(critic, ValueTree)
        with torch.no_grad():  # what a prefix has already paid is not to come
            ours, theirs = (t.theta.log_softmax(-1)[0, 0] for t in (self.tree, self.ref))
            for token in range(self.tree.vocab):
                critic.forecast[0, token + 1] += self.beta * (ours - theirs)[token]
        return everything(self.tree, TREE_REWARDS)

    def log_ratio(self) -> Tensor:
        return (self.tree.response_logprobs() - self.ref.response_logprobs()).detach()


def trained_policy(method: Method) -> Check:
    """The policy beside its exact critic, with the KL in the reward, ends at ref exp(R / beta) / Z."""
    beta, tree, ref = 0.5, TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=5)
    run = exact_run(method, KL(beta, "k1", "reward"), n=1, steps=600, per="sequence_sum", hparams=PLAIN)
    run = replace(run, optim=UNTIL_STILL)
    parts = make_parts(method, tree, None, ref)
    parts.feed = OnPolicy(parts, tree, ref, beta)
    for _ in steps(run, method, parts, State.begin(run, parts)):
        pass
    goal = (ref.response_logprobs().detach() + TREE_REWARDS / beta).softmax(-1)
    error = float((tree.response_logprobs().detach().exp() - goal).abs().sum() / 2)
    return Check(method.name, "trained tree = ref exp(R/beta)/Z, total variation", error, 1e-4)
