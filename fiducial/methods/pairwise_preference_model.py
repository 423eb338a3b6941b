"""General preference model (Munos et al. 2023, arXiv:2312.00886), section 3.

    P(y beats y') = sigmoid((g(x, y, y') - g(x, y', y)) / 2)
    L = -log P(chosen beats rejected)

g reads both responses in one text, in either order, so P(y, y') + P(y', y) = 1 and P(y, y) = 1/2 whatever it has
learned. It can hold preferences that no reward can, cycles too; Bradley-Terry is g(x, y, y') = r(x, y) - r(x, y').
`chosen_scores` is g with the chosen response first, `rejected_scores` with the rejected one first.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


def pairwise_preference_model(
    chosen_scores: Tensor, rejected_scores: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Loss per pair: [B], [B] -> [B].

    >>> pairwise_preference_model(torch.tensor([1.0]), torch.tensor([-1.0]))  # g = r - r': log(1 + exp(-1))
    tensor([0.3133])
    """
    delta = (chosen_scores - rejected_scores) / 2
    return -(1 - label_smoothing) * logsigmoid(delta) - label_smoothing * logsigmoid(-delta)


def measures(chosen_scores: Tensor, rejected_scores: Tensor):
    """Before the two orders are put together: how often they name one response, and by how much they disagree."""
    first, second = torch.sigmoid(chosen_scores), torch.sigmoid(rejected_scores)  # that the one shown first is better
    agree = (chosen_scores > 0) == (rejected_scores < 0)
    return {"order_consistency": agree.to(first.dtype), "position_bias": (first + second - 1).abs()}


METHOD = Method(
    title="General preference model",
    family="reward models",
    paper="arXiv:2312.00886",
    feed="pairs",
    rows="joint",
    loss=pairwise_preference_model,
    per="row",
    measures=measures,
    target="preference_table",
    ranges={"label_smoothing": Range(0, 0.5, open="high")},
)
