"""REINFORCE leave-one-out (Kool et al. 2019; for language models Ahmadian et al. 2024, arXiv:2402.14740).

    A_i = R_i - (mean reward of the other completions of the prompt)
    L   = -A log pi(y_t | x, y_<t)          summed over the tokens of a completion, averaged over completions

The others are independent of completion i, so the gradient is unbiased. With several updates on one batch set `clip`:
then the clipped surrogate of PPO takes the place of A log pi.
"""

import torch
from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import KL, Method, Range


def rloo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip: float | None = None) -> Tensor:
    """Per token, minimised: three [B, L] -> [B, L].

    >>> rloo(torch.tensor([[-0.5]]), torch.tensor([[-0.5]]), torch.tensor([[2.0]]))
    tensor([[1.]])
    """
    if clip is None:
        return -advantages * logprobs
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20, 20))
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


METHOD = Method(
    title="REINFORCE leave-one-out",
    family="policy optimisation",
    paper="arXiv:2402.14740",
    feed="groups",
    loss=rloo,
    per="sequence_sum",
    credit=credit.leave_one_out,
    kl=KL(weight=0.05, estimator="k1", place="reward"),
    min_group=2,
    target="policy_gradient",
    ranges={"clip": Range(0, 1, open="both")},
)
