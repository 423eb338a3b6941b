"""Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734), eq. 6: without a reference.

    L = -log sigmoid(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - gamma)

A completion's reward is its mean log-prob, which is what generation maximises; gamma is the margin to reach (the
paper uses beta 2 to 2.5 and gamma 0.3 to 1.6).
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


def simpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Tensor:
    """Loss per pair: [B] each -> [B].

    >>> import torch
    >>> simpo(*torch.tensor([[-10.0], [-12.0], [10.0], [8.0]]))  # 2 (-1 + 1.5) - 1 = 0: log 2
    tensor([0.6931])
    """
    return -logsigmoid(beta * (chosen_logprobs / chosen_lengths - rejected_logprobs / rejected_lengths) - gamma)


def measures(
    chosen_logprobs: Tensor, rejected_logprobs: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, *, beta: float
) -> dict[str, Tensor]:
    """Rewards beta log pi / |y|, [B] each."""
    return {
        "rewards/chosen": beta * chosen_logprobs / chosen_lengths,
        "rewards/rejected": beta * rejected_logprobs / rejected_lengths,
    }


METHOD = Method(
    title="Simple preference optimisation",
    family="direct alignment",
    paper="arXiv:2405.14734",
    feed="pairs",
    loss=simpo,
    per="row",
    measures=measures,
    ranges={"beta": Range(0, open="low"), "gamma": Range(0)},
)
