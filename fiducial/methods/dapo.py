"""Decoupled clip and dynamic sampling policy optimization, DAPO (Yu et al. 2025, arXiv:2503.14476).

    L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)      averaged over all tokens of the update

GRPO's loss and advantages with a clip that lets rare tokens rise further (0.28 above, 0.2 below), every token of the
same weight, and no KL. The rest of the paper is in the recipe: `sampling.filter_groups` leaves out prompts whose
completions agree, and a reward of length punishes overlong ones.
"""

from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import Method
from fiducial.methods.grpo import METHOD as GRPO
from fiducial.methods.grpo import grpo


def dapo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.28
) -> Tensor:
    """Clipped surrogate per token: three [B, L] -> [B, L].

    >>> import torch
    >>> dapo(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), torch.tensor([[2.0]]))  # rho = e, clipped at 1.28
    tensor([[-2.5600]])
    """
    return grpo(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)


METHOD = Method(
    title="Decoupled clip and dynamic sampling policy optimization",
    family="policy optimisation",
    paper="arXiv:2503.14476",
    feed="groups",
    loss=dapo,
    per="token",
    credit=credit.group_normalized,
    min_group=2,
    target="success_gradient",
    choices={"std": GRPO.choices["std"]},
    ranges=GRPO.ranges,
)
