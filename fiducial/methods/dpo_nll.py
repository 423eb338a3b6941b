"""DPO with the likelihood of the chosen completion, or iterative RPO (Pang et al. 2024, arXiv:2404.19733), eq. 1.

    L = -log sigmoid(beta h) - alpha log pi(y_w) / |y_w|        h as in DPO, |y_w| all trained tokens of the chosen one,
                                                                reasoning included

`alpha` 0 is DPO; above it, a certain pair drives pi(y_w) to 1, where DPO may lower it. The paper makes pairs of right
and wrong solutions and starts each round's reference from the last round's policy. (The lecture notes leave alpha out
of one line.)
"""

from torch import Tensor

from fiducial.core.method import Method, Range
from fiducial.methods.dpo import dpo


def dpo_nll(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
) -> Tensor:
    """Loss per pair: four sums [B] and the chosen one's tokens [B] -> [B].

    >>> import torch
    >>> dpo_nll(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0], [20.0]]))  # 0.6210 + 10 / 20
    tensor([1.1210])
    """
    preference = dpo(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta=beta)
    return preference - alpha * chosen_logprobs / chosen_lengths


def measures(chosen_logprobs: Tensor, chosen_lengths: Tensor) -> dict[str, Tensor]:
    """Negative log-likelihood per token of the chosen completion, [B]."""
    return {"nll/chosen": -chosen_logprobs / chosen_lengths}


METHOD = Method(
    title="DPO with the likelihood of the chosen",
    family="direct alignment",
    paper="arXiv:2404.19733",
    feed="pairs",
    loss=dpo_nll,
    per="row",
    measures=measures,
    ranges={"beta": Range(0, open="low"), "alpha": Range(0)},
)
