"""REINFORCE++ (Hu 2025, arXiv:2501.03262): PPO's loss without a critic.

    G_t = R - kl.weight (sum of the KL from token t on),   A = (G - mean) / std over all tokens of the step
    L   = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)        averaged over all tokens of the update

The statistics are of the whole step, over all ranks; a long completion counts in them by its tokens. `baseline` true is
REINFORCE++-baseline: the group's mean reward goes first, with several completions per prompt and the KL in the loss
(kl.place "loss", kl.estimator "k2"). Logic-RL (arXiv:2502.14768) puts k3 in the loss and leaves the rest.
"""

from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import KL, Method, Range
from fiducial.methods.grpo import METHOD as GRPO
from fiducial.methods.grpo import grpo


def reinforce_pp(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """Clipped surrogate per token: three [B, L] -> [B, L].

    >>> import torch
    >>> reinforce_pp(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[-2.0]]))  # rho = 1/e, clipped at 0.8
    tensor([[1.6000]])
    """
    return grpo(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)


METHOD = Method(
    title="REINFORCE++",
    family="policy optimisation",
    paper="arXiv:2501.03262",
    feed="groups",
    loss=reinforce_pp,
    per="token",
    credit=credit.step_normalized,
    kl=KL(weight=0.01, estimator="k1", place="reward"),
    ranges={
        **{name: GRPO.ranges[name] for name in ("clip_low", "clip_high")},
        "reward_clip": Range(0, open="low"),
    },
)
