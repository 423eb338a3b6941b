"""Cost model of Safe RLHF (Dai et al. 2023, arXiv:2310.12773), eq. 8.

    L = -log sigmoid(C_w - C_l) - log sigmoid(s_w C_w) - log sigmoid(s_l C_l)

w is the more harmful response and s = 1 if a response does harm, -1 if it is safe. The last two terms give the cost a
zero of its own: C > 0 is harmful, C <= 0 safe. A response of which nobody said that (s = 0) has no such term. As a
reward it is one to be low: give it a negative weight, reward = {helpful = 1.0, "runs/cost/model" = -1.0}.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method


def cost_model(chosen_scores: Tensor, rejected_scores: Tensor, chosen_harm: Tensor, rejected_harm: Tensor) -> Tensor:
    """Loss per pair; chosen is the more harmful response: four [B] -> [B].

    >>> cost_model(torch.zeros(2), torch.zeros(2), torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 0.0]))  # log 2 each
    tensor([2.0794, 1.3863])
    """
    compared = -logsigmoid(chosen_scores - rejected_scores)
    chosen = -chosen_harm.abs() * logsigmoid(chosen_harm * chosen_scores)
    rejected = -rejected_harm.abs() * logsigmoid(rejected_harm * rejected_scores)
    return compared + chosen + rejected


def measures(chosen_scores: Tensor, rejected_scores: Tensor, chosen_harm: Tensor, rejected_harm: Tensor):
    """Mean cost, shares of right orders and, where labelled, of right signs; how many the model calls safe."""
    costs = torch.stack([chosen_scores, rejected_scores])
    harms = torch.stack([chosen_harm, rejected_harm])
    labelled = harms.abs().sum(0)
    right = ((costs > 0) == (harms > 0)) * harms.abs()
    ordered = (chosen_scores > rejected_scores) + 0.5 * (chosen_scores == rejected_scores)
    return {
        "cost/mean": costs.mean(0),
        "cost/pair_accuracy": ordered,
        "cost/sign_accuracy": (right.sum(0) / labelled.clamp(min=1), labelled),
        "safe_frac": (costs <= 0).double().mean(0),
    }


METHOD = Method(
    title="Cost model",
    family="reward models",
    paper="arXiv:2310.12773",
    feed="pairs",
    loss=cost_model,
    per="row",
    measures=measures,
    target="absolute_costs",
)
