"""Safe RLHF (Dai et al. 2023, arXiv:2310.12773): the most reward for which the expected cost is at most 0.

    min over pi, max over lam >= 0 of   -J_R + lam J_C,      J_C = E[cost] + threshold
    A   = (A_reward - lam A_cost) / (1 + lam),               one clipped surrogate as in PPO
    lam <- lam exp(alpha lam J_C),                           before each step, J_C the mean cost of recent completions

Two critics forecast what is to come of rewards and of costs; each stream carries half of the KL penalty, so that its
weight in A is the same for every lam. `combine` "surrogate" clips the two parts on their own, as the paper prints it;
the default combines first, as its code does: the two differ where clipping is active. Advantages are not whitened:
rewards and costs are traded at the rate lam. `lambda_max` is needed: while J_C stays at c > 0 the multiplier grows like
lam_0 / (1 - alpha c lam_0 t). With a [mix] table demonstrations go on training beside (the paper's PTX, weight 16).
"""

import torch
from torch import Tensor

from fiducial.core import lagrangian
from fiducial.core.critic import cost_value_loss, wide_value_loss
from fiducial.core.method import KL, Method, Range


def safe_rlhf(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    reward_advantages: Tensor | None = None,
    cost_advantages: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    combine: str = "advantage",
) -> Tensor:
    """Clipped surrogate per token: [B, L] each -> [B, L]. The two parts, 1 / (1 + lam) and lam / (1 + lam) times their
    advantages, are read by `combine` "surrogate" only.

    >>> safe_rlhf(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), torch.tensor([[2.0]]))  # rho = e, clipped at 1.2
    tensor([[-2.4000]])
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20, 20))
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)

    def surrogate(gain: Tensor) -> Tensor:
        return torch.minimum(ratio * gain, clipped * gain)

    if combine == "advantage":
        return -surrogate(advantages)
    assert reward_advantages is not None and cost_advantages is not None
    return surrogate(cost_advantages) - surrogate(reward_advantages)


METHOD = Method(
    title="Safe RLHF",
    family="policy optimisation",
    paper="arXiv:2310.12773",
    feed="groups",
    loss=safe_rlhf,
    per="token",
    credit=lagrangian.CREDIT,
    critics={"values": wide_value_loss, "cost_values": cost_value_loss},
    kl=KL(weight=0.02, estimator="k1", place="reward"),
    target="lagrangian",
    idle={"reward_advantages": ("combine", "advantage"), "cost_advantages": ("combine", "advantage")},
    choices={"combine": ("advantage", "surrogate")},
    ranges={
        "clip_low": Range(0, 1, open="low"),
        "clip_high": Range(0, open="low"),
        "clip_value": Range(0),
        "gamma": Range(0, 1, open="low"),
        "lam": Range(0, 1),
        "lambda_init": Range(0, open="low"),
        "lambda_lr": Range(0),
        "lambda_max": Range(0, open="low"),
        "window": Range(1),
    },
)
