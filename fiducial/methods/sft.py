"""Supervised fine-tuning, or behavioural cloning (for instructions: Ouyang et al. 2022, arXiv:2203.02155).

    L = -log pi(y_t | x, y_<t)          averaged over all trained tokens

On a table the minimiser is the empirical frequency of each completion.
"""

from torch import Tensor

from fiducial.core.method import Method


def sft(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood, per token: [B, L] -> [B, L].

    >>> import torch
    >>> sft(torch.tensor([[0.0, -1.5]]))
    tensor([[-0.0000, 1.5000]])
    """
    return -logprobs


METHOD = Method(
    title="Supervised fine-tuning",
    family="demonstrations",
    paper="arXiv:2203.02155",
    feed="demos",
    loss=sft,
    per="token",
    target="empirical_frequency",
)
