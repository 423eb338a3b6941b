"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306), eq. 7.

    rho = log pi(y) / ref(y)        z0 = max(0, mean of rho over mismatched completions), no gradient
    v = lambda_d sigmoid(beta (rho - z0)) if y is wanted, lambda_u sigmoid(beta (z0 - rho)) if not
    L = lambda_y - v

The slope in rho is lambda beta sigmoid (1 - sigmoid) of that argument: at most lambda beta / 4, at rho = z0, and 0 far
from it, so rows that are learned already, and rows that look mislabelled, are left alone. Where labels of one
completion contradict each other and lambda_d = lambda_u, all goes to what most of them say, whatever the reference
thought. z0 is one number for the whole step (`batch_kl`): each prompt with the completion of another row. (beta is used
once, inside the sigmoid; early versions of the paper had it in z0 too.)
"""

import torch
from torch import Tensor

from fiducial.core.method import Method, Range


def kto(
    completion_logprobs: Tensor,
    ref_completion_logprobs: Tensor,
    desirable: Tensor,
    batch_kl: Tensor,
    *,
    beta: float = 0.1,
    lambda_d: float = 1.0,
    lambda_u: float = 1.0,
) -> Tensor:
    """Loss per completion: [B], [B], [B] bool, [] -> [B].

    >>> kto(torch.tensor([-10.0]), torch.tensor([-10.5]), torch.tensor([True]), torch.tensor(0.2))
    tensor([0.4925])
    """
    z = beta * (completion_logprobs - ref_completion_logprobs - batch_kl)
    return torch.where(desirable, lambda_d * torch.sigmoid(-z), lambda_u * torch.sigmoid(z))  # 1 - s(z) = s(-z)


def balancing_weights(desirable: float, undesirable: float) -> tuple[float, float]:
    """(lambda_d, lambda_u) for so many wanted and unwanted completions, the larger side keeping 1.

    The paper wants lambda_d n_d / (lambda_u n_u) in [1, 3/2]; what lies outside is moved to the nearer end.

    >>> balancing_weights(100, 400), balancing_weights(600, 100), balancing_weights(120, 100)
    ((4.0, 1.0), (1.0, 4.0), (1.0, 1.0))
    """
    if not (desirable > 0 and undesirable > 0):
        raise ValueError(
            f"KTO needs completions of both kinds; there are {desirable:g} wanted and {undesirable:g} unwanted: add "
            "the other kind"
        )
    ratio = desirable / undesirable
    return max(1.0, 1 / ratio), max(1.0, ratio / 1.5)


METHOD = Method(
    title="Kahneman-Tversky optimisation",
    family="direct alignment",
    paper="arXiv:2402.01306",
    feed="labels",
    loss=kto,
    per="row",
    target="majority",
    ranges={"beta": Range(0, open="low"), "lambda_d": Range(0), "lambda_u": Range(0)},
)
