"""Contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417): DPO against a uniform reference.

    L = -log sigmoid(beta log pi(y_w)/pi(y_l)) - alpha log pi(y_w) / |y_w|

The second term keeps the policy near the chosen completions in the place of a reference. The paper sums it over
tokens, its code takes their mean, as here. `alpha` 0 is reference-free DPO.
"""

from torch import Tensor

from fiducial.core.method import Method, Range
from fiducial.methods.dpo import dpo


def cpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss per pair: [B] each -> [B].

    >>> import torch
    >>> cpo(*torch.tensor([[-10.0], [-10.0], [20.0]]))  # log 2 + 10 / 20
    tensor([1.1931])
    """
    pair = (chosen_logprobs, rejected_logprobs)
    preference = dpo(*pair, beta=beta, gamma_ref=0.0, label_smoothing=label_smoothing)
    return preference - alpha * chosen_logprobs / chosen_lengths


def measures(
    chosen_logprobs: Tensor, rejected_logprobs: Tensor, chosen_lengths: Tensor, *, beta: float
) -> dict[str, Tensor]:
    """Rewards beta log pi, and the part that imitates, [B] each."""
    rewards = {"rewards/chosen": beta * chosen_logprobs, "rewards/rejected": beta * rejected_logprobs}
    return {**rewards, "nll/chosen": -chosen_logprobs / chosen_lengths}


METHOD = Method(
    title="Contrastive preference optimisation",
    family="direct alignment",
    paper="arXiv:2401.08417",
    feed="pairs",
    loss=cpo,
    per="row",
    measures=measures,
    ranges={"beta": Range(0, open="low"), "alpha": Range(0), "label_smoothing": Range(0, 0.5, open="high")},
)
