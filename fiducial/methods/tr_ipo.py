"""Trust-region IPO (Gorbatovski et al. 2024, arXiv:2404.09656): IPO's loss against a reference that follows the policy.

    L = (h - 1 / (2 beta))^2                                    h as in IPO, against the present reference
    ref <- alpha pi + (1 - alpha) ref                           weights, before every `sync_steps`-th step

See `tr_dpo` for the update and `ipo` for the options of the loss.
"""

from torch import Tensor

from fiducial.core import anchors
from fiducial.core.method import Method, Range
from fiducial.methods.ipo import METHOD as IPO
from fiducial.methods.ipo import ipo


def tr_ipo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    length_average: bool = False,
) -> Tensor:
    """Loss per pair: [B] each -> [B].

    >>> import torch
    >>> tr_ipo(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]))  # (1.5 - 5)^2
    tensor([12.2500])
    """
    pair = (chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return ipo(*pair, chosen_lengths, rejected_lengths, beta=beta, length_average=length_average)


METHOD = Method(
    title="Trust-region IPO",
    family="direct alignment",
    paper="arXiv:2404.09656",
    feed="pairs",
    loss=tr_ipo,
    per="row",
    anchors={"ref": anchors.trust_region},
    ranges={"beta": Range(0, open="low"), "alpha": Range(0, 1), "sync_steps": Range(1)},
    idle=IPO.idle,
)
