"""Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691), eq. 6: imitation and preference at once.

    p(y) = exp(log pi(y) / |y|),  odds p / (1 - p)
    L = -log p(y_w) - lam log sigmoid(log odds(y_w) - log odds(y_l))

It needs no reference and starts from a base model. p is held one rounding error below 1, where odds are infinite.
"""

from torch import Tensor, expm1, finfo, log
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


def log_odds(logprob: Tensor) -> Tensor:
    """log p / (1 - p) of log p <= 0: [B] -> [B]."""
    logprob = logprob.clamp(max=-finfo(logprob.dtype).eps)
    return logprob - log(-expm1(logprob))


def orpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    lam: float = 0.1,
) -> Tensor:
    """Loss per pair: [B] each -> [B].

    >>> import torch
    >>> half, fifth = torch.tensor([0.5]).log(), torch.tensor([0.2]).log()  # odds 1 and 1/4: log 2 + 0.1 log 1.25
    >>> orpo(2 * half, 3 * fifth, torch.tensor([2]), torch.tensor([3]))
    tensor([0.7155])
    """
    chosen, rejected = chosen_logprobs / chosen_lengths, rejected_logprobs / rejected_lengths
    return -chosen - lam * logsigmoid(log_odds(chosen) - log_odds(rejected))


def measures(
    chosen_logprobs: Tensor, rejected_logprobs: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, *, lam: float
) -> dict[str, Tensor]:
    """Rewards lam log p, the log odds ratio, and the part that imitates, [B] each."""
    chosen, rejected = chosen_logprobs / chosen_lengths, rejected_logprobs / rejected_lengths
    ratio = log_odds(chosen) - log_odds(rejected)
    rewards = {"rewards/chosen": lam * chosen, "rewards/rejected": lam * rejected}
    return {**rewards, "orpo/log_odds_ratio": ratio, "nll/chosen": -chosen}


METHOD = Method(
    title="Odds ratio preference optimisation",
    family="direct alignment",
    paper="arXiv:2403.07691",
    feed="pairs",
    loss=orpo,
    per="row",
    measures=measures,
    ranges={"lam": Range(0)},
)
