"""REINFORCE leave-one-out (Kool et al. 2019; for language models Ahmadian et al. 2024, arXiv:2402.14740).

    A_i = R_i - (mean reward of the other completions of the prompt)
    L   = -A log pi(y_t | x, y_<t)          summed over the tokens of a completion, averaged over completions

The others are independent of completion i, so the gradient is unbiased. With several updates on one batch set `clip`:
then the clipped surrogate of PPO takes the place of A log pi, token by token, or with `ratio_level` "sequence" with one
ratio for the whole completion, which in the paper is the one action; its tokens then share the completion's loss.
"""

import torch
from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import KL, Method, Range
from fiducial.core.ratio import log_ratio


def rloo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float | None = None,
    ratio_level: str = "token",
) -> Tensor:
    """Per token, minimised: three [B, L] -> [B, L]. The mask [B, L] is read by the sequence ratio only.

    >>> rloo(torch.tensor([[-0.5]]), torch.tensor([[-0.5]]), torch.tensor([[2.0]]))
    tensor([[1.]])
    """
    if clip is None:
        return -advantages * logprobs
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
    ratio = torch.exp(log_ratio(logprobs, old_logprobs, mask, ratio_level).clamp(-20, 20))
    shares = mask.sum(-1, keepdim=True).clamp(min=1) if ratio_level == "sequence" else 1
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages) / shares


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
    choices={"ratio_level": ("token", "sequence")},
    ranges={"clip": Range(0, 1, open="both")},
)
