"""Online training on trees that can be enumerated: the project's loop on groups that are drawn from the policy itself.

The prompts of a tree share no parameter, so S prompts are S repetitions: differences come with intervals over them.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fiducial.config import Optim
from fiducial.core.method import KL, Method
from fiducial.core.seeds import mix
from fiducial.core.types import Tokens
from fiducial.exact.tables import TokenTree, ValueTree
from fiducial.methods import METHODS
from fiducial.prove.problems import exact_run, make_parts
from fiducial.train.learner import Learner
from fiducial.train.loop import steps
from fiducial.train.measure import Meter
from fiducial.train.parts import Report, State


class Paths:
    """All responses of a tree at once: the prefix and the token of each of their places, and which places there are."""

    def __init__(self, tree: TokenTree):
        responses = tree.responses()
        self.tree = tree
        self.tokens = pad_sequence([torch.tensor(r) for r in responses], batch_first=True)  # [Y, T]
        self.lengths = torch.tensor([len(r) for r in responses])
        self.mask = torch.arange(self.tokens.shape[1]) < self.lengths[:, None]
        nodes = torch.zeros_like(self.tokens)
        for t in range(1, nodes.shape[1]):
            nodes[:, t] = nodes[:, t - 1] * (tree.vocab + 1) + self.tokens[:, t - 1] + 1
        self.nodes = torch.where(self.mask, nodes, 0)

    def token_logprobs(self, theta: Tensor) -> Tensor:
        """Of every response under logits [S, nodes, V], 0 beyond its end: [S, Y, T]."""
        return torch.where(self.mask, theta.log_softmax(-1)[:, self.nodes, self.tokens], 0.0)

    def logprobs(self, theta: Tensor | None = None) -> Tensor:
        """log pi(y | s) of every response, of the tree as it is unless logits are given: [S, Y]."""
        return self.token_logprobs(self.tree.theta.detach() if theta is None else theta).sum(-1)


class Draws:
    """A feed of n responses to each prompt, [S, n], with their rewards (and costs), drawn anew at each step.

    `stale` is how many steps old the weights are that draw. The sampler adds to each logit a normal number times
    `noise`, drawn once: another engine's arithmetic. It reports its own log-probs, as samplers do. Rewards are
    [S, Y], or [S, Y, K] where chance decides between K equally likely outcomes of a response.
    """

    def __init__(
        self,
        tree: TokenTree,
        rewards: Tensor,
        n: int,
        seed: int,
        costs: Tensor | None = None,
        stale: int = 0,
        noise: float = 0.0,
    ):
        self.paths, self.n, self.seed = Paths(tree), n, seed
        rewards = rewards if rewards.ndim == 3 else rewards[..., None]
        self.outcomes = {"rewards": rewards} | ({"costs": costs[..., None]} if costs is not None else {})
        self.recent: deque[Tensor] = deque(maxlen=stale + 1)
        draw = torch.Generator().manual_seed(mix(seed, "sampler"))
        self.off = noise * torch.randn(tree.theta.shape, generator=draw, dtype=torch.float64)

    def batch(self, step: int, meter: Meter) -> Tokens:
        self.recent.append(self.paths.tree.theta.detach().clone())
        token_logprobs = self.paths.token_logprobs(self.recent[0] + self.off)
        draw = torch.Generator().manual_seed(mix(self.seed, "draws", step))
        chosen = torch.multinomial(token_logprobs.sum(-1).exp(), self.n, replacement=True, generator=draw)
        prompt = torch.arange(len(chosen))[:, None].expand_as(chosen).reshape(-1)
        chosen = chosen.reshape(-1)
        extra = {"sampler_logprobs": _shifted(token_logprobs[prompt, chosen])}
        for name, of in self.outcomes.items():
            extra[name] = of[prompt, chosen, torch.randint(of.shape[-1], chosen.shape, generator=draw)]
        return rows(self.paths, prompt, chosen, extra)


def _shifted(values: Tensor) -> Tensor:
    """With the prompt's place in front, [N, T] -> [N, T + 1]."""
    return torch.nn.functional.pad(values, (1, 0))


def rows(paths: Paths, prompt: Tensor, response: Tensor, extra: dict[str, Tensor]) -> Tokens:
    """A batch of responses [N] to prompts [N]; those of a prompt are a group."""
    ids = torch.cat([prompt[:, None], paths.tokens[response]], 1)
    mask = _shifted(paths.mask[response])
    known = {"lengths": paths.lengths[response] + 1, "place": torch.arange(len(ids))}
    known["step_size"] = torch.tensor(len(ids))
    return Tokens(ids, mask, torch.ones(len(ids), dtype=torch.float64), prompt, {**known, **extra})


def online(
    method: str | Method,
    tree: TokenTree,
    feed: Any,
    number: int,
    *,
    optim: Optim,
    kl: KL | None = None,
    hparams: dict[str, Any] | None = None,
    **changes: Any,
) -> Iterator[Report]:
    """Train a tree in place for `number` steps of the loop, yielding after each; `changes` are of the run.

    The reference is the tree as it is now; critics forecast 0 at first.
    """
    record = METHODS[method] if isinstance(method, str) else method
    run = exact_run(record, kl, steps=number, optim=optim, hparams=hparams or {}, **changes)
    parts = make_parts(record, tree, feed, copy.deepcopy(tree))
    for name in parts.critics:
        parts.critics[name] = Learner(ValueTree(tree.vocab, tree.depth, len(tree.theta)), "critic")
    return steps(run, record, parts, State.begin(run, parts))


def adam(lr: float, **changes: Any) -> Optim:
    """An optimizer for tables: nothing is clipped, a batch is one pass."""
    return Optim(lr=lr, clip=0.0, rows_per_pass=1_000_000, **changes)
