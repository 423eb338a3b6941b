"""Importance weights for samples that another policy drew."""

import torch
from torch import Tensor

from fiducial.core.tokens import sequence_sum

LIMIT = 20.0  # of a log-ratio, beyond which exp() loses meaning


def importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, level: str = "token") -> Tensor:
    """pi_old / mu of each token, or the product over the completion at each of its tokens: [B, L], 1 where masked out.

    Averages over mu of a completion's weight times a function of it are averages over pi_old (Hilton et al. 2021,
    arXiv:2110.00641); with a weight for each token that holds for completions of one token only.

    >>> old, sampler = torch.tensor([[0.0, -1.0, -1.0]]), torch.tensor([[0.0, -2.0, -1.5]])
    >>> importance_weights(old, sampler, torch.tensor([[False, True, True]]), "sequence")
    tensor([[1.0000, 4.4817, 4.4817]])
    """
    log_ratio = torch.where(mask, old_logprobs - sampler_logprobs, 0.0)
    if level == "sequence":
        log_ratio = torch.where(mask, sequence_sum(log_ratio, mask)[:, None], 0.0)
    return log_ratio.clamp(-LIMIT, LIMIT).exp()


def bounded(weights: Tensor, mode: str, cap: float, floor: float = 0.0) -> Tensor:
    """Weights cut to `cap` ("truncate", Espeholt et al. 2018), or 0 where they leave [floor, cap] ("mask").

    >>> weights = torch.tensor([0.1, 1.0, 3.0])
    >>> bounded(weights, "truncate", 2.0), bounded(weights, "mask", 2.0, 0.5)
    (tensor([0.1000, 1.0000, 2.0000]), tensor([0., 1., 0.]))
    """
    if mode == "truncate":
        return weights.clamp(max=cap)
    return torch.where((weights >= floor) & (weights <= cap), weights, 0.0)


def effective_share(number: float, total: float, squares: float) -> float:
    """Kish's effective sample size as a share of the number of weights: (sum w)^2 / (n sum w^2).

    >>> effective_share(2, 1.0, 1.0)  # of two weights one is 0
    0.5
    """
    return total**2 / (number * squares) if squares else 0.0
