"""REINFORCE for language models (Williams 1992).

    L = -(R - b) log pi(y_t | x, y_<t)          summed over the tokens of a completion, averaged over completions

b is a baseline that does not depend on the completion it is subtracted from, so the gradient stays that of the expected
reward (batch_mean shrinks it by 1 - 1/N). A KL penalty belongs in the reward: the recipe's [kl] table.
"""

from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import KL, Method, Range


def reinforce_lm(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Per token, minimised: [B, L], [B, L] -> [B, L].

    >>> import torch
    >>> reinforce_lm(torch.tensor([[-0.5]]), torch.tensor([[2.0]]))
    tensor([[1.]])
    """
    return -advantages * logprobs


WITHOUT_GREEDY = ("none", "running", "batch_mean", "group_loo")  # no greedy completion is sampled for these

METHOD = Method(
    title="REINFORCE",
    family="policy optimisation",
    paper="doi:10.1007/BF00992696",
    feed="groups",
    loss=reinforce_lm,
    per="sequence_sum",
    credit=credit.reinforce,
    kl=KL(weight=0.05, estimator="k1", place="reward"),
    target="policy_gradient",
    choices={"baseline": (*WITHOUT_GREEDY, "greedy"), "action_level": ("sequence", "token")},
    idle={"greedy_rewards": ("baseline", WITHOUT_GREEDY)},
    ranges={"momentum": Range(0, 1, open="high")},
)
