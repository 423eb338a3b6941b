"""Online IPO (Calandriello et al. 2024, arXiv:2403.08635): IPO on pairs of the policy's own samples.

    y, y' drawn from the policy, without gradient through the drawing;    L = (h - 1 / (2 beta))^2 on the labelled pair

Its fixed point is pi = ref(y) exp(P(y beats pi) / beta) / Z, the Nash policy of the preference game with a KL to the
reference, for any P, transitive or not. A pair trains in both orders, weighted by how likely either is better: the
judge's word where it compares, else Bradley-Terry's of the rewards. The samples of a prompt are paired off at random,
none twice. IPO-MD, which draws from a mixture of policy and reference, is not here.
"""

from torch import Tensor

from fiducial.core import selection
from fiducial.core.method import Method, Range
from fiducial.methods.ipo import METHOD as IPO
from fiducial.methods.ipo import ipo


def online_ipo(
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
    >>> online_ipo(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]))  # (1.5 - 5)^2
    tensor([12.2500])
    """
    pair = (chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return ipo(*pair, chosen_lengths, rejected_lengths, beta=beta, length_average=length_average)


METHOD = Method(
    title="Online IPO",
    family="online alignment",
    paper="arXiv:2403.08635",
    feed="pairs",
    loss=online_ipo,
    per="row",
    select=selection.by_preference,
    min_group=2,
    target="regularised_nash",
    ranges={"beta": Range(0, open="low")},
    idle=IPO.idle,
)
