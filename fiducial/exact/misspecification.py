"""RLHF against DPO when a model class misses the truth (Shi et al. 2025, arXiv:2505.19770), solved exactly.

The class F of rewards is Phi_R c, the class Pi of policies softmax(log ref + Phi_P c), with features Phi [A, d]. RLHF
fits a reward in F and takes the best policy of Pi for it; DPO fits beta log pi / ref, pi in Pi, to the preferences
themselves. Both see the whole population: pairs of the law, labelled by Bradley-Terry of the true rewards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fiducial.exact.divergences import kl
from fiducial.exact.minimise import exact_minimise
from fiducial.exact.optima import bradley_terry, rlhf_optimum


@dataclass(frozen=True)
class Comparison:
    """Policies [A] of both ways and what they are worth, V = E r - beta KL(pi || ref); `best` is worth it without a
    class."""

    rlhf: Tensor
    dpo: Tensor
    rlhf_value: float
    dpo_value: float
    best_value: float


def regularised_value(policy: Tensor, rewards: Tensor, ref: Tensor, beta: float) -> Tensor:
    """E_pi r - beta KL(pi || ref), [..., A] -> [...]."""
    return (policy * rewards).sum(-1) - beta * kl(policy, ref)


def fit_reward(rewards: Tensor, features: Tensor, law: Tensor) -> Tensor:
    """The reward Phi c [A] nearest to the true rewards [A] in the likelihood of their preferences on pairs of `law`."""
    return features @ _logistic(rewards, features, law)


def best_in_class(rewards: Tensor, ref: Tensor, features: Tensor, beta: float) -> Tensor:
    """argmax of V over softmax(log ref + Phi c), [A]: the best of starts at the reference and around the optimum.

    V is -beta KL(pi || pi*) up to a constant, which is not concave in c.
    """

    def loss(c: Tensor) -> Tensor:
        return -regularised_value((ref.log() + features @ c).softmax(-1), rewards, ref, beta)

    toward = torch.linalg.lstsq(features - ref @ features, (rewards - ref @ rewards)[:, None] / beta).solution[:, 0]
    found = [exact_minimise(loss, start) for start in (torch.zeros_like(toward), toward)]
    return (ref.log() + features @ min(found, key=lambda c: float(loss(c)))).softmax(-1)


def dpo_in_class(rewards: Tensor, ref: Tensor, features: Tensor, beta: float, law: Tensor) -> Tensor:
    """The policy [A] of the class that exact DPO reaches on pairs of `law` [A]."""
    return (ref.log() + features @ _logistic(rewards, beta * features, law)).softmax(-1)


def online_dpo_in_class(rewards: Tensor, ref: Tensor, features: Tensor, beta: float, rounds: int = 50) -> Tensor:
    """DPO solved again and again on pairs of its own policy, which after each round moves half of the way to it."""
    law = ref
    for _ in range(rounds):
        law = (law + dpo_in_class(rewards, ref, features, beta, law)) / 2
    return dpo_in_class(rewards, ref, features, beta, law)


def rlhf_vs_dpo(
    rewards: Tensor,
    ref: Tensor,
    reward_features: Tensor,
    policy_features: Tensor,
    beta: float,
    law: Tensor | None = None,
) -> Comparison:
    """Both ways on one problem: rewards [A], ref [A], features [A, d]; pairs are drawn from `law`, by default ref."""
    law = ref if law is None else law
    fitted = fit_reward(rewards, reward_features, law)
    rlhf = best_in_class(fitted, ref, policy_features, beta)
    dpo = dpo_in_class(rewards, ref, policy_features, beta, law)
    best = rlhf_optimum(ref, rewards, beta)
    values = (float(regularised_value(policy, rewards, ref, beta)) for policy in (rlhf, dpo, best))
    return Comparison(rlhf, dpo, *values)


def _logistic(rewards: Tensor, features: Tensor, law: Tensor) -> Tensor:
    """c [d] of greatest likelihood when preferences of `rewards` are explained by the scores Phi c."""
    weight = law[:, None] * law[None, :] * bradley_terry(rewards)

    def loss(c: Tensor) -> Tensor:
        scores = features @ c
        return -(weight * torch.nn.functional.logsigmoid(scores[:, None] - scores[None, :])).sum()

    return exact_minimise(loss, torch.zeros(features.shape[1], dtype=torch.float64))
