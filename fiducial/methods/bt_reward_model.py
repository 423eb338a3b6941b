"""Bradley-Terry reward model (Bradley & Terry 1952; for language models Ouyang et al. 2022, arXiv:2203.02155).

    P(chosen beats rejected) = sigmoid(r_chosen - r_rejected)
    L = -log sigmoid(r_chosen - r_rejected - margin)  +  center_coef (r_chosen + r_rejected)^2

The second term (Eisenstein et al. 2023, arXiv:2312.09244; 0.01 recommended) keeps scores near zero, which pairs alone
leave undetermined up to a constant per prompt. A soft label p is two rows of weight p and 1 - p; a ranking of K
responses is all its pairs, which together weigh what one row does. Certain pairs have no finite best score: they grow
apart for as long as they train, unless optim.weight_decay holds them.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


def bt_reward_model(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margin: Tensor,
    *,
    center_coef: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss per pair: [B], [B], [B] -> [B].

    >>> import torch
    >>> bt_reward_model(torch.zeros(1), torch.zeros(1), torch.zeros(1))  # log 2
    tensor([0.6931])
    """
    delta = chosen_scores - rejected_scores - margin
    loss = -(1 - label_smoothing) * logsigmoid(delta) - label_smoothing * logsigmoid(-delta)
    return loss + center_coef * (chosen_scores + rejected_scores).square()


METHOD = Method(
    title="Bradley-Terry reward model",
    family="reward models",
    paper="arXiv:2203.02155",
    feed="pairs",
    loss=bt_reward_model,
    per="row",
    target="bt_rewards",
    ranges={"center_coef": Range(0), "label_smoothing": Range(0, 0.5, open="high")},
)
