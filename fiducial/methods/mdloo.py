"""Mirror descent with leave-one-out (MDPO, Tomar et al. 2020, arXiv:2005.09814; Gunter et al. 2024, arXiv:2407.21075).

    L = -rho A + prox_coef k_iw,   rho = pi(y | x) / pi_old(y | x),   k_iw = rho log rho - (rho - 1)

A is RLOO's advantage and pi_old the policy at the start of the step. k_iw has the value and the gradient of
KL(pi || pi_old), which is 0 at pi_old: the first update is RLOO's, and the term acts from the second on, so a step
needs several updates. Solved to the end, a step gives pi_old exp(A / prox_coef) / Z. The pull towards the *reference*
is the recipe's [kl], in the reward. `ratio_level` "token" does it with each token's ratio, its prefix held fixed.
"""

import torch
from torch import Tensor

from fiducial.core import credit
from fiducial.core.divergence import proximal_kl
from fiducial.core.method import KL, Method, Range
from fiducial.core.ratio import log_ratio


def mdloo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    prox_coef: float = 0.1,
    ratio_level: str = "sequence",
) -> Tensor:
    """Per token, minimised: four [B, L] -> [B, L]. A sequence's term is spread over its tokens, so that they sum to it.

    >>> old, mask = torch.tensor([[-2.0, -1.0]]), torch.ones(1, 2).bool()
    >>> new = old + torch.tensor([[0.5, 0.1932]])  # rho = 2: (-2 x 1 + 0.1 (2 log 2 - 1)) / 2 tokens
    >>> mdloo(new, old, torch.ones(1, 2), mask)
    tensor([[-0.9807, -0.9807]])
    """
    u = log_ratio(logprobs, old_logprobs, mask, ratio_level)
    loss = -torch.exp(u.clamp(-20, 20)) * advantages + prox_coef * proximal_kl(u)
    return loss if ratio_level == "token" else loss / mask.sum(-1, keepdim=True).clamp(min=1)


METHOD = Method(
    title="Mirror descent with leave-one-out",
    family="policy optimisation",
    paper="arXiv:2407.21075",
    feed="groups",
    loss=mdloo,
    per="sequence_sum",
    credit=credit.leave_one_out,
    kl=KL(weight=0.05, estimator="k1", place="reward"),
    min_group=2,
    min_updates=2,
    target="mirror_descent",
    choices={"ratio_level": ("sequence", "token")},
    ranges={"prox_coef": Range(0, open="low")},
)
