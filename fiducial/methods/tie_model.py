"""Davidson's model of wins and ties (Davidson 1970), on top of Bradley-Terry.

    P(chosen wins) = exp(r_c) / Z    P(rejected wins) = exp(r_r) / Z    P(tie) = nu exp((r_c + r_r) / 2) / Z
    L = -log P(what was said)

Given that there is no tie this is Bradley-Terry, for every nu; nu = 0 is Bradley-Terry itself. Equals tie with
probability nu / (2 + nu), others less often. nu is given, not learned: from a share s of ties among responses that are
about equal, nu = 2 s / (1 - s). Ties come from rows with a rating of 0 and data.ties = "keep".
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from fiducial.core.method import Method, Range


def tie_model(chosen_scores: Tensor, rejected_scores: Tensor, tied: Tensor, *, nu: float = 1.0) -> Tensor:
    """Loss per pair: [B], [B], [B] bool -> [B].

    >>> tie_model(torch.zeros(2), torch.zeros(2), torch.tensor([True, False]))  # thirds
    tensor([1.0986, 1.0986])
    """
    delta = chosen_scores - rejected_scores
    if nu == 0:
        if tied.any():
            raise ValueError(
                "nu = 0 gives ties no chance, but the data has some: set hparams.nu above 0, or data.ties to 'drop'"
            )
        return -logsigmoid(delta)
    log_z = torch.logaddexp(delta.abs() / 2 + softplus(-delta.abs()), torch.full_like(delta, math.log(nu)))
    return log_z - torch.where(tied, math.log(nu), delta / 2)  # all over exp((r_c + r_r) / 2)


def measures(chosen_scores: Tensor, rejected_scores: Tensor, tied: Tensor, *, nu: float = 1.0):
    """How many ties there are and how many the model expects; accuracy where one side won."""
    delta = chosen_scores - rejected_scores
    tie = nu / (nu + 2 * torch.cosh((delta / 2).clamp(-80, 80)))
    right = (delta > 0).to(delta.dtype) + 0.5 * (delta == 0)
    return {"ties/share": tied.to(delta.dtype), "ties/expected": tie, "accuracy_decided": (right, (~tied).double())}


METHOD = Method(
    title="Reward model with ties",
    family="reward models",
    paper="Davidson 1970",
    feed="pairs",
    loss=tie_model,
    per="row",
    measures=measures,
    target="davidson_rewards",
    ranges={"nu": Range(0)},
)
