"""Proximal Policy Optimization with a critic (Schulman et al. 2017, arXiv:1707.06347; for language models Ziegler et
al. 2019, arXiv:1909.08593, Ouyang et al. 2022, arXiv:2203.02155).

    L_policy = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),   rho = exp(logprobs - old_logprobs)
    L_critic = max((v - G)^2, (clip(v, v_old +- clip_value) - G)^2) / 2

A is the generalized advantage of each token: the outcome on the last one, a KL penalty on each, against the critic's
forecasts v; G = A + v_old. Over the step A is whitened. `dual_clip` c > 1 bounds the loss of a bad token at -c A (Ye et
al. 2020, arXiv:1912.09729). The critic is a network of its own, so the papers' coefficient of its loss is the recipe's
`critic.lr_scale`.
"""

import torch
from torch import Tensor

from fiducial.core import credit
from fiducial.core.critic import value_loss
from fiducial.core.method import KL, Method, Range


def ppo_lm(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """Clipped surrogate per token: three [B, L] -> [B, L].

    >>> ppo_lm(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), torch.tensor([[2.0]]))  # rho = e, clipped at 1.2
    tensor([[-2.4000]])
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20, 20))
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


METHOD = Method(
    title="Proximal Policy Optimization",
    family="policy optimisation",
    paper="arXiv:1707.06347",
    feed="groups",
    loss=ppo_lm,
    per="token",
    credit=credit.gae_credit,
    critics={"values": value_loss},
    kl=KL(weight=0.05, estimator="k1", place="reward"),
    target="actor_critic",
    ranges={
        "clip_low": Range(0, 1, open="low"),
        "clip_high": Range(0, open="low"),
        "clip_value": Range(0),
        "dual_clip": Range(1, open="low"),
        "gamma": Range(0, 1, open="low"),
        "lam": Range(0, 1),
    },
)
