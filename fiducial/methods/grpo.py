"""Group Relative Policy Optimization (Shao et al. 2024, arXiv:2402.03300), eq. 3.

    L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),   rho = exp(logprobs - old_logprobs)

A is a completion's reward, centred and scaled within its group; each completion weighs the same. The KL term is the
recipe's [kl] table, the same for every method (the paper's: 0.04, k3, in the loss).

With exact expectations and binary rewards the gradient is c_G(p) grad p, where p is the chance of success. Dr. GRPO
(arXiv:2503.20783) is std = "none", per = "constant"; DAPO (arXiv:2503.14476) is clip_high = 0.28, per = "token".
`ratio_level` "sequence" uses one ratio per completion, "sequence_geomean" its per-token geometric mean (GSPO).
"""

import torch
from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import KL, Method, Range


def grpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_level: str = "token",
) -> Tensor:
    """Clipped surrogate per token: three [B, L] -> [B, L]. The mask [B, L] is read by the sequence ratios only.

    >>> grpo(torch.tensor([[0.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]]))
    tensor([[-2.]])
    """
    log_ratio = logprobs - old_logprobs
    if ratio_level != "token":
        mask = torch.ones_like(log_ratio, dtype=torch.bool) if mask is None else mask
        summed = torch.where(mask, log_ratio, 0.0).sum(-1, keepdim=True)
        lengths = mask.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = (summed / lengths if ratio_level == "sequence_geomean" else summed).expand_as(logprobs)
    ratio = torch.exp(log_ratio.clamp(-20, 20))
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


METHOD = Method(
    title="Group Relative Policy Optimization",
    family="policy optimisation",
    paper="arXiv:2402.03300",
    feed="groups",
    loss=grpo,
    per="sequence",
    credit=credit.group_normalized,
    kl=KL(weight=0.04, estimator="k3", place="loss"),
    min_group=2,
    target="success_gradient",
    choices={
        "ratio_level": ("token", "sequence", "sequence_geomean"),
        "std": ("population", "sample", "batch", "none"),
    },
    ranges={"clip_low": Range(0, 1, open="low"), "clip_high": Range(0, open="low"), "std_epsilon": Range(0)},
)
