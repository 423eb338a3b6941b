"""Group Sequence Policy Optimization (Zheng et al. 2025, arXiv:2507.18071), eq. 5.

    L = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),   s = (pi(y | x) / pi_old(y | x))^(1 / |y|)

GRPO with one ratio per completion, the geometric mean of its tokens' (its log is a mean, so the noise of single tokens
averages out, and the clip is three orders of magnitude narrower), clipped and weighted as a whole. `ratio_level`
"sequence" leaves out the root.
"""

from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import Method
from fiducial.core.ratio import LEVELS
from fiducial.methods.grpo import METHOD as GRPO
from fiducial.methods.grpo import grpo


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    ratio_level: str = "sequence_geomean",
) -> Tensor:
    """Clipped surrogate of the completion, at each of its tokens: four [B, L] -> [B, L].

    >>> import torch
    >>> old, mask = torch.tensor([[-2.0, -1.0]]), torch.ones(1, 2).bool()
    >>> gspo(torch.tensor([[-1.0, -1.5]]), old, torch.full((1, 2), 2.0), mask, clip_high=1.0)  # -2 exp(0.5 / 2)
    tensor([[-2.5681, -2.5681]])
    """
    clips = {"clip_low": clip_low, "clip_high": clip_high}
    return grpo(logprobs, old_logprobs, advantages, mask, **clips, ratio_level=ratio_level)


METHOD = Method(
    title="Group Sequence Policy Optimization",
    family="policy optimisation",
    paper="arXiv:2507.18071",
    feed="groups",
    loss=gspo,
    per="sequence",
    credit=credit.group_normalized,
    min_group=2,
    target="success_gradient",
    choices={"std": GRPO.choices["std"], "ratio_level": LEVELS[1:]},
    ranges=GRPO.ranges,
)
