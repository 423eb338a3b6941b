"""Soft values: what a KL-regularised optimum is worth token by token, and step rewards in place of Q and back.

V(s) = alpha log sum_a mu(a|s) exp(Q(s, a) / alpha); the optimal policy is mu exp((Q - V) / alpha). Float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fiducial.exact.tables import TokenTree


class SoftTree(NamedTuple):
    """Q [nodes, V] and V [nodes] of a token tree, 0 at nodes that no response passes, and its optimal tree."""

    q: Tensor
    v: Tensor
    optimum: TokenTree


def soft_tree(ref: TokenTree, rewards: Tensor, beta: float, prompt: int = 0) -> SoftTree:
    """Soft values of a tree whose responses [Y], in the order of `ref.responses()`, end with a reward (gamma = 1).

    Rafailov et al. 2024 (arXiv:2404.12358): beta log pi*(a|s) / ref(a|s) = Q(s, a) - V(s), with Q = V of the next
    prefix, and the reward at the end; Q leaves beta log ref out. `optimum` is the tree of pi*, which as a law of whole
    responses is ref exp(r / beta) / Z.
    """
    log_ref = ref.theta.detach()[prompt].log_softmax(-1)
    q, v = torch.zeros_like(log_ref), torch.zeros(len(log_ref), dtype=torch.float64)
    final = dict(zip(ref.responses(), rewards.tolist(), strict=True))

    def fill(node: int, prefix: tuple[int, ...]) -> None:
        for token in range(ref.vocab):
            after, below = (*prefix, token), node * (ref.vocab + 1) + token + 1
            if after not in final:
                fill(below, after)
            q[node, token] = final[after] if after in final else v[below]
        v[node] = beta * (log_ref[node] + q[node] / beta).logsumexp(-1)

    fill(0, ())
    return SoftTree(q, v, TokenTree(ref.vocab, ref.depth, (log_ref + (q - v[:, None]) / beta)[None]))


def soft_state_value(q: Tensor, mu: Tensor, alpha: float, policy: Tensor | None = None) -> Tensor:
    """V(s), [S], of Q [S, A]: of a policy [S, A], E_pi[Q - alpha log(pi / mu)], or of the best one if None."""
    if policy is None:
        return alpha * (mu.log() + q / alpha).logsumexp(-1)
    return (policy * q - alpha * (torch.xlogy(policy, policy) - torch.xlogy(policy, mu))).sum(-1)


def inverse_soft_bellman(
    q: Tensor, transition: Tensor, mu: Tensor, alpha: float, gamma: float, policy: Tensor | None = None
) -> Tensor:
    """The reward that a Q implies, r = Q - gamma E V(s') (Hejna & Sadigh 2023, arXiv:2305.15363): [S, A].

    transition [S, A, S]; what its rows lack to 1 ends the episode, with value 0. policy None is the optimal operator.
    """
    return q - gamma * transition @ soft_state_value(q, mu, alpha, policy)


def soft_q(
    rewards: Tensor, transition: Tensor, mu: Tensor, alpha: float, gamma: float, policy: Tensor | None = None
) -> Tensor:
    """The inverse of `inverse_soft_bellman`: the Q [S, A] whose implied reward is `rewards` [S, A].

    Of a policy by solving (I - gamma T Pi) Q = r - gamma T (alpha KL(pi || mu)); of the best one by soft policy
    iteration, which solves that again and again for the policy mu exp((Q - V) / alpha).
    """
    if policy is not None:
        return _evaluate(rewards, transition, mu, alpha, gamma, policy)
    q = _evaluate(rewards, transition, mu, alpha, gamma, mu)
    for _ in range(1000):
        better = (mu.log() + q / alpha).softmax(-1)
        new = _evaluate(rewards, transition, mu, alpha, gamma, better)
        if (new - q).abs().max() <= 1e-13 * (1 + q.abs().max()):
            return new
        q = new
    raise RuntimeError(f"soft policy iteration still moves after 1000 rounds; is gamma = {gamma} below 1?")


def _evaluate(r: Tensor, transition: Tensor, mu: Tensor, alpha: float, gamma: float, policy: Tensor) -> Tensor:
    states, actions = r.shape
    flow = gamma * transition.reshape(-1, states)  # [S A, S]
    average = torch.block_diag(*policy)  # [S, S A]: Q -> E_pi Q
    cost = -soft_state_value(torch.zeros_like(r), mu, alpha, policy)  # alpha KL(pi || mu), [S]
    system = torch.eye(states * actions, dtype=r.dtype) - flow @ average
    return torch.linalg.solve(system, r.flatten() - flow @ cost).view_as(r)
