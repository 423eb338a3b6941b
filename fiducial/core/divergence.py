"""Estimators of KL(policy || ref) from sampled tokens, and the exact one from logits.

With l = logprobs - ref_logprobs on tokens the policy drew (Schulman's note "Approximating KL divergence"):

    estimator   value                 as a value          its gradient, used as a loss, is on average
    k1          l                     unbiased            zero
    k2          l^2 / 2               biased, >= 0        the gradient of KL(policy || ref)
    k3          exp(-l) - 1 + l       unbiased, >= 0      the gradient of KL(ref || policy), the other direction
    k1+, k3+    k1's, k3's            unbiased            k2's: straight through
    full        sum_v p (log p - log q) over the vocabulary: exact for each token's distribution

Summed over tokens, k2 and full differentiate each token's divergence at a fixed prefix; how the policy moves prefixes
is missing. The gradient of the sequence divergence needs the KL in the reward, or k2 of the summed log-ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Limits in float32 only: exact work in float64 goes without.
LOG_RATIO_LIMIT = 20.0  # beyond this exp() loses meaning
K3_LIMIT = 10.0  # what one token may add to a loss


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy || ref), [B, L] or any one shape for both.

    >>> l = torch.tensor([0.5])
    >>> [round(float(kl_estimate(l, torch.zeros(1), k)), 4) for k in ("k1", "k2", "k3")]
    [0.5, 0.125, 0.1065]
    """
    log_ratio, exact = logprobs - ref_logprobs, logprobs.dtype == torch.float64
    if not exact:
        log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    k2 = log_ratio.square() / 2
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return k2
    if estimator == "k1+":
        return k2 + (log_ratio - k2).detach()
    k3 = torch.expm1(-log_ratio) + log_ratio
    if not exact:
        k3 = k3.clamp(max=K3_LIMIT)
    if estimator == "k3":
        return k3
    if estimator == "k3+":
        return k2 + (k3 - k2).detach()
    raise ValueError(f"kl.estimator must be k1, k2, k3, k1+, k3+ or full; it is {estimator!r}")


def proximal_kl(log_ratio: Tensor) -> Tensor:
    """k_iw = w log w - (w - 1), w = exp(log_ratio) = policy / old, on what *old* drew: any shape.

    At least 0. Both its value and, differentiated through w, its gradient are on average those of KL(policy || old).

    >>> w = torch.tensor([1.0, 2.0])  # 2 log 2 - 1
    >>> [round(float(x), 4) for x in proximal_kl(w.log())]
    [0.0, 0.3863]
    """
    if log_ratio.dtype != torch.float64:
        log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.exp() * log_ratio - torch.expm1(log_ratio)


def full_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL(policy || ref) of each next-token distribution: [..., V], [..., V] -> [...].

    >>> full_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]))
    tensor(0.)
    """
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each next-token distribution in nats: [..., V] -> [...].

    >>> round(float(entropy(torch.zeros(4))), 4)  # log 4
    1.3863
    """
    log_p = logits.log_softmax(-1)
    return -torch.where(log_p.exp() > 0, log_p.exp() * log_p, 0.0).sum(-1)
