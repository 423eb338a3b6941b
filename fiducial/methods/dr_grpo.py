"""Dr. GRPO, "GRPO done right" (Liu et al. 2025, arXiv:2503.20783).

    A_i = R_i - (mean reward of the group),   L = GRPO's,   summed over tokens and divided by one constant

GRPO's two averages are biased: dividing by a group's deviation favours prompts that are too easy or too hard, dividing
by a completion's length favours short right answers and long wrong ones. Both are gone here, and so is the KL. The
gradient is (1 - 1/G) that of the expected reward. The constant is the recipe's `constant`, by default
`sampling.max_new_tokens`.
"""

from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import Method
from fiducial.methods.grpo import METHOD as GRPO
from fiducial.methods.grpo import grpo


def dr_grpo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """Clipped surrogate per token: three [B, L] -> [B, L].

    >>> import torch
    >>> dr_grpo(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), torch.tensor([[2.0]]))  # rho = e, clipped at 1.2
    tensor([[-2.4000]])
    """
    return grpo(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)


METHOD = Method(
    title="GRPO done right",
    family="policy optimisation",
    paper="arXiv:2503.20783",
    feed="groups",
    loss=dr_grpo,
    per="constant",
    credit=credit.group_centred,
    min_group=2,
    target="mean_only_gradient",
    ranges={name: GRPO.ranges[name] for name in ("clip_low", "clip_high")},
)
