"""ReMax (Li et al. 2024, arXiv:2310.10505): REINFORCE against the reward of the greedy completion.

    A_t = (rewards from token t on) - r(x, greedy completion of x)
    L   = -A_t log pi(y_t | x, y_<t)          summed over the tokens of a completion, averaged over completions

The baseline is the reward of one more completion per prompt, decoded greedily by the policy of the step (the likeliest
token each time, which need not be the likeliest completion). It does not depend on the sample, so the gradient is
unbiased; that it has less variance is usual, not certain. One sample per prompt is enough: `sampling.n` 1.
"""

from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import KL, Method


def remax(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Per token, minimised: [B, L], [B, L] -> [B, L].

    >>> import torch
    >>> remax(torch.tensor([[-0.5]]), torch.tensor([[2.0]]))
    tensor([[1.]])
    """
    return -advantages * logprobs


METHOD = Method(
    title="ReMax",
    family="policy optimisation",
    paper="arXiv:2310.10505",
    feed="groups",
    loss=remax,
    per="sequence_sum",
    credit=credit.above_greedy,
    kl=KL(weight=0.05, estimator="k1", place="reward"),
    target="policy_gradient",
)
