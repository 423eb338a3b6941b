"""Group Relative Policy Optimization (Shao et al. 2024, arXiv:2402.03300), eq. 3.

    L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),   rho = exp(logprobs - old_logprobs)

A is a completion's reward, centred and scaled within its group; each completion weighs the same. The KL term is the
recipe's [kl] table, the same for every method (the paper's: 0.04, k3, in the loss).

With exact expectations and binary rewards the gradient is c_G(p) grad p, where p is the chance of success.
`ratio_level` "sequence" uses one ratio per completion, "sequence_geomean" its per-token geometric mean. `dr_grpo`,
`dapo`, `gspo` and `cispo` are later papers' changes to it.
"""

import torch
from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import KL, Method, Range
from fiducial.core.ratio import LEVELS, log_ratio


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
    ratio = torch.exp(log_ratio(logprobs, old_logprobs, mask, ratio_level).clamp(-20, 20))
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
        "ratio_level": LEVELS,
        "std": ("population", "sample", "batch", "none"),
    },
    ranges={"clip_low": Range(0, 1, open="low"), "clip_high": Range(0, open="low"), "std_epsilon": Range(0)},
)
